"""Finetuning on what the model has just sampled itself: as rejected responses, or for a reward."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from torch import nn

from lmdyn import losses
from lmdyn.checks import check_count
from lmdyn.lm.checkpoint import fingerprint, fingerprint_probes
from lmdyn.lm.data import ProbeSet, Rows, as_probes, load_probes, with_all
from lmdyn.lm.generate import generate, rewarded
from lmdyn.lm.records import write_jsonl
from lmdyn.lm.rows import checked, listed, said, text_of
from lmdyn.lm.tokens import KEYS, Format, each, prompts_of
from lmdyn.lm.train import finetune
from lmdyn.lm.trajectory import Trajectory


def sample_rejected(model, tokenizer, rows: Rows, **sampling) -> ProbeSet:
    """Rows with ``prompt`` and ``chosen``, and what `generate` samples as ``rejected``.

    It is kept as token ids, up to the one that ended it or to ``max_new_tokens``. A sample that is
    empty, or equal to ``chosen``, makes no pair: the row keeps the ``rejected`` that it came with,
    and is left out if it came with none; ValueError if no pair is left.
    """
    probes, pairs = as_probes(rows), []
    with_all(probes, ["chosen"], "sample_rejected")
    prompts = prompts_of(tokenizer, probes, probes.format)
    answers, ids, _ = generate(model, tokenizer, prompts, sample=True, return_ids=True, **sampling)
    for row, answer, tokens in zip(probes, answers, ids, strict=True):
        chosen = said(row["chosen"]) or text_of(row["chosen"], tokenizer)
        if answer.strip() not in ("", chosen.strip()):
            pairs.append({**row, "rejected": tokens})
        elif "rejected" in row:
            pairs.append(row)
    if not pairs:
        raise ValueError("no sampled answer makes a pair: raise temperature or max_new_tokens")
    return as_probes(pairs, list(dict.fromkeys([*probes.types, "rejected"])), probes.format)


class Groups:
    """What a model samples in each round: groups of answers to the same prompt, with advantages."""

    def __init__(
        self, model, tokenizer, rows, reward, kind, *, epochs, size, per_round, seed, out, **how
    ):
        self.model, self.tokenizer, self.reward, self.kind = model, tokenizer, reward, kind
        self.form = rows.format if isinstance(rows, ProbeSet) else Format()
        self.rows = listed(rows)
        prompts = each(self.rows, None, lambda row: checked(row, (), answered=False))
        self.prompts = [{key: row[key] for key in KEYS if key in row} for row in prompts]
        self.ids = prompts_of(tokenizer, self.prompts, self.form)
        self.epochs, self.size, self.seed, self.out, self.how = epochs, size, seed, out, how
        self.per_round = min(per_round or len(self.rows), len(self.rows))
        asked = {"group_size": size, "per_round": self.per_round, "passes": epochs, **how}
        self.settings = {  # what the samples depend on, besides the weights
            "reward": getattr(reward, "__qualname__", type(reward).__qualname__),
            "prompts": fingerprint([self.ids, asdict(self.form)]),
            **{k: x.item() if isinstance(x, np.generic) else x for k, x in asked.items()},
        }

    def __len__(self) -> int:
        return self.per_round * self.size

    def __call__(self, number: int) -> ProbeSet:
        """Sample a round, reward it and keep it; ValueError if a reward cannot be used."""
        draw = np.random.default_rng((self.seed, number))
        asked = draw.permutation(len(self.rows))[: self.per_round].repeat(self.size).tolist()
        ids = [self.ids[i] for i in asked]
        how = {"sample": True, "return_ids": True, "seed": int(draw.integers(2**31))} | self.how
        answers = generate(self.model, self.tokenizer, ids, **how)
        samples = [
            {"row": i, **self.prompts[i], "response": ids, "text": text, "ended": ended}
            for i, text, ids, ended in zip(asked, *answers, strict=True)
        ]
        try:
            for i, sample in zip(asked, samples, strict=True):
                told = sample["text"], f"rows[{i}]", f"round {number}: "
                sample["reward"] = rewarded(self.reward, self.rows[i], *told)
            rewards = torch.tensor([s["reward"] for s in samples]).double().view(-1, self.size)
            with warnings.catch_warnings(action="ignore"):  # equal rewards are told of in a number
                found = losses.advantages(rewards, self.kind)
            for sample, advantage in zip(samples, found.flatten().tolist(), strict=True):
                sample["advantage"] = advantage
        finally:  # the first round comes before `finetune` has refused the folder of another run
            if self.out and (number or not (Path(self.out) / "settings.json").is_file()):
                write_jsonl(Path(self.out) / f"samples-{number:04d}.jsonl", samples)
        differ = (rewards != rewards[:, :1]).any(1).double().mean()
        self.told = {"reward": rewards.mean().item(), "groups_that_differ": differ.item()}
        return as_probes(samples, ["response"], self.form)


def finetune_on_policy(
    model: nn.Module,
    tokenizer,
    rows: Rows,
    reward: Callable[[Mapping, str], float] | None = None,
    loss: str | losses.Loss | None = None,
    *,
    rounds: int,
    epochs: int = 1,
    group_size: int = 8,
    per_round: int | None = None,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    sample_batch_size: int = 16,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    **settings,
) -> Trajectory:
    """Finetune on what the model samples anew in each round: for a reward, or as rejected ones.

    With a ``reward``, a round samples ``group_size`` answers to each of its prompts, rewards them
    and makes an update of ``loss`` with their advantages (see `lmdyn.losses.advantages`). Updates
    tell the mean reward, and the share of groups whose rewards differ: others teach nothing.

    Without one, a round is `sample_rejected` and a `finetune` on its pairs, with a fresh optimizer.
    On-policy pairs do not lie in a valley, so that pushing them down does not squeeze (section 4.2
    of the paper). A loss that needs a reference is then relative to the model at the start of the
    round, as in SPIN; pass ``ref``, a copy of the first model, for one that stays.

    Args:
        model, tokenizer, settings: as in `finetune`, but in one process. With a reward
            ``batch_size`` is, if not given, all samples of a round, and checkpoints are at its end.
        rows: prompts to answer; without a reward also what `sample_rejected` reads.
        reward: from a row, as it was given, and an answer's text to a finite number.
        loss: "grpo" if not given, or "dpo" without a reward.
        rounds: how many times to sample; ``epochs`` are passes over what a round sampled.
        per_round, group_size: for a reward alone: prompts in a round, drawn anew (all of them if
            not given), and answers to each.
        max_new_tokens, temperature, sample_batch_size: as in `generate`, there ``batch_size``.
        seed: of the samples and of the order of the rows, both new in each round.
        out: a folder for what `finetune` keeps and, round by round, the samples or pairs.
        resume: go on with the rounds in ``out``.
    """
    check_count("rounds", rounds, 1)
    if PartialState().num_processes > 1:
        raise ValueError("finetune_on_policy samples in one process: launch one")
    sampling = {"max_new_tokens": max_new_tokens, "temperature": temperature}
    sampling["batch_size"] = sample_batch_size
    kept, settings = {"seed": seed, "out": out, "epochs": epochs}, {"resume": resume} | settings
    if reward is None:
        return _on_pairs(model, tokenizer, rows, loss or "dpo", rounds, sampling, settings, **kept)
    if not callable(reward):
        raise ValueError(f"reward must be a function of a row and an answer, got {reward!r:.40}")
    check_count("group_size", group_size, 2)
    check_count("per_round", per_round, 1, optional=True)
    loss = losses.get(loss or "grpo")
    if not loss.needs_advantage:
        raise ValueError(f"{loss} reads no advantage: take one that does, or leave reward out")
    groups = {"size": group_size, "per_round": per_round} | kept
    fresh = Groups(model, tokenizer, rows, reward, loss.baseline, **groups, **sampling)
    settings = {"batch_size": len(fresh)} | settings | kept | {"epochs": rounds * epochs}
    run = finetune(model, tokenizer, fresh, loss, **settings)
    if not run.log["groups_that_differ"].any():
        warnings.warn("in no group did rewards differ: nothing was learned", stacklevel=2)
    return run


def _on_pairs(
    model, tokenizer, rows, loss, rounds, sampling, settings, *, seed, out, epochs
) -> Trajectory:
    probes, parts = as_probes(rows), []
    made = fingerprint([fingerprint_probes(probes), str(sampling)])  # names the files of pairs
    for number in range(rounds):
        folder = None if out is None else Path(out) / f"round-{number}"
        kept = folder and folder / f"pairs-{made}.jsonl"  # going on need not sample them
        draw = int(np.random.default_rng((seed, number)).integers(2**31))
        if settings["resume"] and kept and kept.is_file():
            pairs = load_probes(kept, sorted({*probes.types, "rejected"}), format=probes.format)
        else:
            pairs = sample_rejected(model, tokenizer, probes, seed=draw, **sampling)
            if kept and not (folder / "settings.json").is_file():  # a run: finetune refuses it
                write_jsonl(kept, pairs)
        options = {"epochs": epochs, "seed": draw, "out": folder} | settings
        parts.append(finetune(model, tokenizer, pairs, loss, **options))
    whole = Trajectory.join(parts)
    if out is not None:
        whole.save(Path(out) / "trajectory")
    return whole
