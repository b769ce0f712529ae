"""Make the records that the chapters draw: long runs, once, by hand.

    python book/record.py sft-sample              # 64 prompts written for this book, offline
    python book/record.py sft-hh [--rows FILE]    # Anthropic HH, from the paper's probing file
    python book/record.py dpo-hh [--rows FILE]    # SFT first, unless it is there, then DPO
    python book/record.py NAME --seed 1           # the same with another order of the rows
    python book/record.py NAME --resume           # after an interruption

Each leaves ``book/recorded/NAME.npz`` (the numbers) and ``NAME.json`` (command, versions,
hardware, seed, date). Tuning on preferences also leaves ``NAME-before.npz`` and
``NAME-after.npz``: where probability lies at every response token (`lm.TokenMass`). No text of HH
is kept. Unfinished runs, and the models that others start from, live in ``_runs``. A seed other
than 0 is part of the name.
"""

import argparse
import shlex
import sys
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lmdyn import lm
from lmdyn.lm.data import as_probes
from lmdyn.lm.generate import generate, repeated
from lmdyn.lm.on_policy import finetune_on_policy
from lmdyn.lm.recipes import extend

HERE = Path(__file__).parent
RUNS = HERE.parent / "_runs"
N_TRAIN, N_TEST = 48, 24
SAMPLES = 4  # greedy answers to prompts of the sample that a record shows


@dataclass(frozen=True)
class Record:
    """A run: its rows, what it learns, and how often it is probed.

    Attributes:
        rows: gives the probes; those of split "train" are learned.
        settings: of `lm.finetune`.
        start: the record whose model it begins with; SmolLM2 itself, if not given.
        both: SFT learns (x, y+) and (x, y−), the paper's extend.
        rounds: sample the rejected responses anew in so many rounds.
        thin: probe every third prompt of each split only, without the slowest types.
        quiet: keep no record but the model, for others to begin with.
    """

    rows: object
    settings: dict = field(default_factory=dict)
    start: str | None = None
    both: bool = False
    rounds: int | None = None
    thin: bool = False
    quiet: bool = False


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
    probes = lm.load_probes(path or "hh", format=lm.Format("paper"))
    limits = {name: 350 for name in probes.types} | {"prompt": 400, "chosen_selfr": 10**6}
    limits |= {"irr_train": 10**6, "irr_test": 10**6}  # drawn anew below
    rows = [
        dict(row)
        for row in probes
        if all(0 < len(row.get(key, "")) <= limit for key, limit in limits.items())
    ][: N_TRAIN + N_TEST]
    for i, row in enumerate(rows):
        row["split"] = "test" if i % 3 == 2 else "train"
    answer_others(rows)
    return as_probes(rows, format=probes.format)


def answer_others(rows: list[dict]) -> None:
    """Draw the answers to other prompts anew, irr_train of those trained on, irr_test held out."""
    for key, split in (("irr_train", "train"), ("irr_test", "test")):
        pool = [row for row in rows if row["split"] == split]
        draw = np.random.default_rng(0)
        for row in rows:
            others = [other for other in pool if other is not row]
            row[key] = others[draw.integers(len(others))]["chosen"]


SFT = {"loss": "sft", "epochs": 6, "lr": 1e-5, "batch_size": 4, "optimizer": "adamw", "clip": 10.0}
DPO = SFT | {"loss": "dpo", "epochs": 4, "lr": 5e-6, "probe_every": 6}
# An epoch of 48 rows has 12 updates.
RECORDS = {
    "sft-sample": Record(sample_rows, SFT | {"probe_every": 24}),
    "sft-hh": Record(hh_rows, SFT | {"probe_every": 12}),
    # What preference tuning begins with. Extend sees twice the rows for half as many epochs.
    "sft-short": Record(hh_rows, SFT | {"epochs": 2}, quiet=True),
    "sft-long": Record(hh_rows, SFT, quiet=True),
    "sft-extend": Record(hh_rows, SFT | {"epochs": 3}, both=True, quiet=True),
    "dpo-hh-short": Record(hh_rows, DPO, start="sft-short", thin=True),
    "dpo-hh": Record(hh_rows, DPO, start="sft-long", thin=True),
    "dpo-hh-extend": Record(hh_rows, DPO, start="sft-extend", thin=True),
    "dpo-hh-on-policy": Record(hh_rows, DPO | {"epochs": 1}, start="sft-long", rounds=4, thin=True),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", choices=RECORDS)
    parser.add_argument("--rows", type=Path, help="the paper's HH probing file, if it is at hand")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    record(args.name, args)


def record(name: str, args) -> Path:
    """Make one record, and before it the one that it begins with: the folder of its model."""
    what = RECORDS[name]
    full = name if args.seed == 0 else f"{name}-seed{args.seed}"
    out = RUNS / full
    start = args.model
    if what.start is not None:
        start = record(what.start, args)
    if what.quiet and (out / "done").is_file():
        return _model(out)
    probes = what.rows(args.rows)
    train = probes.split("train")
    watched = _thin(probes) if what.thin else None if what.quiet else probes
    model, tokenizer = lm.load(str(start))
    before = None if what.quiet else _look(model, tokenizer, watched, what)
    settings = what.settings | {"seed": args.seed, "probes": watched, "progress": True}
    settings |= {"out": out, "resume": args.resume or what.quiet}
    if what.rounds:
        ref = deepcopy(model)
        run = finetune_on_policy(model, tokenizer, train, rounds=what.rounds, ref=ref, **settings)
    else:
        rows = both(train) if what.both else train
        run = lm.finetune(model, tokenizer, rows, **settings)
    if what.quiet:
        (out / "done").touch()
        return _model(out)
    after = _look(model, tokenizer, watched, what, before)
    command = ["python", "book/record.py", name]  # --rows is a place of this machine
    command += ["--seed", str(args.seed)] if args.seed else []
    run.meta["command"] = shlex.join(command)
    run.meta["begins with"] = "smollm2-135m" if what.start is None else what.start
    for key in ("repeated 3-grams", "words", "answers"):
        run.meta[key] = {"before": before[key], "after": after[key]}
    run.save(HERE / "recorded" / full)
    if "mass" in before:
        before["mass"].save(HERE / "recorded" / f"{full}-before.npz")
        after["mass"].save(HERE / "recorded" / f"{full}-after.npz")
    print(run.summary())
    return _model(out)


def both(train):
    """The paper's extend, each rejected response right after its chosen one."""
    return extend(train)[[k for i in range(len(train)) for k in (i, len(train) + i)]]


def _look(model, tokenizer, probes, what: Record, before=None) -> dict:
    """What the model says, and for preference tuning where its probability lies."""
    texts = generate(model, tokenizer, [row["prompt"] for row in probes])
    ours = lm.load_probes("sample", split="test", limit=SAMPLES)
    found = {
        "repeated 3-grams": repeated(texts),
        "words": float(np.mean([len(text.split()) for text in texts])),
        "answers": generate(model, tokenizer, [row["prompt"] for row in ours], 48),
    }
    if what.start is not None:
        follow = None if before is None else before["mass"]
        found["mass"] = lm.token_mass(model, tokenizer, probes, follow=follow)
    return found


def _thin(probes):
    """Every third prompt of each split, without the types that cost most or tell least."""
    kept = [i for name in ("train", "test") for i in _of(probes, name)[::3]]
    left_out = {"chosen_selfr", "irr_test", "random_nonhum"}
    return probes[kept].only(*(name for name in probes.types if name not in left_out))


def _of(probes, split: str) -> list[int]:
    return [i for i, row in enumerate(probes) if row["split"] == split]


def _model(out: Path) -> Path:
    """The last checkpoint of a finished run, of its last round."""
    rounds = sorted(out.glob("round-*"), key=lambda path: int(path.name[6:]))
    return max((rounds[-1] if rounds else out).glob("checkpoint-*"))


if __name__ == "__main__":
    sys.exit(main())
