"""Make the record of the chapter "What RL does": reward = the answer is true, in the toy world.

    python book/record_rl.py          # about ten minutes on one core, offline

Leaves ``book/recorded/rl-world.npz`` (the numbers) and ``rl-world.json`` (settings, command,
versions, hardware, seeds, date). Each run is kept in ``_runs/rl-world`` once it is finished, so
that the same command goes on after an interruption.
"""

import copy
import sys
import time
from pathlib import Path

import numpy as np
import torch

import kept
import world
from lmdyn import lm
from lmdyn.lm.data import as_probes
from lmdyn.lm.generate import generate
from lmdyn.lm.on_policy import Groups
from lmdyn.lm.records import environment

HERE = Path(__file__).parent
PARTS = HERE.parent / "_runs" / "rl-world"
SEEDS = (0, 1, 2)
ROWS = {"n_train": 48, "n_test": 48}
PROBED = 16  # prompts of each split whose responses are scored on the way
TYPES = ("chosen", "chosen_gptsemantic", "rejected", "irr_train")
STATS = ("logp", "argmax_logp", "entropy", "squeeze")
ASKED, TWICE = 32, 2  # questions of each split, and samples of each, to see how many are true
SAMPLE_EVERY = 8  # updates

SFT = {"loss": "sft", "epochs": 2, "lr": 3e-4, "batch_size": 4, "optimizer": "adamw", "clip": 10.0}
RL = {"lr": 3e-4, "optimizer": "adamw", "clip": 1.0, "probe_every": 2}
ROUNDS, PER_ROUND, GROUP, LONGEST = 16, 8, 8, 32

# What becomes of a sample's advantage A, and which answer it is that gets it. DPO samples nothing.
ARMS = {
    "both": "the sample gets A",
    "positive only": "the sample gets max(A, 0)",
    "negative only": "the sample gets min(A, 0)",
    "off-policy negative": "the row's rejected answer gets min(A, 0) in the sample's place",
    "dpo": "chosen and rejected, no sample",
}


class Draws(Groups):
    """A round of samples with the advantages of an arm; on the way, how many answers are true."""

    arm, true = "both", ()

    def __call__(self, number: int):
        if number % SAMPLE_EVERY == 0:
            self.true = *self.true, true_answers(self.model, self.tokenizer, self.rows, self.tests)
        if self.arm == "dpo":
            order = np.random.default_rng((self.seed, number)).permutation(len(self.rows))
            pairs = [self.rows[i] for i in order[: self.per_round]]
            return as_probes(pairs, ["chosen", "rejected"], self.form)
        samples = [dict(sample) for sample in super().__call__(number)]
        rejected = {row["prompt"]: row["rejected"] for row in self.rows}
        for sample in samples:
            if self.arm == "positive only":
                sample["advantage"] = max(sample["advantage"], 0.0)
            elif "negative" in self.arm:
                sample["advantage"] = min(sample["advantage"], 0.0)
            if self.arm == "off-policy negative":
                sample["response"] = rejected[sample["prompt"]]
        return as_probes(samples, ["response"], self.form)


def is_true(row, answer: str) -> float:
    """The reward."""
    return float(world.is_true(row["prompt"], answer))


def true_answers(model, tokenizer, train, test) -> list[float]:
    """The shares of sampled answers that are true, of training and of held-out questions."""
    asked = [row["prompt"] for split in (train, test) for row in list(split)[:ASKED]] * TWICE
    answers = generate(model, tokenizer, asked, LONGEST, sample=True, seed=1, batch_size=128)
    right = [world.is_true(*both) for both in zip(asked, answers, strict=True)]
    return np.reshape(right, (TWICE, 2, ASKED)).mean((0, 2)).tolist()


def first_stage(base, tokenizer, train, seed: int):
    """The model that RL begins with."""
    model = copy.deepcopy(base)
    lm.finetune(model, tokenizer, train, **SFT, seed=seed)
    return model


def tune(start, tokenizer, rows, arm: str, seed: int) -> dict[str, np.ndarray]:
    """What a run records: scores of the probes, true answers and the mean reward on the way."""
    train, test = rows[: ROWS["n_train"]], rows[ROWS["n_train"] :]
    watched = rows[[*range(PROBED), *range(ROWS["n_train"], ROWS["n_train"] + PROBED)]]
    model, group, loss = copy.deepcopy(start), GROUP, {"loss": "grpo"}
    if arm == "dpo":
        group, loss = 1, {"loss": "dpo", "ref": start}
    sizes = {"epochs": 1, "group_size": group, "per_round": PER_ROUND, "seed": seed, "out": None}
    how = {"max_new_tokens": LONGEST, "temperature": 1.0, "batch_size": PER_ROUND * GROUP}
    draws = Draws(model, tokenizer, train, is_true, "grpo", **sizes, **how)
    draws.arm, draws.tests = arm, test
    settings = RL | loss | {"epochs": ROUNDS, "batch_size": len(draws), "seed": seed}
    run = lm.finetune(model, tokenizer, draws, probes=watched.only(*TYPES), **settings)
    assert run.types == TYPES
    true = [*draws.true, true_answers(model, tokenizer, train, test)]
    found = {stat: np.float32(getattr(run, stat)) for stat in STATS}
    reward = run.log.get("reward", np.full(ROUNDS, np.nan))
    return found | {"steps": run.steps, "true": np.array(true), "reward": reward}


def _recipe(arm: str) -> dict:
    sizes = {"rounds": ROUNDS, "per_round": PER_ROUND, "group_size": GROUP, "longest": LONGEST}
    return {"arm": ARMS[arm], "first stage": SFT, "tune": RL | sizes}


def _file(arm: str, seed: int) -> Path:
    return PARTS / f"{arm.replace(' ', '-')}-{seed}.npz"


def _write() -> None:
    """All runs in one file: (arms, seeds, …)."""
    runs = [[kept.kept(_file(arm, seed), _recipe(arm)) for seed in SEEDS] for arm in ARMS]
    whole = {key: np.array([[run[key] for run in of] for of in runs]) for key in runs[0][0]}
    whole["steps"] = whole["steps"][0, 0]
    whole |= {"arms": np.array(list(ARMS)), "seeds": np.array(SEEDS), "types": np.array(TYPES)}
    whole["split"] = np.repeat(["train", "test"], PROBED)
    meta = environment(torch.device("cpu")) | {"command": "python book/record_rl.py"}
    meta |= {"model": "tiny", "rows": ROWS, "arms": {arm: _recipe(arm) for arm in ARMS}}
    kept.write(HERE / "recorded" / "rl-world", whole, meta)


def main():
    base, tokenizer = kept.begin(__doc__)
    began = time.perf_counter()
    for seed in SEEDS:
        rows, start = world.probes(**ROWS, seed=seed), None
        for arm in ARMS:
            if kept.kept(_file(arm, seed), _recipe(arm)) is None:
                start = start or first_stage(base, tokenizer, rows[: ROWS["n_train"]], seed)
                kept.keep(_file(arm, seed), _recipe(arm), tune(start, tokenizer, rows, arm, seed))
                print(f"{time.perf_counter() - began:5.0f} s  seed {seed}  {arm}", flush=True)
    _write()


if __name__ == "__main__":
    sys.exit(main())
