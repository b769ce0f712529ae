"""Make the record of the chapter "What RL does": reward = the answer is true, in the toy world.

    python book/record_rl.py          # about fifteen minutes on one core, offline

Leaves ``book/recorded/rl-world.npz`` (the numbers) and ``rl-world.json`` (settings, command,
versions, hardware, seeds, date). Each run is kept in ``_runs/rl-world`` once it is finished, so
that the same command goes on after an interruption.
"""

import copy
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

import kept
import world
from lmdyn import lm, losses
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
UPDATES, PER_ROUND, GROUP, LONGEST = 16, 8, 8, 32

# What becomes of a sample's advantage A: the least and the most that is kept of it.
KEPT = {"A": (None, None), "max(A, 0)": (0.0, None), "min(A, 0)": (None, 0.0)}
PLAIN = {"advantage": "A", "answer": "its own", "sampler": "present", "loss": "grpo", "passes": 1}
NEGATIVE = PLAIN | {"advantage": "min(A, 0)"}

# The answer that gets the advantage, its own or the row's rejected one; the model that samples, the
# present one or the first; the loss; and the passes over a round. DPO samples nothing.
ARMS = {
    "both": PLAIN,
    "positive only": PLAIN | {"advantage": "max(A, 0)"},
    "negative only": NEGATIVE,
    "off-policy negative": NEGATIVE | {"answer": "rejected"},
    "dpo": PLAIN | {"loss": "dpo"},
    "stale negative": NEGATIVE | {"sampler": "first"},
    "stale, with its ratio": NEGATIVE | {"sampler": "first", "loss": "ratio to the first"},
    "constant norm": PLAIN | {"loss": "constant norm"},
    "KL": PLAIN | {"beta": 0.5},
    "eight passes": PLAIN | {"passes": 8},
    "eight passes, no clip": PLAIN | {"passes": 8, "epsilon_low": 0.999, "epsilon_high": 1e3},
}


class GRPO(losses.GRPO):
    """GRPO that counts what it clips."""

    clipped: ClassVar[list[float]] = []  #: of each update, the share of tokens whose c is 0

    def _terms(self, given):
        ratio = (given.logps["response"] - given.old["response"]).detach().exp()
        rises = given.advantage.unsqueeze(1) > 0
        out = torch.where(rises, ratio > 1 + self.epsilon_high, ratio < 1 - self.epsilon_low)
        counts = given.advantage.unsqueeze(1) != 0
        there = torch.arange(out.shape[1]) < given.lengths["response"].unsqueeze(1)
        self.clipped.append(out[counts & there].double().mean().item())
        return super()._terms(given)


class FromRef(GRPO):
    """GRPO whose samples are those of the reference model: the ratio is to it."""

    needs_ref = True

    def _terms(self, given):
        return super()._terms(replace(given, old=given.ref))


class Draws(Groups):
    """Rounds of samples, with the advantages and the answers of a way of tuning."""

    way, true, tuned, tests = PLAIN, (), None, None

    def __call__(self, number: int):
        if self.tests and number * self.epochs % SAMPLE_EVERY == 0:
            self.true = *self.true, true_answers(self.tuned, self.tokenizer, self.rows, self.tests)
        if self.way["loss"] == "dpo":
            order = np.random.default_rng((self.seed, number)).permutation(len(self.rows))
            pairs, self.told = [self.rows[i] for i in order[: self.per_round]], {}
            return as_probes(pairs, ["chosen", "rejected"], self.form)
        samples = [dict(sample) for sample in super().__call__(number)]
        for word, sign in (("true", 1), ("false", -1)):  # of the groups whose rewards differ
            lengths = [len(s["response"]) for s in samples if sign * s["advantage"] > 0]
            self.told[f"tokens {word}"] = float(np.mean(lengths or [np.nan]))
        rejected = {row["prompt"]: row["rejected"] for row in self.rows}
        for sample in samples:
            sample["advantage"] = float(np.clip(sample["advantage"], *KEPT[self.way["advantage"]]))
            if self.way["answer"] == "rejected":
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


def loss_of(way: dict, start) -> dict:
    """The loss of a way of tuning, with its reference, as `finetune` takes them."""
    hyper = {key: value for key, value in way.items() if key not in PLAIN}
    kinds = {"grpo": GRPO, "ratio to the first": FromRef, "constant norm": losses.DrGRPO}
    if way["loss"] == "dpo":
        return {"loss": "dpo", "ref": start}
    if way["loss"] == "constant norm":
        hyper["max_length"] = LONGEST
    loss = kinds[way["loss"]](**hyper)
    return {"loss": loss} | ({"ref": start} if loss.needs_ref else {})


def drawn(start, model, tokenizer, rows, way: dict, seed: int) -> Draws:
    """The rounds that a way of tuning draws."""
    sizes = {"epochs": way["passes"], "per_round": PER_ROUND, "seed": seed, "out": None}
    sizes["size"] = 1 if way["loss"] == "dpo" else GROUP
    how = {"max_new_tokens": LONGEST, "temperature": 1.0, "batch_size": PER_ROUND * GROUP}
    sampler = model if way["sampler"] == "present" else start
    draws = Draws(sampler, tokenizer, rows, is_true, "grpo", **sizes, **how)
    draws.way, draws.tuned = way, model
    return draws


def tune(start, tokenizer, rows, arm: str, seed: int) -> dict[str, np.ndarray]:
    """What a run records: scores of the probes, true answers and the mean reward on the way."""
    train, test = rows[: ROWS["n_train"]], rows[ROWS["n_train"] :]
    watched = rows[[*range(PROBED), *range(ROWS["n_train"], ROWS["n_train"] + PROBED)]]
    model, way = copy.deepcopy(start), ARMS[arm]
    draws = drawn(start, model, tokenizer, train, way, seed)
    draws.tests = test
    GRPO.clipped.clear()
    settings = RL | loss_of(way, start) | {"epochs": UPDATES, "batch_size": len(draws)}
    run = lm.finetune(model, tokenizer, draws, probes=watched.only(*TYPES), seed=seed, **settings)
    assert run.types == TYPES
    true = [*draws.true, true_answers(model, tokenizer, train, test)]
    found = {stat: np.float32(getattr(run, stat)) for stat in STATS}
    none = np.full(UPDATES, np.nan)
    for key in ("reward", "tokens true", "tokens false"):
        found[key] = run.log.get(key, none)
    found["clipped"] = np.array(GRPO.clipped or none)
    return found | {"steps": run.steps, "true": np.array(true)}


def _recipe(arm: str) -> dict:
    sizes = {"updates": UPDATES, "per_round": PER_ROUND, "group_size": GROUP, "longest": LONGEST}
    return {"arm": ARMS[arm], "first stage": SFT, "tune": RL | sizes}


def _file(arm: str, seed: int) -> Path:
    return PARTS / f"{arm.replace(' ', '-').replace(',', '')}-{seed}.npz"


def _write() -> None:
    """All runs in one file: (arms, seeds, …)."""
    runs = [[kept.kept(_file(arm, seed), _recipe(arm)) for seed in SEEDS] for arm in ARMS]
    whole = {key: np.array([[run[key] for run in of] for of in runs]) for key in runs[0][0]}
    whole["steps"] = whole["steps"][0, 0]
    whole |= {"arms": np.array(list(ARMS)), "seeds": np.array(SEEDS), "types": np.array(TYPES)}
    whole["split"] = np.repeat(["train", "test"], PROBED)
    meta = environment(torch.device("cpu")) | {"command": "python book/record_rl.py"}
    meta |= {"model": "tiny", "rows": ROWS, "asked": ASKED, "times": TWICE}
    meta |= {"arms": {arm: _recipe(arm) for arm in ARMS}}
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
