"""Preference tuning on pairs whose rejected response the model has just sampled itself."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from torch import nn

from lmdyn import losses
from lmdyn.checks import check_count
from lmdyn.lm.data import ProbeSet, as_probes, load_probes, with_all
from lmdyn.lm.generate import generate
from lmdyn.lm.records import write_jsonl
from lmdyn.lm.rows import said
from lmdyn.lm.tokens import prompts_of
from lmdyn.lm.train import finetune
from lmdyn.lm.trajectory import Trajectory


def sample_rejected(
    model, tokenizer, rows: ProbeSet | Iterable[Mapping[str, str]], **sampling
) -> ProbeSet:
    """Rows with a ``prompt`` and ``chosen``, and what the model samples as ``rejected``.

    It is kept as token ids, up to the one that ended it or to ``max_new_tokens``. A sample that is
    empty, or equal to ``chosen``, makes no pair: the row keeps the ``rejected`` that it came with,
    and is left out if it came with none; ValueError if no pair is left.

    Args:
        model, tokenizer, sampling: as in `generate`.
    """
    probes, pairs = as_probes(rows), []
    with_all(probes, ["chosen"], "sample_rejected")
    prompts = prompts_of(tokenizer, probes, probes.format)
    sampling |= {"sample": True, "return_ids": True}
    answers, ids, _ = generate(model, tokenizer, prompts, **sampling)
    for row, answer, tokens in zip(probes, answers, ids, strict=True):
        if answer.strip() and answer.strip() != (said(row["chosen"]) or "").strip():
            pairs.append({**row, "rejected": tokens})
        elif "rejected" in row:
            pairs.append(row)
    if not pairs:
        what = "every sampled answer is empty or equal to chosen, and no row has a rejected one"
        raise ValueError(f"{what} to keep: raise temperature or max_new_tokens")
    return as_probes(pairs, list(dict.fromkeys([*probes.types, "rejected"])), probes.format)


def finetune_on_policy(
    model: nn.Module,
    tokenizer,
    rows: ProbeSet | Iterable[Mapping[str, str]],
    loss: str | losses.Loss = "dpo",
    *,
    rounds: int,
    epochs: int = 1,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    sample_batch_size: int = 16,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    **settings,
) -> Trajectory:
    """Finetune on pairs whose rejected response is sampled from the model anew in each round.

    A round samples (`sample_rejected`), then calls `finetune` on what it got, with a fresh
    optimizer; the trajectory runs over all rounds. On-policy pairs do not lie in a valley, so that
    pushing them down does not squeeze (section 4.2 of the paper). Without ``ref``, a loss that
    needs a reference is relative to the model at the start of the round, as in SPIN; pass a copy
    of the first model for one that stays.

    Args:
        model, tokenizer, loss, settings: as in `finetune`.
        rows, max_new_tokens, temperature: as in `sample_rejected`.
        rounds: how many times to sample; ``epochs`` are passes over the pairs of a round.
        sample_batch_size: prompts to sample for at a time; ``batch_size`` is that of the updates.
        seed: of the samples and of the order of the rows, both new in each round.
        out: a folder for the trajectory and, round by round, the pairs and what `finetune` keeps.
        resume: go on with the rounds in ``out``.
    """
    check_count("rounds", rounds, 1)
    check_count("seed", seed, 0)
    probes, parts, size = as_probes(rows), [], sample_batch_size
    types = list(dict.fromkeys([*probes.types, "rejected"]))
    sampling = {"max_new_tokens": max_new_tokens, "temperature": temperature, "batch_size": size}
    for number in range(rounds):
        folder = None if out is None else Path(out) / f"round-{number}"
        kept = folder and folder / "pairs.jsonl"  # so that going on need not sample them again
        draw = int(np.random.default_rng((seed, number)).integers(2**31))
        if resume and kept and kept.is_file():
            pairs = load_probes(kept, types, format=probes.format)
        else:
            pairs = sample_rejected(model, tokenizer, probes, seed=draw, **sampling)
            if kept and not (folder / "settings.json").is_file():  # a run: finetune refuses it
                write_jsonl(kept, pairs)
        options = {"epochs": epochs, "seed": draw, "out": folder, "resume": resume} | settings
        parts.append(finetune(model, tokenizer, pairs, loss, **options))
    whole = Trajectory.join(parts)
    if out is not None:
        whole.save(Path(out) / "trajectory")
    return whole
