"""Which pairs would squeeze: what one step on each does, before any training."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import compress, product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lmdyn import losses
from lmdyn.checks import check_different, check_same_vocabulary, trainable
from lmdyn.lm.data import ProbeSet, as_probes, with_all
from lmdyn.lm.forward import bar, evaluating
from lmdyn.lm.mass import token_mass
from lmdyn.lm.records import write_jsonl
from lmdyn.lm.rows import text_of
from lmdyn.lm.tokens import encode
from lmdyn.lm.ways import LogProbs, check_kind

HELD_OUT = 16  # rows that stand for held-out ones where none are given
FLAGS = {
    "own": "a step on this pair lowers its own chosen response",
    "held_out": "a step on this pair lowers the chosen responses to other prompts",
    "valley": "most tokens of its rejected response lie in a valley",
}


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What one SGD step on each of N pairs alone would do, to first order.

    The pull is the share of the step that raises y+, the push the one that lowers y−. All changes
    are of log π, in nats per unit learning rate.
    """

    #: (N,) mean ‖π‖² − π_y over the tokens of ``rejected``; above 0 in a valley
    squeeze: np.ndarray
    valley: np.ndarray  #: (N,) the share of those tokens that lie in a valley
    own_pull: np.ndarray  #: (N,) what the pull does to the pair's own ``chosen``
    own_push: np.ndarray  #: (N,) and the push
    held_out_pull: np.ndarray  #: (N,) what the pull does to ``chosen`` of the held-out rows, mean
    held_out_push: np.ndarray  #: (N,) and the push
    prompts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.prompts)

    def __repr__(self) -> str:
        return f"Diagnosis({len(self)} pairs, {sum(map(bool, self.flags))} of them flagged)"

    @property
    def own(self) -> np.ndarray:
        """(N,) pull and push together."""
        return self.own_pull + self.own_push

    @property
    def held_out(self) -> np.ndarray:
        """(N,) pull and push together."""
        return self.held_out_pull + self.held_out_push

    @property
    def flags(self) -> list[tuple[str, ...]]:
        """Of each pair, which of `FLAGS` hold."""
        holds = np.stack([self.own < 0, self.held_out < 0, self.valley > 0.5], 1)
        return [tuple(compress(FLAGS, of_pair)) for of_pair in holds]

    @property
    def order(self) -> np.ndarray:
        """(N,) the pairs, from the one that lowers held-out answers most to the one that helps."""
        return np.argsort(self.held_out, kind="stable")

    def rows(self) -> list[dict]:
        """One dict a pair, in `order`; ``row`` is its number in those that were given."""
        *names, _ = (f.name for f in fields(self))
        flags, found = self.flags, []
        for i in self.order:
            numbers = {name: float(getattr(self, name)[i]) for name in names}
            row = {"row": int(i), "prompt": self.prompts[i], **numbers, "flags": list(flags[i])}
            found.append(row)
        return found

    def table(self, limit: int = 10) -> str:
        """The first pairs of `order`, for a terminal."""
        lines = [f"{'row':>5}{'own y+':>10}{'held-out':>10}{'valley':>8}  flags · prompt"]
        for row in self.rows()[:limit]:
            i, prompt = row["row"], " ".join(row["prompt"].split())[-40:]
            numbers = f"{self.own[i]:>+10.3g}{self.held_out[i]:>+10.3g}{self.valley[i]:>8.0%}"
            lines.append(f"{i:>5}{numbers}  {', '.join(row['flags']) or '-'} · {prompt}")
        return "\n".join(lines)

    def save(self, path: str | Path) -> None:
        """Write `rows` as JSONL, whole or not at all."""
        write_jsonl(Path(path), self.rows())


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
    alone. For an adaptive optimizer, which rescales the step, the ranking is a guide. It costs one
    forward and two backward passes a pair, and memory for three gradients.

    Args:
        model, tokenizer, progress: as in `score`. Dropout is off.
        rows: N pairs with ``prompt``, ``chosen``, ``rejected``.
        loss: a loss that reads both, by name or as a `lmdyn.losses.Loss`.
        held_out: rows whose ``chosen`` should not fall; if not given, 16 of ``rows``.
        ref: the reference model of the loss; the model itself if not given, as at the start.
    """
    loss = losses.get(loss)
    if not {"chosen", "rejected"} <= set(loss.responses):
        raise ValueError(f"{loss} does not read both chosen and rejected: diagnose a loss of pairs")
    check_kind(model)
    weights, ref = [*trainable(model).values()], model if ref is None else ref
    check_same_vocabulary(model, ref)
    pairs = with_all(as_probes(rows), loss.responses, str(loss))
    keys, n = {name: name for name in loss.responses}, len(pairs)
    encoded = encode(tokenizer, pairs)
    check_different(encoded, keys, loss)
    if held_out is None:
        held_out = pairs[np.linspace(0, n - 1, min(HELD_OUT, n)).astype(int).tolist()]
    others = encode(tokenizer, with_all(as_probes(held_out), ["chosen"], "diagnose", "held_out"))

    effects, goal = np.empty((n, 4)), [torch.zeros_like(p) for p in weights]
    shown = bar("diagnose", "pair", progress, n)
    with evaluating(model), evaluating(ref), torch.enable_grad(), shown:
        reader = LogProbs(model, others, {"chosen": "chosen"})
        for i in range(len(others)):
            for total, part in zip(goal, _gradients(reader([i]), weights)["chosen"], strict=True):
                total += part / len(others)
        reader, reference = LogProbs(model, encoded, keys), LogProbs(ref, encoded, keys)
        for i in range(n):
            logps = reader([i])
            gradients = _gradients(logps, weights)
            with torch.no_grad():
                known = logps if ref is model else reference([i])
            c = loss.coefficients(logps, known, {k: x[[i]] for k, x in reader.lengths.items()})
            targets = product((gradients["chosen"], goal), ("chosen", "rejected"))
            effects[i] = [-float(c[k]) * _dot(gradients[k], other) for other, k in targets]
            shown.update()
    mass = token_mass(model, tokenizer, pairs, ["rejected"])
    tokens = np.bincount(mass.row)
    valley = [np.bincount(mass.row, x) / tokens for x in (mass.squeeze, mass.squeeze > 0)]
    return Diagnosis(*valley, *effects.T, tuple(text_of(row["prompt"], tokenizer) for row in pairs))


def _gradients(logps: Mapping[str, Tensor], weights: Sequence[Tensor]) -> dict[str, Sequence]:
    """Response name → the gradient of its log-prob, weight by weight; a text may miss some."""
    given = {"materialize_grads": True, "retain_graph": True}
    return {name: torch.autograd.grad(logp, weights, **given) for name, logp in logps.items()}


def _dot(a: Iterable[Tensor], b: Iterable[Tensor]) -> float:
    return sum(float((x.double() * y.double()).sum()) for x, y in zip(a, b, strict=True))
