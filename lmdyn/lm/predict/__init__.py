"""Directions in weight space, and what they do to every response: predicted, and measured."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.autograd.forward_ad as fwd
from torch import Tensor

from lmdyn import losses
from lmdyn.checks import check_known, trainable
from lmdyn.lm import forward
from lmdyn.lm.batches import TOKENS, Batch
from lmdyn.lm.data import ProbeSet, as_probes, with_all
from lmdyn.lm.predict._dual import DualAttention
from lmdyn.lm.score import score
from lmdyn.lm.tokens import Encoded, encode
from lmdyn.lm.ways import check_kind, ways
from lmdyn.softmax import log_softmax_jvp

CHUNK = 64  # positions whose logits are there at a time
VOCAB_GIB = 4.0  # the most that ``vocab=True`` may return


@dataclass(frozen=True, eq=False)
class Change:
    """How the log-probs of N prompts' responses, of R types, change, in nats.

    Attributes:
        types: the R response types.
        logp: (N, R) float64, Δ log π(y|x) = Σ_l Δ log π(y_l | x, y_<l); NaN where a row lacks the
            type.
        tokens: one dict for each row: type → (T,) float64, the T terms of that sum, EOS's last.
        vocab: one dict for each row: type → (T, V), Δ log π(· | x, y_<l), on the CPU; None without
            ``vocab``.
    """

    types: tuple[str, ...]
    logp: np.ndarray
    tokens: tuple[dict[str, np.ndarray], ...]
    vocab: tuple[dict[str, Tensor], ...] | None = None

    def __repr__(self) -> str:
        n, r = self.logp.shape
        return f"Change({n} prompts × {r} types{', whole vocabulary' * (self.vocab is not None)})"

    def mean(self, name: str) -> float:
        """The mean of Δ log π over the rows that have the type; NaN if none has."""
        check_known("response type", name, self.types)
        values = self.logp[:, self.types.index(name)]
        values = values[~np.isnan(values)]
        return float(values.mean()) if len(values) else float("nan")


def sgd_direction(
    model,
    tokenizer,
    rows: ProbeSet | Sequence[Mapping[str, str]],
    loss: str | losses.Loss = "sft",
    lr: float = 1.0,
    *,
    ref: Mapping[str, Sequence[float]] | None = None,
    tokens: int = 1024,
) -> dict[str, Tensor]:
    """−η ∇L: one step of gradient descent on the *sum* of the loss over the rows.

    A loss reads sequences through their log-probs alone, so ∇L = Σ c ∇ log π(y|x) with the
    coefficients c = ∂L/∂ log π(y|x) of `lmdyn.losses`. Dropout is off.

    Args:
        model: a Hugging Face causal language model. It stays as it is, and so do its ``.grad``.
        tokenizer: its tokenizer.
        rows: a `ProbeSet`, or rows such as ``{"prompt": …, "chosen": …}``: B of them.
        loss: a name of `lmdyn.losses`, or a loss.
        lr: the learning rate η. For the mean over the rows instead of the sum, divide it by B.
        ref: for a loss with a reference model: response name → (B,) log-probs under it, nats.
            The model's own if not given, as at the start of a finetuning run.
        tokens: in a batch, padding included, all of whose logits the backward pass keeps.

    Returns:
        Parameter name → tensor of its shape, in float32 for half-precision models. Frozen
        parameters, and those that the loss does not reach, are left out.

    Raises:
        ValueError: an unknown loss, a row without a response that the loss reads, an ``lr`` or
            ``ref`` that does not fit, log-probs that are not finite, no trainable parameter.

    Example:
        >>> step = sgd_direction(model, tokenizer, rows[:1], lr=1e-5)  # doctest: +SKIP
        >>> predict_change(model, tokenizer, rows, step).mean("chosen")  # doctest: +SKIP
        0.41
    """
    if not math.isfinite(lr):
        raise ValueError(f"lr must be finite, got {lr}")
    loss = losses.get(loss)
    probes = with_all(as_probes(rows), loss.responses, f"the loss {type(loss).__name__}")
    weights = _float_weights(model)
    moving = {name: weights[name].requires_grad_() for name in trainable(model)}
    scores = score(model, tokenizer, probes, stats=False, progress=False)
    logps, lengths = (
        dict(zip(probes.types, torch.from_numpy(values).T, strict=True))
        for values in (scores.logp, scores.n_tokens)
    )
    given = {n: torch.as_tensor(x, dtype=torch.float64) for n, x in (ref or logps).items()}
    c = loss.coefficients(logps, given, lengths)
    encoded = encode(tokenizer, probes)
    found = ways(model, encoded, tokens)
    states = forward.Reweighted(model, forward.hidden)
    logits = forward.Reweighted(model, part=found.required_head(model))
    with forward.undisturbed(model), torch.enable_grad():
        for batch in found.batches(model, encoded):
            logp = forward.token_logps(logits.at(weights, states.at(weights, batch)), batch)
            of_response = torch.stack([c[name][row] for row, name in batch.responses])
            (logp @ of_response.to(logp)[batch.segment]).backward()  # into `moving`, not the model
    return {name: -lr * p.grad for name, p in moving.items() if p.grad is not None}


def update_direction(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What an optimiser did: parameter name → after − before, for those that changed.

    Args:
        before: a state dict, *copied* before the update: ``model.state_dict()`` alone gives the
            live weights, which the update changes too.
        after: the same afterwards. ValueError if the names differ, or nothing changed.

    Example:
        >>> before = {"weight": torch.zeros(2)}
        >>> update_direction(before, {"weight": torch.ones(2)})
        {'weight': tensor([1., 1.])}
    """
    if before.keys() != after.keys():
        odd = sorted(before.keys() ^ after.keys())[0]
        raise ValueError(f"before and after are not of one model: only one of them has {odd!r}")
    changed = {n: after[n] - before[n] for n in before if not torch.equal(before[n], after[n])}
    if not changed:
        raise ValueError(
            "nothing changed: copy the weights before the update, "
            "{name: tensor.clone() for name, tensor in model.state_dict().items()}"
        )
    return changed


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

    Half precision is computed in float32, dropout is off, and the model is left as it was.

    Args:
        model: a Hugging Face causal language model, with SDPA or eager attention.
        tokenizer: its tokenizer.
        probes: a `ProbeSet`, or rows such as ``{"prompt": …, "chosen": …}``.
        direction: parameter name → Δθ of its shape, from `sgd_direction` or `update_direction`;
            parameters that it does not name stay. Of a tied weight either name will do.
        vocab: return the change of every label at every token, too.
        tokens: in a batch, padding included. It bounds memory and does not change the result.
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
    check_kind(model)
    if model.config._attn_implementation not in ("sdpa", "eager"):
        raise ValueError(
            f"attention {model.config._attn_implementation!r} has no forward-mode derivative: "
            'call model.set_attn_implementation("sdpa") first'
        )
    weights, moves = _weights_and_moves(model, direction)

    def change(logits: Tensor) -> Tensor:
        z, dz = fwd.unpack_dual(logits)
        change = torch.zeros_like(z) if dz is None else log_softmax_jvp(z, dz)
        return change.masked_fill(z.isneginf(), 0)  # a probability that is and stays zero

    try:
        modes = torch.inference_mode(False), forward.forward_mode(model)
        with modes[0], modes[1], fwd.dual_level(), DualAttention():
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

    The moved weights are used beside the model's own, which stay as they are. In float32 (as half
    precision is computed) θ + Δθ and both passes are rounded, which very small steps show.

    Arguments and errors are those of `predict_change`, but any attention will do, and a step so
    large that predictions are not finite is refused.

    Example:
        >>> measure_change(model, tokenizer, rows, step)  # doctest: +SKIP
        Change(8 prompts × 2 types)
    """
    weights, moves = _weights_and_moves(model, direction)
    after = weights | {name: weights[name] + move for name, move in moves.items()}

    def change(old: Tensor, new: Tensor) -> Tensor:
        # Two log-probs that are nearly equal: float32 would lose digits on the way.
        change = new.double().log_softmax(-1) - old.double().log_softmax(-1)
        return change.masked_fill(old.isneginf() & new.isneginf(), 0).to(old.dtype)

    return _collect(model, tokenizer, probes, [weights, after], change, vocab, tokens, progress)


def _collect(model, tokenizer, probes, passes, change, vocab, tokens, progress) -> Change:
    """What ``change`` makes, (m, V), of the logits by passes with these weights, at all tokens."""
    probes = as_probes(probes)
    encoded = encode(tokenizer, probes)
    if vocab:
        _check_room(model, encoded)
    found = ways(model, encoded, tokens)
    states_of = forward.Reweighted(model, forward.hidden)
    logits_of = forward.Reweighted(model, part=found.required_head(model))
    logp = np.full((len(probes), len(probes.types)), np.nan)
    of_tokens: list[dict[str, np.ndarray]] = [{} for _ in encoded]
    whole: list[dict[str, Tensor]] = [{} for _ in encoded]
    shown = forward.bar("change", "response", progress, sum(len(e.responses) for e in encoded))
    with forward.undisturbed(model), torch.no_grad(), shown:
        for batch in found.batches(model, encoded):
            states = [states_of.at(weights, batch) for weights in passes]
            _check_finite(states[0], batch, "the model's weights have diverged")
            labels, full = [], []
            chunks = (x.split(CHUNK) for x in (batch.target, *states))
            for target, *parts in zip(*chunks, strict=True):
                moved = change(*map(logits_of.at, passes, parts))
                labels.append(moved.gather(1, target.unsqueeze(1)).squeeze(1))
                full += [moved.cpu()] if vocab else []
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


@torch.inference_mode(False)
def _float_weights(model) -> dict[str, Tensor]:
    """The model's weights, detached; those in half precision as float32.

    A small step would vanish in half precision, and the difference that it makes with it.
    """
    check_kind(model)
    if any(p.is_inference() for p in model.parameters()):
        raise ValueError(
            "the model was made under torch.inference_mode(), which rules out derivatives: "
            "load it outside"
        )
    return {
        name: p.detach().to(torch.promote_types(p.dtype, torch.float32))
        for name, p in model.named_parameters()
    }


@torch.inference_mode(False)
def _weights_and_moves(model, direction: Mapping[str, Tensor]) -> tuple[dict, dict]:
    """`_float_weights`, and the direction under their names, in their dtype and place."""
    if not isinstance(direction, Mapping) or not direction:
        raise ValueError("direction must map names of parameters, at least one, to tensors")
    known = dict(model.named_parameters(remove_duplicate=False))
    first = {p: name for name, p in model.named_parameters()}
    weights, moves = _float_weights(model), {}
    for name, move in direction.items():
        check_known("parameter of the direction", name, known)
        own = first[known[name]]
        move, shape = torch.as_tensor(move).detach().to(weights[own]), weights[own].shape
        if move.shape != shape or not move.isfinite().all():
            raise ValueError(
                f"direction[{name!r}] must be finite and of the parameter's shape {tuple(shape)}, "
                f"got {tuple(move.shape)} with {int((~move.isfinite()).sum())} NaN or infinite"
            )
        if own in moves and not torch.equal(moves[own], move):
            raise ValueError(
                f"direction[{name!r}] is another than that of {own!r}, "
                "but they are one weight (tied): keep one of them"
            )
        moves[own] = move
    return weights, moves
