"""Make the records that the chapters draw: long runs, once, by hand.

    python book/record.py sft-sample              # 64 prompts written for this book, offline
    python book/record.py sft-hh [--rows FILE]    # Anthropic HH, from the paper's probing file
    python book/record.py NAME --resume           # after an interruption

Each leaves ``book/recorded/NAME.npz`` (the numbers) and ``NAME.json`` (command, versions,
hardware, seed, date). No text of HH is kept. The unfinished run lives in ``_runs/NAME``.
"""

import argparse
import shlex
import sys
from pathlib import Path

import numpy as np

from lmdyn import lm
from lmdyn.lm.data import as_probes
from lmdyn.lm.generate import generate, repeated

HERE = Path(__file__).parent
SETTINGS = {
    "loss": "sft",
    "epochs": 6,
    "lr": 1e-5,
    "batch_size": 4,
    "optimizer": "adamw",
    "clip": 10.0,
    "seed": 0,
}
N_TRAIN, N_TEST = 48, 24


def sample_rows(path):
    """All 64 prompts of the sample: 48 to train on, 16 held out."""
    return lm.load_probes("sample")


def hh_rows(path):
    """The first 72 rows of the paper's file with every type, none long; every third is held out.

    Not long is at most 400 characters of prompt and 350 of each response, so that a laptop can
    repeat it. The model's own rephrases run to their limit in that file; they are let through.
    The file's irr_train answers prompts that are not among these, so nobody would have trained on
    them. Here irr_train is the chosen answer to another of the 48, irr_test to one held out.
    """
    probes = lm.load_probes(path or "hh", drop_empty=True)
    limits = {name: 350 for name in probes.types} | {"prompt": 400, "chosen_selfr": 10**6}
    limits |= {"irr_train": 10**6, "irr_test": 10**6}  # drawn anew below
    rows = [
        dict(row)
        for row in probes
        if all(0 < len(row.get(key, "")) <= limit for key, limit in limits.items())
    ][: N_TRAIN + N_TEST]
    for i, row in enumerate(rows):
        row["split"] = "test" if i % 3 == 2 else "train"
    for key, split in (("irr_train", "train"), ("irr_test", "test")):
        pool = [row for row in rows if row["split"] == split]
        draw = np.random.default_rng(0)
        for row in rows:
            others = [other for other in pool if other is not row]
            row[key] = others[draw.integers(len(others))]["chosen"]
    return as_probes(rows, format=probes.format)


# name → its rows, and updates between two probings (an epoch of 48 rows has 12).
RECORDS = {"sft-sample": (sample_rows, 24), "sft-hh": (hh_rows, 12)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", choices=RECORDS)
    parser.add_argument("--rows", type=Path, help="the paper's HH probing file, if it is at hand")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()

    rows, probe_every = RECORDS[args.name]
    probes = rows(args.rows)
    model, tokenizer = lm.load(args.model)
    prompts = [row["prompt"] for row in probes]
    before = generate(model, tokenizer, prompts)
    trajectory = lm.finetune(
        model,
        tokenizer,
        probes.split("train"),
        probes=probes,
        probe_every=probe_every,
        out=HERE.parent / "_runs" / args.name,
        resume=args.resume,
        progress=True,
        **SETTINGS,
    )
    after = generate(model, tokenizer, prompts)
    command = ["python", "book/record.py", args.name]  # --rows is a place of this machine
    texts = {"before": repeated(before), "after": repeated(after)}
    trajectory.meta.update({"command": shlex.join(command), "repeated 3-grams": texts})
    trajectory.save(HERE / "recorded" / args.name)
    print(trajectory.summary())


if __name__ == "__main__":
    sys.exit(main())
