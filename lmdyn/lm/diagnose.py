"""Which pairs would squeeze: what one step on each does, before any training."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from lmdyn import losses
from lmdyn.checks import check_different, check_same_vocabulary
from lmdyn.lm.data import ProbeSet, as_probes, with_all
from lmdyn.lm.files import replacing
from lmdyn.lm.forward import evaluating
from lmdyn.lm.log_probs import LogProbs
from lmdyn.lm.mass import token_mass
from lmdyn.lm.tokens import encode

HELD_OUT = 16  # rows that stand for held-out ones where none are given
FLAGS = {
    "own": "a step on this pair lowers its own chosen response",
    "held_out": "a step on this pair lowers the chosen responses to other prompts",
    "valley": "most tokens of its rejected response lie in a valley",
}


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What one SGD step on each of N pairs alone would do, to first order.

    The pull is the share of the step that raises y+, the push the one that lowers y−; their sum is
    what the pair does. All are in nats per unit learning rate.

    Attributes:
        squeeze: (N,) mean ‖π‖² − π_y over the tokens of ``rejected``; positive in a valley.
        valley: (N,) the share of those tokens that lie in a valley.
        own_pull: (N,) what the pull does to log π of the pair's own ``chosen``.
        own_push: (N,) what the push does to it.
        held_out_pull: (N,) what the pull does to log π of ``chosen`` of the held-out rows, mean.
        held_out_push: (N,) what the push does to them.
        prompts: the N prompts.
    """

    squeeze: np.ndarray
    valley: np.ndarray
    own_pull: np.ndarray
    own_push: np.ndarray
    held_out_pull: np.ndarray
    held_out_push: np.ndarray
    prompts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.prompts)

    def __repr__(self) -> str:
        return f"Diagnosis({len(self)} pairs, {sum(map(bool, self.flags))} of them flagged)"

    @property
    def own(self) -> np.ndarray:
        """(N,) what a step on the pair does to its own ``chosen``."""
        return self.own_pull + self.own_push

    @property
    def held_out(self) -> np.ndarray:
        """(N,) what it does to ``chosen`` of the held-out rows, mean."""
        return self.held_out_pull + self.held_out_push

    @property
    def flags(self) -> list[tuple[str, ...]]:
        """For each pair, which of `FLAGS` hold."""
        holds = {"own": self.own < 0, "held_out": self.held_out < 0, "valley": self.valley > 0.5}
        return [tuple(name for name in FLAGS if holds[name][i]) for i in range(len(self))]

    @property
    def order(self) -> np.ndarray:
        """(N,) the pairs, from the one that lowers held-out answers most to the one that helps."""
        return np.argsort(self.held_out, kind="stable")

    def rows(self) -> list[dict]:
        """One dict a pair, in `order`: ``row`` is its number among those that were given."""
        numbers = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "prompts"}
        flags = self.flags
        return [
            {"row": int(i), "prompt": self.prompts[i]}
            | {name: float(values[i]) for name, values in numbers.items()}
            | {"flags": list(flags[i])}
            for i in self.order
        ]

    def table(self, limit: int = 10) -> str:
        """The first pairs of `order`, for a terminal."""
        lines = [f"{'row':>5}{'own y+':>10}{'held-out':>10}{'valley':>8}  flags · prompt"]
        flags = self.flags
        for i in self.order[:limit]:
            numbers = f"{self.own[i]:>+10.3g}{self.held_out[i]:>+10.3g}{self.valley[i]:>8.0%}"
            prompt = " ".join(self.prompts[i].split())[-40:]
            lines.append(f"{i:>5}{numbers}  {', '.join(flags[i]) or '-'} · {prompt}")
        return "\n".join(lines)

    def save(self, path: str | Path) -> None:
        """Write `rows` as JSONL, whole or not at all."""
        with replacing(Path(path)) as temporary:
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows())
            temporary.write_text(text, encoding="utf-8")


def diagnose(
    model,
    tokenizer,
    rows: ProbeSet | Iterable[Mapping[str, str]],
    loss: str | losses.Loss = "dpo",
    *,
    held_out: ProbeSet | Iterable[Mapping[str, str]] | None = None,
    ref: nn.Module | None = None,
    progress: bool | None = None,
) -> Diagnosis:
    """Tell, before training, which pairs push good answers down.

    Inner products of the gradients of log π(y+) and log π(y−) with each other and with that of the
    mean log π(y+) of held-out rows: equation 5, summed over tokens, for an SGD step on the pair
    alone. An adaptive optimizer rescales the step, so the ranking is a guide there. It costs one
    forward and two backward passes a pair, and memory for three gradients.

    Args:
        model: a Hugging Face causal language model; it stays as it is. Dropout is off.
        tokenizer: its tokenizer.
        rows: N pairs with ``prompt``, ``chosen``, ``rejected``.
        loss: a loss that reads both, by name or as a `lmdyn.losses.Loss`.
        held_out: rows whose ``chosen`` should not fall; if not given, 16 of ``rows``.
        ref: the reference model of the loss; the model itself if not given, as at the start.
        progress: whether to show a bar; None shows it for work of more than ten seconds.

    Raises:
        ValueError: rows that cannot be read, a pair of equal responses, a loss that lacks one.
    """
    loss = losses.get(loss) if isinstance(loss, str) else loss
    if not {"chosen", "rejected"} <= set(loss.responses):
        raise ValueError(f"{loss} does not read both chosen and rejected: diagnose a loss of pairs")
    if ref is not None:
        check_same_vocabulary(model, ref)
    weights = [p for p in model.parameters() if p.requires_grad]
    if not weights:
        raise ValueError("no weight of the model requires a gradient: there is nothing to learn")
    pairs = with_all(as_probes(rows), loss.responses, str(loss))
    keys = {name: name for name in loss.responses}
    encoded = encode(tokenizer, pairs)
    check_different(encoded, keys, loss)
    n = len(pairs)
    if held_out is None:
        held_out = pairs[np.linspace(0, n - 1, min(HELD_OUT, n)).astype(int).tolist()]
    others = encode(tokenizer, with_all(as_probes(held_out), ["chosen"], "diagnose", "held_out"))

    effects = np.empty((n, 4))
    bar = {"desc": "diagnose", "unit": "pair", "delay": 0 if progress else 10}
    with evaluating(model), tqdm(range(n), disable=progress is False, **bar) as numbers:
        goal = _mean_gradient(LogProbs(model, others, {"chosen": "chosen"}), weights)
        reader, fixed = LogProbs(model, encoded, keys), None
        if ref is not None and loss.needs_ref:
            with evaluating(ref):
                fixed = LogProbs(ref, encoded, keys).all(8)
        for i in numbers:
            logps, gradients = _gradients(reader, i, weights)
            against = logps if fixed is None else {k: x[[i]] for k, x in fixed.items()}
            c = loss.coefficients(logps, against, {k: x[[i]] for k, x in reader.lengths.items()})
            effects[i] = [
                -float(c[name]) * _dot(gradients[name], other)
                for other in (gradients["chosen"], goal)
                for name in ("chosen", "rejected")
            ]
    mass = token_mass(model, tokenizer, pairs, ["rejected"])
    tokens = np.bincount(mass.row)
    squeeze, valley = (np.bincount(mass.row, x) / tokens for x in (mass.squeeze, mass.squeeze > 0))
    return Diagnosis(squeeze, valley, *effects.T, tuple(row["prompt"] for row in pairs))


def _gradients(log_probs: LogProbs, row: int, weights: Sequence[Tensor]) -> tuple[dict, dict]:
    """Response name → (1,), log π(y) of a row; response name → its gradient, weight by weight."""
    with torch.enable_grad():
        logps = log_probs([row])
    *_, last = logps
    gradients = {
        name: torch.autograd.grad(logp, weights, retain_graph=name != last)
        for name, logp in logps.items()
    }
    return {name: logp.detach() for name, logp in logps.items()}, gradients


def _mean_gradient(log_probs: LogProbs, weights: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of the mean log π(y+) over all rows."""
    total, n = [torch.zeros_like(p) for p in weights], len(log_probs.encoded)
    for i in range(n):
        gradient = _gradients(log_probs, i, weights)[1]["chosen"]
        for t, part in zip(total, gradient, strict=True):
            t += part / n
    return total


def _dot(a: Iterable[Tensor], b: Iterable[Tensor]) -> float:
    return sum(float((x.double() * y.double()).sum()) for x, y in zip(a, b, strict=True))
