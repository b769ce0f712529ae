"""How likely the model finds each response, and how it spreads the rest of its probability."""

from collections import namedtuple
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lmdyn.checks import check_known
from lmdyn.lm.batches import TOKENS, Batch
from lmdyn.lm.data import Rows, as_probes
from lmdyn.lm.forward import bar, evaluating
from lmdyn.lm.tokens import encode
from lmdyn.lm.ways import check_kind, token_values


@dataclass(frozen=True, eq=False, kw_only=True)
class Statistics:
    """What `Scores` and `Trajectory` share: arrays (…, N, R) of N prompts and R types."""

    types: tuple[str, ...]  #: the R response types
    vocab_size: int  #: V, the entries of π
    n_tokens: np.ndarray  #: tokens of the response, EOS included
    logp: np.ndarray  #: log π(y|x) = Σ_l log π(y_l | x, y_<l), EOS included, nats
    argmax_logp: np.ndarray  #: Σ_l max_v log π(v | x, y_<l), nats; along ``chosen``, the paper's y*
    prob_sq: np.ndarray | None = None  #: ‖π‖², the collision probability, 1/V (uniform) to 1
    label_prob: np.ndarray | None = None  #: π_y
    entropy: np.ndarray | None = None  #: −Σ_v π_v log π_v, nats
    squeeze: np.ndarray | None = None  #: ‖π‖² − π_y, above 0 in a valley (`lmdyn.squeeze_line`)
    prob_norm: np.ndarray | None = None  #: ‖π‖, which the reference's ‖A‖ is made of
    residual_norm: np.ndarray | None = None  #: ‖π − e_y‖, the reference's ‖G‖

    @property
    def jacobian_norm_sq(self) -> np.ndarray:
        """(…, N, R) float64, the mean of ‖A‖²_F = V‖π‖² + V − 2."""
        return self.vocab_size * (np.float64(self._known("prob_sq")) + 1) - 2

    @property
    def residual_norm_sq(self) -> np.ndarray:
        """(…, N, R) float64, the mean of ‖π − e_y‖² = ‖π‖² − 2π_y + 1, which is ‖G‖² of SFT."""
        return np.float64(self._known("prob_sq")) - 2 * self._known("label_prob") + 1

    def column(self, name: str, stat: str) -> np.ndarray:
        """(…, N), a statistic of one type, or of "argmax"."""
        check_known("statistic", stat, (*STATS, "n_tokens", "jacobian_norm_sq", "residual_norm_sq"))
        if name == "argmax" and stat == "logp" and "chosen" in self.types:
            name, stat = "chosen", "argmax_logp"
        check_known("response type", name, self.types)
        return self._known(stat)[..., self.types.index(name)]

    def _known(self, stat: str) -> np.ndarray:
        if (values := getattr(self, stat)) is None:
            raise ValueError(f"{stat} was not computed: score with stats=True")
        return values


STATS = tuple(field.name for field in fields(Statistics))[3:]  # two sums over tokens, then means
# Those at each of T tokens, ``ids``, of one response.
TokenScores = namedtuple("TokenScores", ("ids", *STATS), defaults=(None,) * 6)


def known_mean(values: np.ndarray) -> np.ndarray:
    """The mean over the last axis of what is not NaN, in float64."""
    with np.errstate(invalid="ignore"):
        return np.nansum(values, -1, dtype=np.float64) / (~np.isnan(values)).sum(-1)


@dataclass(frozen=True, eq=False, kw_only=True)
class Scores(Statistics):
    """The scores of N prompts with R response types: (N, R) float64, NaN where a type is missing.

    All from `prob_sq` on are means over the response's tokens, and None without ``stats``.
    """

    tokens: tuple[dict[str, TokenScores], ...] | None = None  #: of each row, with ``per_token``

    def __repr__(self) -> str:
        n, r = self.logp.shape
        return f"Scores({n} prompts × {r} types, {int(np.nansum(self.n_tokens))} tokens)"

    def mean(self, name: str, stat: str = "logp") -> float:
        """The mean of a statistic of a type, or of "argmax", over the rows that have it."""
        return float(known_mean(self.column(name, stat)))


def score(
    model,
    tokenizer,
    probes: Rows,
    stats: bool = True,
    *,
    tokens: int = TOKENS,
    per_token: bool = False,
    progress: bool | None = None,
) -> Scores:
    """Score every response of every prompt under the model: the paper's probing.

    A prompt is computed once for all its responses where the architecture allows it: up to
    rounding, as each sequence alone. Statistics of half-precision logits are taken in float32.

    Args:
        model: a Hugging Face causal language model with its ``tokenizer``, which has an EOS token.
        probes: a `ProbeSet`, or rows such as ``{"prompt": …, "chosen": …}``.
        stats: more than the log-probs: ‖π‖², π_y and so on.
        tokens: in a batch, padding included: it bounds memory.
        per_token: keep the scores of each token too.
        progress: whether to show a bar; None shows it for work of more than ten seconds.

    Raises:
        ValueError: rows that cannot be read (see `load_probes`), a response beyond the model's
            context, a tokenizer of another model, predictions that are not finite.
    """
    check_kind(model)
    probes = as_probes(probes)
    encoded = encode(tokenizer, probes)
    known, vocab_size = STATS if stats else STATS[:2], 0
    arrays = np.full((1 + len(known), len(probes), len(probes.types)), np.nan)
    found = [dict.fromkeys(row.responses) for row in encoded]
    shown = bar("score", "response", progress, sum(map(len, found)))

    def read(logits: Tensor, batch: Batch, part: slice) -> Tensor:
        nonlocal vocab_size
        vocab_size = logits.shape[-1]  # the configuration's may be another
        return statistics(logits, batch, part, stats)

    with evaluating(model), shown:
        for (i, name), values in token_values(model, encoded, read, tokens):
            ids, of = np.array(encoded[i].responses[name]), values.T.copy()
            found[i][name] = TokenScores(ids, *of)
            arrays[:, i, probes.types.index(name)] = len(ids), *of[:2].sum(1), *of[2:].mean(1)
            shown.update()
    kept = tuple(found) if per_token else None
    named = dict(zip(("n_tokens", *known), arrays, strict=True))
    return Scores(types=probes.types, vocab_size=vocab_size, tokens=kept, **named)


def token_coefficients(model, encoded, keys, loss, *given, what: str = "rows") -> dict:
    """(row, type) → (T,), `coefficients` at each token of what a loss reads (`read_by`), padded."""
    with evaluating(model):
        values = token_values(model, encoded, partial(statistics, stats=False))
        found = {at: torch.from_numpy(x[:, 0]) for at, x in values}
    check_logps({at: float(x.sum()) for at, x in found.items()}, what)
    parts = {r: [found[i, key] for i in range(len(encoded))] for r, key in keys.items()}
    logps = {r: pad_sequence(part, batch_first=True) for r, part in parts.items()}
    c = coefficients(encoded, keys, loss, logps, *given)
    return {(i, keys[r]): row for r, rows in c.items() for i, row in enumerate(rows)}


def check_logps(logps: Mapping[tuple[int, str], float], what: str = "rows") -> None:
    """Refuse log π of a response, (row, type), that is not finite: it has no gradient."""
    for (row, name), logp in logps.items():
        if not np.isfinite(logp):
            why = "the model's weights or its precision cannot be used"
            why = "the model rules it out, so it has no gradient" if logp == -np.inf else why
            raise ValueError(f"{what}[{row}]: log π of {name!r} is {logp}: {why}")


@torch.inference_mode(False)  # its tensors take part in derivatives
def coefficients(encoded, keys, loss, logps, advantage=None, ref=None, old=None) -> dict:
    """`Loss.coefficients`; for ``ref`` and ``old`` that are None, of the model's own ``logps``."""
    as_given = partial(torch.as_tensor, dtype=torch.float64)
    lengths = {r: torch.tensor([len(e.responses[k]) for e in encoded]) for r, k in keys.items()}
    ref, old = ({r: as_given(x) for r, x in (side or logps).items()} for side in (ref, old))
    more = {"advantage": as_given(advantage)} if advantage else {}
    return loss.coefficients(logps, ref, lengths, old=old, **more)


def statistics(logits: Tensor, batch: Batch, part: slice | Tensor, stats: bool) -> Tensor:
    """(m, 8), the `STATS` at each token, or the first two; float logits are overwritten."""
    z = logits if logits.dtype == torch.float64 else logits.float()
    z -= z.amax(-1, keepdim=True)  # so that nothing overflows
    e, target = z.exp(), batch.target[part].to(z.device).unsqueeze(-1)
    total = e.sum(-1)
    log_total = total.log()
    logp = z.gather(-1, target).squeeze(-1) - log_total
    if not stats:
        return torch.stack([logp, -log_total], -1)
    # Sums add up pairwise; a matrix product would lose digits over a large vocabulary.
    entropy = log_total - z.mul_(e).nansum(-1) / total  # −∞ · 0 is 0
    prob_sq = e.square_().sum(-1) / total.square()
    found = torch.stack([logp, -log_total, prob_sq, logp.exp(), entropy]).double()
    prob_sq, label_prob = found[2:4]
    residual_sq = (prob_sq - 2 * label_prob + 1).clamp(0)  # rounding may go below
    return torch.stack([*found, prob_sq - label_prob, prob_sq.sqrt(), residual_sq.sqrt()], -1)
