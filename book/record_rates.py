"""Make the record of another learning rate for cures: SmolLM2, 300 pairs of HH, one epoch each.

    python book/record_rates.py --rows FILE --start FOLDER --threads 2    # ten minutes an arm

`record_scale.py` tunes DPO, extend and half SFT at three learning rates, the other arms at one,
DPO's. Would these do better at a larger one? FOLDER has SmolLM2 after SFT on the same rows, as
`record_scale.py` leaves it in ``_runs`` (its name ends in .model); FILE is the paper's probing
file. The pairs that are not trained on are probed before and after, in two groups: those that
`record_scale.py` tests on, and those that choose learning rates there.

Leaves ``scale-smollm2-rates.npz`` and ``.json`` in ``--out``, as `record_scale.py` does, written
anew after each arm. An arm that is finished stays in ``_runs``; the same command goes on.
"""

import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

import kept
import record
from lmdyn import lm
from lmdyn.lm.records import environment
from record_scale import PACKED, Setup, options, read
from scale_runs import ARMS, ON_CPU, PAIR, RATES, SMALL, TUNE, Run

SWEPT = ("rpo", "dpop", "ipo", "spare valleys")
LR, SEED = max(RATES), 1


def tuned(run: Run, setup: Setup) -> dict[str, np.ndarray]:
    """What an epoch of an arm moves, as `audit.scale.Scale` has it, and "seconds"."""
    began, data = time.perf_counter(), read(setup.source, setup.size)
    model, tokenizer = lm.load(setup.model, "cpu")
    settings = run.settings | {"probes": data.probes.only(*PAIR), "probe_every": len(data.train)}
    settings |= {"progress": False, "mixed_precision": "bf16" if run.precision == "bf16" else "no"}
    done = lm.finetune(model, tokenizer, data.train, **settings)
    found = {"steps": done.steps, "logp": done.logp, "argmax": done.values("argmax")}
    return found | {"n_tokens": done.n_tokens, "seconds": np.array(time.perf_counter() - began)}


def main():
    parser = options(__doc__)
    parser.add_argument("--start", type=Path, required=True, help="the folder of a model")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16")
    parser.add_argument("--small", action="store_true", help="a few rows, to see that it runs")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    size = replace(SMALL if args.small else ON_CPU, watched=(0, 0))
    data, precision = read(args.rows, size), "bf16" if args.bf16 else "fp32"
    recipe = {"rows": data.sha256, "start": args.start.stem, "size": asdict(size), "lr": LR}
    meta = environment(torch.device("cpu")) | recipe | {"threads": args.threads, "runs": {}}
    given = " --bf16" * args.bf16 + " --small" * args.small
    meta["command"] = f"python book/record_rates.py --start {args.start.name}{given}"
    setup = Setup(str(args.start), args.rows, size, "cpu", record.RUNS / "rates", args.threads)
    arrays = {"types": np.array(PAIR), "group": data.group}
    for arm in SWEPT:
        settings = TUNE | ARMS[arm][1] | {"lr": LR, "epochs": 1, "seed": SEED}
        run = Run(arm, settings, precision, "whole")
        name, this = run.name, (setup.part_of(run), setup.recipe(run))
        if (one := kept.kept(*this)) is None:
            kept.keep(*this, tuned(run, setup))
            one = kept.kept(*this)
        told = {"arm": arm, **settings, "precision": precision, "role": run.role}
        meta["runs"][name] = told | {"seconds": float(one["seconds"])}
        arrays |= {"n_tokens": one["n_tokens"], f"{name}|steps": one["steps"]}
        arrays |= {f"{name}|{key}": kept.packed(one[key]) for key in PACKED}
        kept.write(args.out / "scale-smollm2-rates", arrays, meta)
        print(f"{name}: {one['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
