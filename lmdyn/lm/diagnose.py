"""Which pairs would squeeze: what one step on each does, before any training."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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
        flagged = sum(bool(flags) for flags in self.flags)
        return f"Diagnosis({len(self)} pairs, {flagged} of them flagged)"

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
        flags = self.flags
        names = ("squeeze", "valley", "own_pull", "own_push", "held_out_pull", "held_out_push")
        return [
            {
                "row": int(i),
                "prompt": self.prompts[i],
                **{name: float(getattr(self, name)[i]) for name in names},
                "flags": list(flags[i]),
            }
            for i in self.order
        ]

    def table(self, limit: int = 10) -> str:
        """The first pairs of `order`, for a terminal."""
        lines = [f"{'row':>5}{'own y+':>10}{'held-out':>10}{'valley':>8}  flags · prompt"]
        for row in self.rows()[:limit]:
            own = row["own_pull"] + row["own_push"]
            others = row["held_out_pull"] + row["held_out_push"]
            told = f"{', '.join(row['flags']) or '-'} · {' '.join(row['prompt'].split())[-40:]}"
            lines.append(
                f"{row['row']:>5}{own:>+10.3g}{others:>+10.3g}{row['valley']:>8.0%}  {told}"
            )
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

    For each pair the gradients of log π(y+) and log π(y−) are taken, and their inner products with
    each other and with the gradient of the mean log π(y+) of held-out rows: equation 5, summed over
    tokens, for an SGD step on the pair alone. An adaptive optimizer rescales the step, so the
    ranking is a guide there. It costs one forward and two backward passes a pair, and memory for
    three gradients.

    Args:
        model: a Hugging Face causal language model; it stays as it is. Dropout is off.
        tokenizer: its tokenizer.
        rows: N pairs with ``prompt``, ``chosen``, ``rejected``.
        loss: a loss that reads both, by name or as a `lmdyn.losses.Loss`.
        held_out: rows whose ``chosen`` should not fall; if not given, 16 of ``rows``, evenly
            spread.
        ref: the reference model of the loss; the model itself if not given, as at the start.
        progress: True and False show and hide the progress bar; None shows it for work of more
            than ten seconds.

    Returns:
        A `Diagnosis`.

    Raises:
        ValueError: rows that cannot be read, a pair of equal responses, a loss that does not read
            both responses.

    Example:
        >>> from lmdyn.lm import load, load_probes
        >>> model, tokenizer = load("tiny")
        >>> diagnose(model, tokenizer, load_probes("world", limit=4)).own.shape
        (4,)
    """
    loss = losses.get(loss) if isinstance(loss, str) else loss
    if not {"chosen", "rejected"} <= set(loss.responses):
        raise ValueError(f"{loss} does not read both chosen and rejected: diagnose a loss of pairs")
    if ref is not None:
        check_same_vocabulary(model, ref)
    probes = as_probes(rows)
    keys = {name: name for name in loss.responses}
    pairs = with_all(probes, loss.responses, str(loss))
    encoded = encode(tokenizer, pairs)
    check_different(encoded, keys, loss)
    spread = np.unique(np.linspace(0, len(pairs) - 1, min(HELD_OUT, len(pairs))).astype(int))
    others = pairs[spread.tolist()] if held_out is None else as_probes(held_out)
    others = encode(tokenizer, with_all(others, ["chosen"], "diagnose", "held_out"))
    weights = [p for p in model.parameters() if p.requires_grad]
    if not weights:
        raise ValueError("no weight of the model requires a gradient: there is nothing to learn")

    found = np.empty((len(pairs), 4))
    with evaluating(model):
        goal = _mean_gradient(LogProbs(model, others, {"chosen": "chosen"}), weights, len(others))
        log_probs = LogProbs(model, encoded, keys)
        reference = None
        if loss.needs_ref and ref is not None:
            with evaluating(ref):
                reference = LogProbs(ref, encoded, keys).all(8)
        bar = tqdm(
            range(len(pairs)),
            desc="diagnose",
            unit="pair",
            delay=0 if progress else 10,
            disable=progress is False,
        )
        for i in bar:
            with torch.enable_grad():
                logps = log_probs([i])
                own = {name: value.detach() for name, value in logps.items()}
                fixed = own if reference is None else {k: v[[i]] for k, v in reference.items()}
                lengths = {name: n[[i]] for name, n in log_probs.lengths.items()}
                c = loss.coefficients(own, fixed, lengths)
                up, down = (
                    torch.autograd.grad(logps[name].sum(), weights, retain_graph=name == "chosen")
                    for name in ("chosen", "rejected")
                )
            pull, push = -float(c["chosen"]), -float(c["rejected"])
            found[i] = (
                pull * _dot(up, up),
                push * _dot(down, up),
                pull * _dot(up, goal),
                push * _dot(down, goal),
            )
    mass = token_mass(model, tokenizer, pairs, ["rejected"])
    tokens = np.bincount(mass.row, minlength=len(pairs))
    return Diagnosis(
        np.bincount(mass.row, mass.squeeze, len(pairs)) / tokens,
        np.bincount(mass.row, mass.squeeze > 0, len(pairs)) / tokens,
        *found.T,
        tuple(row["prompt"] for row in pairs),
    )


def _mean_gradient(log_probs: LogProbs, weights: list[Tensor], n: int) -> list[Tensor]:
    """The gradient of the mean log π(y+) over rows, one row at a time."""
    total = [torch.zeros_like(p) for p in weights]
    for i in range(n):
        with torch.enable_grad():
            grads = torch.autograd.grad(log_probs([i])["chosen"].sum(), weights)
        for t, grad in zip(total, grads, strict=True):
            t += grad / n
    return total


def _dot(a: Iterable[Tensor], b: Iterable[Tensor]) -> float:
    return sum(float((x.double() * y.double()).sum()) for x, y in zip(a, b, strict=True))
