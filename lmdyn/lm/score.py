"""How likely the model finds each response, and how it spreads the rest of its probability."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from lmdyn.checks import check_known
from lmdyn.lm.data import ProbeSet, as_probes
from lmdyn.lm.forward import TOKENS, Batch, bar, evaluating, token_values
from lmdyn.lm.tokens import encode


@dataclass(frozen=True, eq=False, kw_only=True)
class _Statistics:
    logp: np.ndarray
    argmax_logp: np.ndarray
    prob_sq: np.ndarray | None = None
    label_prob: np.ndarray | None = None
    entropy: np.ndarray | None = None
    squeeze: np.ndarray | None = None
    prob_norm: np.ndarray | None = None
    residual_norm: np.ndarray | None = None


STATS = tuple(field.name for field in fields(_Statistics))  # two sums over tokens, then means


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenScores(_Statistics):
    """The statistics of `Scores` at each token of one response, (T,) each; ``ids``, its tokens."""

    ids: np.ndarray


@dataclass(frozen=True, eq=False, kw_only=True)
class Scores(_Statistics):
    """The scores of N prompts with R response types: float64 arrays, NaN where a type is missing.

    Each is (N, R). All from `prob_sq` on are means over the response's tokens, and None without
    ``stats``.

    Attributes:
        types: the R response types.
        vocab_size: V, the entries of π.
        logp: log π(y|x) = Σ_l log π(y_l | x, y_<l), EOS included, nats.
        argmax_logp: Σ_l max_v log π(v | x, y_<l), nats. Along ``chosen`` it is the paper's y*.
        n_tokens: tokens of the response, EOS included.
        prob_sq: ‖π‖², the collision probability: 1/V (uniform) to 1 (one-hot).
        label_prob: π_y.
        entropy: −Σ_v π_v log π_v, nats.
        squeeze: ‖π‖² − π_y: positive in a valley, where a negative gradient lowers every label
            but the likeliest ones (see `lmdyn.squeeze_line`).
        prob_norm: ‖π‖, a mean of norms, which the reference's ‖A‖ is made of.
        residual_norm: ‖π − e_y‖, a mean of norms, the reference's ‖G‖.
        tokens: with ``per_token``, one dict for each row: type → `TokenScores`.
    """

    types: tuple[str, ...]
    vocab_size: int
    n_tokens: np.ndarray
    tokens: tuple[dict[str, TokenScores], ...] | None = None

    def __repr__(self) -> str:
        n, r = self.logp.shape
        return f"Scores({n} prompts × {r} types, {int(np.nansum(self.n_tokens))} tokens)"

    @property
    def jacobian_norm_sq(self) -> np.ndarray:
        """(N, R) mean over the tokens of ‖A‖²_F = V‖π‖² + V − 2."""
        return self.vocab_size * (self._of("prob_sq") + 1) - 2

    @property
    def residual_norm_sq(self) -> np.ndarray:
        """(N, R) mean over the tokens of ‖π − e_y‖² = ‖π‖² − 2π_y + 1: ‖G‖² of SFT."""
        return self._of("prob_sq") - 2 * self._of("label_prob") + 1

    def mean(self, name: str, stat: str = "logp") -> float:
        """The mean of a statistic over the rows that have the type; NaN if none has it.

        ``name`` may be "argmax", the paper's y*: ``argmax_logp`` along ``chosen``. ValueError for
        an unknown type or statistic, with the nearest name.
        """
        if name == "argmax" and stat == "logp" and "chosen" in self.types:
            name, stat = "chosen", "argmax_logp"
        check_known("response type", name, self.types)
        values = self._of(stat)[:, self.types.index(name)]
        return float(values[~np.isnan(values)].mean()) if not np.isnan(values).all() else np.nan

    def _of(self, stat: str) -> np.ndarray:
        known = (*STATS, "n_tokens", "jacobian_norm_sq", "residual_norm_sq")
        check_known("statistic", stat, known)
        if (values := getattr(self, stat)) is None:
            raise ValueError(f"{stat} was not computed: score with stats=True")
        return values


def score(
    model,
    tokenizer,
    probes: ProbeSet | Sequence[Mapping[str, str]],
    stats: bool = True,
    *,
    tokens: int = TOKENS,
    per_token: bool = False,
    progress: bool | None = None,
) -> Scores:
    """Score every response of every prompt under the model: the paper's probing.

    A prompt is computed once for all its responses where the architecture allows it, and logits
    only where they predict a response token: up to rounding, as each sequence alone. Half precision
    is kept, but the statistics of its logits are taken in float32. The model stays as it is.

    Args:
        model: a Hugging Face causal language model.
        tokenizer: its tokenizer, with an EOS token.
        probes: a `ProbeSet`, or rows such as ``{"prompt": …, "chosen": …}``.
        stats: more than the log-probs: ‖π‖², π_y and so on.
        tokens: in a batch, padding included. It bounds memory and does not change the result.
        per_token: keep the scores of each token in `Scores.tokens`.
        progress: whether to show a bar; None shows it for work of more than ten seconds.

    Raises:
        ValueError: rows that cannot be read (see `load_probes`), a response beyond the model's
            context, a tokenizer of another model, predictions that are not finite.
    """
    probes = as_probes(probes)
    encoded = encode(tokenizer, probes)
    known = STATS if stats else STATS[:2]
    arrays = np.full((1 + len(known), len(probes), len(probes.types)), np.nan)
    found = [dict.fromkeys(row.responses) for row in encoded]
    shown = bar("score", "response", progress, sum(map(len, found)))
    vocab_size = 0

    def read(logits: Tensor, batch: Batch, part: slice) -> Tensor:
        nonlocal vocab_size
        vocab_size = logits.shape[-1]  # the configuration's may be another
        return _statistics(logits, batch, part, stats)

    with evaluating(model), shown:
        for (i, name), values in token_values(model, encoded, read, tokens):
            ids, columns = np.array(encoded[i].responses[name]), list(values.T)
            if stats:
                _, _, prob_sq, label_prob, _ = columns
                residual_sq = (prob_sq - 2 * label_prob + 1).clip(0)  # rounding may go below
                columns += prob_sq - label_prob, np.sqrt(prob_sq), np.sqrt(residual_sq)
            columns = np.stack(columns)
            found[i][name] = TokenScores(ids=ids, **dict(zip(known, columns, strict=True)))
            of_response = len(ids), *columns[:2].sum(1), *columns[2:].mean(1)
            arrays[:, i, probes.types.index(name)] = of_response
            shown.update()
    return Scores(
        types=probes.types,
        vocab_size=vocab_size,
        tokens=tuple(found) if per_token else None,
        **dict(zip(("n_tokens", *known), arrays, strict=True)),
    )


def _statistics(logits: Tensor, batch: Batch, part: slice, stats: bool) -> Tensor:
    """(m, 5), the first `STATS` at each token, or (m, 2), from one exponential of the logits.

    Works in place, as memory is what limits it: float logits are overwritten.
    """
    z = logits if logits.dtype == torch.float64 else logits.float()
    z -= z.amax(-1, keepdim=True)  # so that nothing overflows
    e, target = z.exp(), batch.target[part].to(z.device).unsqueeze(-1)
    total = e.sum(-1)
    log_total = total.log()
    logp = z.gather(-1, target).squeeze(-1) - log_total
    if not stats:
        return torch.stack([logp, -log_total], -1)
    # Sums add up pairwise; a matrix product would lose digits over a large vocabulary.
    entropy = log_total - z.mul_(e).sum(-1) / total
    prob_sq = e.square_().sum(-1) / total.square()
    return torch.stack([logp, -log_total, prob_sq, logp.exp(), entropy], -1)
