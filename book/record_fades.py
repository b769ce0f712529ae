"""Make the record of how often the alert of RL is right: `fades` over runs in the toy world.

    python book/record_fades.py       # about fifteen minutes on one core, offline

Leaves ``book/recorded/fades-world.json``: of each run whether and when the alert came, and the
share of true answers before and after; the rates, with 95% Wilson intervals, apart for the seeds
on which the rule was chosen and for those on which it is tested; and settings, command, versions,
hardware, seconds. Each run is kept in ``_runs/fades-world`` once it is finished, so that the same
command goes on after an interruption.

The reward is 1 for a true answer. Probes are answers that the model itself sampled at the start, as
`ProbeSet.from_dataset(reward=…)` sorts them. Harm is a share of true answers that falls by more
than two standard errors, paired by question.
"""

import copy
import sys
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binomtest

import kept
import world
from lmdyn import lm
from lmdyn.lm.generate import CORRECT, generate
from lmdyn.lm.records import environment, write_json
from lmdyn.lm.squeeze import fades
from record_rl import ARMS as WAYS
from record_rl import GROUP, LONGEST, PER_ROUND, RL, ROWS, SFT, UPDATES, drawn, first_stage, is_true

HERE = Path(__file__).parent
PARTS = HERE.parent / "_runs" / "fades-world"
SETTLED, TESTED = (0, 1, 2, 3, 4), (5, 6, 7, 8)  # seeds that the rule was chosen on, and not
PROBED, ASKED, TIMES = 16, 32, 3  # prompts of each split: probed, and asked so many times for truth
HARM = 2  # standard errors
FALLS = (0.1, 0.25, 0.5, 1.0)  # of the log-prob at the start: half is the alert's

# Ways of tuning of `record_rl`, each with its learning rate.
ARMS = {arm: (WAYS[arm], RL["lr"]) for arm in ("both", "positive only", "negative only")}
ARMS |= {"off-policy negative": (WAYS["off-policy negative"], RL["lr"])}
ARMS |= {f"both, lr × {times}": (WAYS["both"], times * RL["lr"]) for times in (3, 10)}


def truth(model, tokenizer, rows) -> np.ndarray:
    """(questions,) the share of sampled answers that are true."""
    asked = [row["prompt"] for row in _some(rows, ASKED) for _ in range(TIMES)]
    answers = generate(model, tokenizer, asked, LONGEST, sample=True, seed=1, batch_size=128)
    right = [world.is_true(*both) for both in zip(asked, answers, strict=True)]
    return np.reshape(right, (-1, TIMES)).mean(1)


def sampled(model, tokenizer, rows, seed: int) -> lm.ProbeSet:
    """The probes, sampled by this model: chosen_initial, correct and wrong."""
    plain = [{key: row[key] for key in ("prompt", "split")} for row in _some(rows, PROBED)]
    how = {"reward": is_true, "group_size": GROUP, "max_new_tokens": LONGEST, "seed": seed}
    form = {"format": rows.format, "limit": len(plain)}
    return lm.ProbeSet.from_dataset(plain, tokenizer, model=model, **how, **form)


def tune(start, tokenizer, rows, probes, arm: str, seed: int) -> dict[str, np.ndarray]:
    """What a run records: the curves that `fades` reads, the mean reward, and its truth after."""
    began, model, (way, lr) = time.perf_counter(), copy.deepcopy(start), ARMS[arm]
    rounds = drawn(start, model, tokenizer, rows[: ROWS["n_train"]], way, seed)
    settings = RL | {"lr": lr, "epochs": UPDATES, "batch_size": len(rounds), "seed": seed}
    run = lm.finetune(model, tokenizer, rounds, "grpo", probes=probes, **settings)
    return {
        "steps": run.steps,
        "correct": run.values(CORRECT),
        "entropy": run.values(CORRECT, "entropy"),
        "reward": run.log["reward"],
        "after": truth(model, tokenizer, rows),
        "seconds": np.array(time.perf_counter() - began),
    }


def _some(rows, n: int):
    """So many rows of each split, training ones first."""
    return rows[[*range(n), *range(ROWS["n_train"], ROWS["n_train"] + n)]]


def _recipe(arm: str, seed: int) -> dict:
    sizes = {"updates": UPDATES, "per_round": PER_ROUND, "group_size": GROUP, "longest": LONGEST}
    asked = {"probed": PROBED, "asked": ASKED, "times": TIMES, "rows": ROWS, "seed": seed}
    return {"arm": ARMS[arm], "first stage": SFT, "tune": RL | sizes, **asked}


def _file(arm: str, seed: int) -> Path:
    return PARTS / f"{arm.replace(' ', '-').replace(',', '').replace('×', 'x')}-{seed}.npz"


def judged(arm: str, seed: int, run: dict[str, np.ndarray]) -> dict:
    """What the record says of a run."""
    steps, correct, entropy = run["steps"], run["correct"], run["entropy"]
    told = {int(steps[s]): fades(steps[: s + 1], correct[: s + 1], entropy[: s + 1])
            for s in range(len(steps))}  # fmt: skip
    fired = [step for step, reason in told.items() if reason]
    fell = run["before"] - run["after"]
    error = fell.std(ddof=1) / np.sqrt(len(fell))
    return {
        "arm": arm,
        "seed": seed,
        "prompts": int((~np.isnan(correct).any(0)).sum()),
        "truth": [round(float(run[when].mean()), 3) for when in ("before", "after")],
        "error": round(float(error), 3),
        "harm": bool(fell.mean() > HARM * error),
        "reward": [round(float(part.mean()), 3) for part in np.array_split(run["reward"], 4)],
        "fires": bool(fired),
        "first": fired[0] if fired else None,
        "at the end": bool(told[int(steps[-1])]),
        "reason": told[fired[0]] if fired else None,
        "correct": [round(float(x), 2) for x in np.nanmean(correct, 1)],
        "entropy": [round(float(x), 3) for x in np.nanmean(entropy, 1)],
        "deepest": round(float((np.nanmean(correct, 1) / np.nanmean(correct[0])).max() - 1), 3),
        "seconds": round(float(run["seconds"]), 1),
    }


def wilson(hits: int, n: int) -> list[float]:
    """The 95% score interval of a share."""
    if n == 0:
        return [0.0, 1.0]
    interval = binomtest(hits, n).proportion_ci(method="wilson")
    return [round(float(end), 3) for end in interval]


def rates(runs: list[dict]) -> dict:
    """How often the alert comes: of each arm, of runs that did harm, and of those that did not."""
    groups = {arm: [run for run in runs if run["arm"] == arm] for arm in ARMS}
    groups["harm"] = [run for run in runs if run["harm"]]
    groups["no harm"] = [run for run in runs if not run["harm"]]
    found = {}
    for name, of in groups.items():
        hits, harmed = (sum(run[key] for run in of) for key in ("fires", "harm"))
        found[name] = {"runs": len(of), "fires": hits, "interval": wilson(hits, len(of))}
        found[name] |= {"harm": harmed} if name in ARMS else {}
        # How many would have been told of, had right answers to fall by such a share on their mean.
        found[name]["deeper than"] = {f: sum(run["deepest"] > f for run in of) for f in FALLS}
    return found


def _write() -> None:
    runs = {
        part: [
            judged(arm, seed, kept.kept(_file(arm, seed), _recipe(arm, seed)))
            for arm in ARMS
            for seed in seeds
        ]
        for part, seeds in (("settled", SETTLED), ("tested", TESTED))
    }
    settings = _recipe("both", 0) | {"settled": SETTLED, "tested": TESTED, "harm": HARM}
    del settings["seed"]
    settings["arm"] = {arm: way | {"lr": lr} for arm, (way, lr) in ARMS.items()}
    meta = environment(torch.device("cpu")) | {"command": "python book/record_fades.py"}
    seconds = sum(run["seconds"] for of in runs.values() for run in of)
    meta |= {"model": "tiny", "settings": settings, "seconds": seconds}
    meta["rates"] = {part: rates(of) for part, of in runs.items()}
    write_json(HERE / "recorded" / "fades-world.json", meta | runs)


def main():
    base, tokenizer = kept.begin(__doc__)
    began = time.process_time()
    for seed in (*TESTED, *SETTLED):
        rows = world.probes(**ROWS, seed=seed)
        todo = [a for a in ARMS if kept.kept(_file(a, seed), _recipe(a, seed)) is None]
        if not todo:
            continue
        start = first_stage(base, tokenizer, rows[: ROWS["n_train"]], seed)
        probes = sampled(start, tokenizer, rows, seed)
        before = truth(start, tokenizer, rows)
        for arm in todo:
            found = tune(start, tokenizer, rows, probes, arm, seed) | {"before": before}
            kept.keep(_file(arm, seed), _recipe(arm, seed), found)
            print(f"{time.process_time() - began:5.0f} s  seed {seed}  {arm}", flush=True)
    _write()


if __name__ == "__main__":
    sys.exit(main())
