"""What a small change of the weights does to every response: predicted, and measured beside it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.autograd.forward_ad as fwd
from torch import Tensor

from lmdyn.checks import check_known
from lmdyn.lm.data import ProbeSet, as_probes
from lmdyn.lm.forward import TOKENS, Batch, Reweighted, bar, batches, head, hidden, undisturbed
from lmdyn.lm.predict._direction import sgd_direction, update_direction, weights_and_moves
from lmdyn.lm.predict._dual import DualAttention
from lmdyn.lm.tokens import Encoded, encode
from lmdyn.softmax import log_softmax_jvp

__all__ = ["Change", "measure_change", "predict_change", "sgd_direction", "update_direction"]

CHUNK = 64  # positions whose logits are there at a time
VOCAB_GIB = 4.0  # the most that ``vocab=True`` may return


@dataclass(frozen=True, eq=False)
class Change:
    """How the log-probs of N prompts' responses, of R types, change. In nats.

    Attributes:
        types: the R response types.
        logp: (N, R) float64, Δ log π(y|x) = Σ_l Δ log π(y_l | x, y_<l); NaN where a row lacks the
            type.
        tokens: one dict for each row: type → (T,) float64, the T terms of that sum, the last of
            them EOS's.
        vocab: with ``vocab``, one dict for each row: type → (T, V), Δ log π(· | x, y_<l) of every
            label, on the CPU. Else None.
    """

    types: tuple[str, ...]
    logp: np.ndarray
    tokens: tuple[dict[str, np.ndarray], ...] = field(repr=False)
    vocab: tuple[dict[str, Tensor], ...] | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        n, r = self.logp.shape
        return f"Change({n} prompts × {r} types{', whole vocabulary' * (self.vocab is not None)})"

    def mean(self, name: str) -> float:
        """The mean of Δ log π over the rows that have the type; NaN if none has.

        ValueError for an unknown type, with the nearest name.
        """
        check_known("response type", name, self.types)
        values = self.logp[:, self.types.index(name)]
        values = values[~np.isnan(values)]
        return float(values.mean()) if len(values) else float("nan")


def predict_change(
    model,
    tokenizer,
    probes: ProbeSet | Iterable[Mapping[str, str]],
    direction: Mapping[str, Tensor],
    vocab: bool = False,
    *,
    tokens: int = TOKENS,
    progress: bool | None = None,
) -> Change:
    """Predict what θ → θ + Δθ does to log π, to first order and exactly so.

    The change of the logits is J Δθ, from one pass in forward mode over the packed probes; A turns
    it into Δ log π = A J Δθ at each token. With Δθ = −η ∇L this is −η Σ_l A K G_l, equation 5 of
    the paper, without forming K. Any other Δθ, such as an optimiser's actual update, does as well.

    Half-precision models are computed in float32. Dropout, gradient checkpointing and autocast
    are off. The model is left as it was.

    Args:
        model: a Hugging Face causal language model, with SDPA or eager attention.
        tokenizer: its tokenizer.
        probes: a `ProbeSet`, or rows such as ``{"prompt": …, "chosen": …}``.
        direction: parameter name → Δθ of its shape, from `sgd_direction` or `update_direction`;
            parameters that it does not name stay. Of a tied weight either name will do.
        vocab: return the change of every label at every token, too.
        tokens: how many, padding included, go through the model at a time. It bounds memory and
            does not change the result.
        progress: whether to show a bar; None shows it for work of more than ten seconds.

    Raises:
        ValueError: a direction with unknown names, wrong shapes or values that are not finite;
            rows as in `load_probes`; a whole-vocabulary result beyond 4 GiB; a model without
            forward-mode derivatives, or whose predictions are not finite.

    Example:
        >>> step = sgd_direction(model, tokenizer, rows[:1], "sft", lr=1e-5)  # doctest: +SKIP
        >>> predict_change(model, tokenizer, rows, step)  # doctest: +SKIP
        Change(8 prompts × 2 types)
    """
    if model.config._attn_implementation not in ("sdpa", "eager"):
        raise ValueError(
            f"attention {model.config._attn_implementation!r} has no forward-mode derivative: "
            'call model.set_attn_implementation("sdpa") first'
        )
    weights, moves = weights_and_moves(model, direction)

    def change(logits: Tensor) -> Tensor:
        z, dz = fwd.unpack_dual(logits)
        return torch.zeros_like(z) if dz is None else log_softmax_jvp(z, dz)

    try:
        with torch.inference_mode(False), fwd.dual_level(), DualAttention():
            duals = {name: fwd.make_dual(weights[name], move) for name, move in moves.items()}
            passes = [weights | duals]
            return _collect(model, tokenizer, probes, passes, change, vocab, tokens, progress)
    except RuntimeError as error:
        if "forward AD" not in str(error) and "jvp" not in str(error):
            raise
        raise ValueError(
            f"{type(model).__name__} runs an operation that has no forward-mode derivative "
            f"({str(error).splitlines()[0]:.100}): load it without custom kernels"
        ) from error


def measure_change(
    model,
    tokenizer,
    probes: ProbeSet | Iterable[Mapping[str, str]],
    direction: Mapping[str, Tensor],
    vocab: bool = False,
    *,
    tokens: int = TOKENS,
    progress: bool | None = None,
) -> Change:
    """Measure what θ → θ + Δθ does to log π: what `predict_change` predicts, by two passes.

    The moved weights are used beside the model's own, which stay as they are, bit for bit.
    Half-precision models are computed in float32. In float32 both passes and θ + Δθ are rounded,
    which very small steps show; a float64 model has no such limit.

    Args and errors are those of `predict_change`, but any attention will do, and the step must not
    be so large that predictions are not finite.

    Example:
        >>> measure_change(model, tokenizer, rows, step)  # doctest: +SKIP
        Change(8 prompts × 2 types)
    """
    weights, moves = weights_and_moves(model, direction)
    after = weights | {name: weights[name] + move for name, move in moves.items()}

    def change(old: Tensor, new: Tensor) -> Tensor:
        # Two log-probs that are nearly equal: float32 would lose digits on the way.
        return (new.double().log_softmax(-1) - old.double().log_softmax(-1)).to(old.dtype)

    return _collect(model, tokenizer, probes, [weights, after], change, vocab, tokens, progress)


def _collect(
    model,
    tokenizer,
    probes,
    passes: Sequence[Mapping[str, Tensor]],
    change: Callable[..., Tensor],
    vocab: bool,
    tokens: int,
    progress: bool | None,
) -> Change:
    """What ``change`` makes, (m, V), of the logits by passes with these weights, at all tokens."""
    probes = as_probes(probes)
    encoded = encode(tokenizer, probes)
    if vocab:
        _check_room(model, encoded)
    states_of, logits_of = Reweighted(model, hidden), Reweighted(model, part=head(model))
    logp = np.full((len(probes), len(probes.types)), np.nan)
    of_tokens: list[dict[str, np.ndarray]] = [{} for _ in encoded]
    whole: list[dict[str, Tensor]] = [{} for _ in encoded]
    shown = bar("change", "response", progress, sum(len(e.responses) for e in encoded))
    with undisturbed(model), torch.no_grad(), shown:
        for batch in batches(model, encoded, tokens):
            states = [states_of.at(weights, batch) for weights in passes]
            _check_finite(states[0], batch, "the model's weights have diverged")
            labels, full = [], []
            chunks = (x.split(CHUNK) for x in (batch.target, *states))
            for target, *parts in zip(*chunks, strict=True):
                moved = change(*map(logits_of.at, passes, parts))
                labels.append(moved.gather(1, target.unsqueeze(1)).squeeze(1))
                full += [moved.cpu()] * vocab
            terms = torch.cat(labels).double()
            _check_finite(terms, batch, "the step is too large")
            for (row, name), term in batch.split(terms.cpu()).items():
                of_tokens[row][name] = term.numpy().copy()
                logp[row, probes.types.index(name)] = term.sum()
            for (row, name), part in batch.split(torch.cat(full)).items() if vocab else ():
                whole[row][name] = part.clone()  # its own memory, not the batch's
            shown.update(len(batch.responses))
    return Change(probes.types, logp, tuple(of_tokens), tuple(whole) if vocab else None)


def _check_room(model, encoded: Sequence[Encoded]) -> None:
    n = sum(len(ids) for row in encoded for ids in row.responses.values())
    v = model.get_output_embeddings().weight.shape[0]
    gib = n * v * (8 if model.dtype == torch.float64 else 4) / 2**30
    if gib > VOCAB_GIB:
        raise ValueError(
            f"vocab=True would take {gib:.1f} GiB ({n:,} tokens × {v:,} labels), more than "
            f"{VOCAB_GIB:g}: pass fewer rows or types at a time"
        )


def _check_finite(values: Tensor, batch: Batch, why: str) -> None:
    bad = ~values.view(len(values), -1).isfinite().all(1)
    if bad.any():
        row, name = batch.responses[batch.segment[bad][0]]
        raise ValueError(f"rows[{row}]: the predictions along {name!r} are not finite: {why}")
