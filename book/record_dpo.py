"""Make the record of the chapter "What DPO does": three worlds, DPO after two lengths of SFT.

    python book/record_dpo.py         # about two minutes on one core, offline

Leaves ``book/recorded/dpo-world.npz`` with what `lessons.dpo.found` tells of each world, stacked,
and ``.json`` with the settings, command, versions, hardware and seconds. Each world is kept in
``_runs/dpo-world`` once it is finished, so that the same command goes on after an interruption.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch

import kept
from lessons import dpo as lesson
from lmdyn.lm.records import environment

HERE = Path(__file__).parent
PARTS = HERE.parent / "_runs" / "dpo-world"
RECIPE = {
    "n_train": lesson.N_TRAIN,
    "n_test": lesson.N_TEST,
    "sft": lesson.SFT | {"epochs": [2, 6]},
    "dpo": lesson.DPO | {"epochs": lesson.EPOCHS, "beta": 0.1},
    "rounds": lesson.ROUNDS,
}


def main() -> None:
    base, tokenizer = kept.begin(__doc__)
    begun, worlds = time.perf_counter(), []
    for seed in range(lesson.SEEDS):
        part, recipe = PARTS / f"{seed}.npz", RECIPE | {"seed": seed}
        if (found := kept.kept(part, recipe)) is None:
            found = lesson.found(base, tokenizer, seed)
            kept.keep(part, recipe, found)
        worlds.append(found)
        print(f"world {seed}: {time.perf_counter() - begun:.0f} s", file=sys.stderr)
    arrays = {name: np.stack([found[name] for found in worlds]) for name in worlds[0]}
    meta = environment(torch.device("cpu")) | {
        "command": "python book/record_dpo.py",
        "model": "tiny",
        "seeds": list(range(lesson.SEEDS)),
        "arms": lesson.ARMS,
        "types": lesson.TOLD,
        "shown": lesson.SHOWN,
        "settings": RECIPE,
    }
    kept.write(HERE / "recorded" / "dpo-world", arrays, meta)


if __name__ == "__main__":
    main()
