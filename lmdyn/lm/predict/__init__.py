"""Directions in weight space, and what they do to every response: predicted, and measured."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.autograd.forward_ad as fwd
from torch import Tensor

from lmdyn import losses
from lmdyn.checks import check_known, trainable
from lmdyn.lm import forward
from lmdyn.lm.batches import TOKENS, Batch
from lmdyn.lm.data import Rows, as_probes, read_by
from lmdyn.lm.predict._dual import DualAttention, unpacked
from lmdyn.lm.score import known_mean, token_coefficients
from lmdyn.lm.tokens import encode
from lmdyn.lm.ways import check_kind, ways
from lmdyn.softmax import entropy_jvp, log_softmax_jvp

CHUNK = 64  # positions whose logits are there at a time
VOCAB_GIB = 4.0  # the most that ``vocab=True`` may return
Weights = Mapping[str, Tensor]  # of parameters, by name


@dataclass(frozen=True, eq=False)
class Change:
    """How the log-probs of N prompts' responses, of R types, change, in nats."""

    types: tuple[str, ...]  #: the R response types
    #: (N, R) float64, Δ log π(y|x) = Σ_l Δ log π(y_l | x, y_<l); NaN where a row lacks the type
    logp: np.ndarray
    entropy: np.ndarray  #: (N, R) float64, the change of the entropy of π, its mean over the tokens
    #: one dict for each row: type → (T,) float64, the T terms of that sum, EOS's last
    tokens: tuple[dict[str, np.ndarray], ...]
    #: with ``vocab``, one dict for each row: type → (T, V), Δ log π(· | x, y_<l), on the CPU
    vocab: tuple[dict[str, Tensor], ...] | None = None

    def __repr__(self) -> str:
        n, r = self.logp.shape
        return f"Change({n} prompts × {r} types{', whole vocabulary' * (self.vocab is not None)})"

    def mean(self, name: str) -> float:
        """The mean of Δ log π over the rows that have the type; NaN if none has."""
        check_known("response type", name, self.types)
        return float(known_mean(self.logp[:, self.types.index(name)]))


def sgd_direction(
    model,
    tokenizer,
    rows: Rows,
    loss: str | losses.Loss = "sft",
    lr: float = 1.0,
    *,
    ref: Mapping[str, Sequence] | None = None,
    old: Mapping[str, Sequence] | None = None,
    tokens: int = 1024,
) -> dict[str, Tensor]:
    """−η ∇L: one step of gradient descent on the *sum* of the loss over the rows.

    A loss reads tokens through their log-probs alone, so ∇L = Σ c_l ∇ log π(y_l | x, y_<l) with
    the coefficients c of `lmdyn.losses`. Losses of samples read ``response``, or ``chosen`` of rows
    without one, and a number ``advantage``. Dropout is off.

    Args:
        model, tokenizer: as in `score`. The model stays as it is, and so do its ``.grad``.
        rows: B rows to learn from, as ``probes`` there.
        loss: a name of `lmdyn.losses`, or a loss.
        lr: the learning rate η. For the mean over the rows instead of the sum, divide it by B.
        ref: for a loss with a reference model: response name → (B,) log-probs under it, nats.
            The model's own if not given, as at the start of a finetuning run.
        old: likewise, under the model that sampled; of a loss `per_token`, (B, T), padded.
        tokens: in a batch, padding included, all of whose logits the backward pass keeps.

    Returns:
        Parameter name → tensor of its shape, in float32 for half-precision models. Frozen
        parameters, and those that the loss does not reach, are left out.

    Raises:
        ValueError: an unknown loss, a row without a response that the loss reads, an ``lr`` or
            ``ref`` that does not fit, log-probs that are not finite, no trainable parameter.
    """
    if not math.isfinite(lr):
        raise ValueError(f"lr must be finite, got {lr}")
    loss = losses.get(loss)
    probes, keys, advantage = read_by(loss, as_probes(rows))
    check_kind(model)
    encoded = encode(tokenizer, probes)
    c = token_coefficients(model, encoded, keys, loss, advantage, ref, old)
    return descent(model, encoded, c, lr, tokens)


def descent(model, encoded: Sequence, c: Mapping, lr: float, tokens: int = 1024) -> dict:
    """−η Σ c_l ∇ log π(y_l | x, y_<l): `sgd_direction`, of coefficients (row, type) → (T,)."""
    weights = _float_weights(model)
    moving = {name: weights[name].requires_grad_() for name in trainable(model)}
    found = ways(model, encoded, tokens)
    states = forward.Reweighted(model, forward.hidden)
    logits = forward.Reweighted(model, part=found.required_head(model))
    with forward.undisturbed(model), torch.enable_grad():
        for batch in found.batches(model, encoded):
            logp = forward.token_logps(logits.at(weights, states.at(weights, batch)), batch)
            (logp @ batch.join(c).to(logp)).backward()  # into `moving`, not the model
    return {name: p.grad.mul_(-lr) for name, p in moving.items() if p.grad is not None}


def update_direction(before: Weights, after: Weights) -> dict[str, Tensor]:
    """What an optimiser did: parameter name → after − before, for those that changed.

    Args:
        before: a state dict, *copied* before the update: ``model.state_dict()`` alone gives the
            live weights, which the update changes too.
        after: the same afterwards. ValueError if the names differ, or nothing changed.
    """
    if before.keys() != after.keys():
        odd = sorted(before.keys() ^ after.keys())[0]
        raise ValueError(f"before and after are not of one model: only one of them has {odd!r}")
    changed = {n: after[n] - before[n] for n in before if not torch.equal(before[n], after[n])}
    if not changed:
        how = "{name: tensor.clone() for name, tensor in model.state_dict().items()}"
        raise ValueError(f"nothing changed: copy the weights before the update, {how}")
    return changed


def predict_change(
    model, tokenizer, probes: Rows, direction: Weights, vocab=False, *, tokens=TOKENS, progress=None
) -> Change:
    """Predict what θ → θ + Δθ does to log π, to first order and exactly so.

    The change of the logits is J Δθ, from one pass in forward mode over the packed probes; A turns
    it into Δ log π = A J Δθ at each token. With Δθ = −η ∇L this is −η Σ_l A K G_l, equation 5 of
    the paper, without forming K. Any other Δθ, such as an optimiser's actual update, does as well.

    Half precision is computed in float32, dropout is off, and the model is left as it was.

    Args:
        model, tokenizer, probes, tokens, progress: as in `score`, with SDPA or eager attention.
        direction: parameter name → Δθ of its shape, from `sgd_direction` or `update_direction`;
            parameters that it does not name stay. Of a tied weight either name will do.
        vocab: return the change of every label at every token, too.

    Raises:
        ValueError: a direction with unknown names, wrong shapes or values that are not finite;
            rows as in `load_probes`; a whole-vocabulary result beyond 4 GiB; a model without
            forward-mode derivatives, or whose predictions are not finite.
    """
    weights, moves = _weights_and_moves(model, direction)
    if model.config._attn_implementation not in ("sdpa", "eager"):
        told = f"attention {model.config._attn_implementation!r} has no forward-mode derivative"
        raise ValueError(f'{told}: call model.set_attn_implementation("sdpa") first')

    def change(logits: Tensor) -> tuple[Tensor, Tensor]:
        z, dz = unpacked(logits)
        change = log_softmax_jvp(z, dz)
        return change.masked_fill(z.isneginf(), 0), entropy_jvp(z, dz)  # zero stays zero

    try:
        modes = torch.inference_mode(False), forward.forward_mode(model)
        with modes[0], modes[1], fwd.dual_level(), DualAttention():
            weights |= {name: fwd.make_dual(weights[name], move) for name, move in moves.items()}
            return _collect(model, tokenizer, probes, [weights], change, vocab, tokens, progress)
    except RuntimeError as error:
        if "forward AD" not in str(error) and "jvp" not in str(error):
            raise
        told = f"{type(model).__name__} runs an operation that has no forward-mode derivative"
        why = f"{str(error).splitlines()[0]:.100}"
        raise ValueError(f"{told} ({why}): load it without custom kernels") from error


def measure_change(
    model, tokenizer, probes: Rows, direction: Weights, vocab=False, *, tokens=TOKENS, progress=None
) -> Change:
    """Measure what θ → θ + Δθ does to log π: what `predict_change` predicts, by two passes.

    The moved weights are used beside the model's own, which stay as they are. In float32 (as half
    precision is computed) θ + Δθ and both passes are rounded, which very small steps show.

    Arguments and errors are those of `predict_change`, but any attention will do, and a step so
    large that predictions are not finite is refused.
    """
    weights, moves = _weights_and_moves(model, direction)
    after = weights | {name: weights[name] + move for name, move in moves.items()}

    def change(old: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
        # Two log-probs that are nearly equal: float32 would lose digits on the way.
        before, after = (z.double().log_softmax(-1) for z in (old, new))
        flatter = torch.special.entr(after.exp()) - torch.special.entr(before.exp())
        change = (after - before).masked_fill(old.isneginf() & new.isneginf(), 0)
        return change.to(old.dtype), flatter.sum(-1)

    return _collect(model, tokenizer, probes, [weights, after], change, vocab, tokens, progress)


def _collect(model, tokenizer, probes, passes, change, vocab, tokens, progress) -> Change:
    """What ``change`` makes, (m, V) and (m,), of the logits by passes with these weights."""
    probes = as_probes(probes)
    encoded = encode(tokenizer, probes)
    every = [ids for row in encoded for ids in row.responses.values()]
    if vocab:
        n, v = sum(map(len, every)), model.get_output_embeddings().weight.shape[0]
        gib = n * v * (8 if model.dtype == torch.float64 else 4) / 2**30
        if gib > VOCAB_GIB:
            told = f"vocab=True would take {gib:.1f} GiB ({n:,} tokens × {v:,} labels), more than"
            raise ValueError(f"{told} {VOCAB_GIB:g}: pass fewer rows or types at a time")
    found = ways(model, encoded, tokens)
    states_of = forward.Reweighted(model, forward.hidden)
    logits_of = forward.Reweighted(model, part=found.required_head(model))
    logp, entropy = np.full((2, len(probes), len(probes.types)), np.nan)
    of_tokens: list[dict[str, np.ndarray]] = [{} for _ in encoded]
    whole: list[dict[str, Tensor]] = [{} for _ in encoded]
    shown = forward.bar("change", "response", progress, len(every))
    with forward.undisturbed(model), torch.no_grad(), shown:
        for batch in found.batches(model, encoded):
            states = [states_of.at(weights, batch) for weights in passes]
            _check_finite(states[0], batch, "the model's weights have diverged")
            labels, full = [], []
            chunks = (x.split(CHUNK) for x in (batch.target, *states))
            for target, *parts in zip(*chunks, strict=True):
                moved, flatter = change(*map(logits_of.at, passes, parts))
                labels.append(torch.stack([moved.gather(1, target[:, None])[:, 0], flatter], 1))
                full += [moved.cpu()] if vocab else []
            terms = torch.cat(labels).double()
            _check_finite(terms, batch, "the step is too large")
            for (row, name), term in batch.split(terms.cpu()).items():
                of_tokens[row][name], at = term[:, 0].numpy().copy(), probes.types.index(name)
                logp[row, at], entropy[row, at] = term[:, 0].sum(), term[:, 1].mean()
            for (row, name), part in batch.split(torch.cat(full)).items() if vocab else ():
                whole[row][name] = part.clone()  # its own memory, not the batch's
            shown.update(len(batch.responses))
    return Change(probes.types, logp, entropy, tuple(of_tokens), tuple(whole) if vocab else None)


def _check_finite(values: Tensor, batch: Batch, why: str) -> None:
    if (bad := ~values.view(len(values), -1).isfinite().all(1)).any():
        row, name = batch.responses[batch.segment[bad][0]]
        raise ValueError(f"rows[{row}]: the predictions along {name!r} are not finite: {why}")


@torch.inference_mode(False)
def _float_weights(model) -> dict[str, Tensor]:
    """The model's weights, detached; those in half precision as float32.

    A small step would vanish in half precision, and the difference that it makes with it.
    """
    check_kind(model)
    if any(p.is_inference() for p in model.parameters()):
        told = "the model was made under torch.inference_mode(), which rules out derivatives"
        raise ValueError(f"{told}: load it outside")
    return {
        name: p.detach().to(torch.promote_types(p.dtype, torch.float32))
        for name, p in model.named_parameters()
        if p.is_floating_point()  # packed ones stay with their module
    }


@torch.inference_mode(False)
def _weights_and_moves(model, direction: Weights) -> tuple[dict, dict]:
    """`_float_weights`, and the direction under their names, in their dtype and place."""
    weights, moves = _float_weights(model), {}
    if not isinstance(direction, Mapping) or not direction:
        raise ValueError("direction must map names of parameters, at least one, to tensors")
    known = dict(model.named_parameters(remove_duplicate=False))
    first = {p: name for name, p in model.named_parameters()}
    for name, move in direction.items():
        check_known("parameter of the direction", name, known)
        own = first[known[name]]
        move, shape = torch.as_tensor(move).detach().to(weights[own]), weights[own].shape
        if move.shape != shape or not move.isfinite().all():
            must = f"must be finite and of the parameter's shape {tuple(shape)}"
            got = f"{tuple(move.shape)} with {int((~move.isfinite()).sum())} NaN or infinite"
            raise ValueError(f"direction[{name!r}] {must}, got {got}")
        if own in moves and not torch.equal(moves[own], move):
            told = f"direction[{name!r}] is another than that of {own!r}, but they are one weight"
            raise ValueError(f"{told} (tied): keep one of them")
        moves[own] = move
    return weights, moves
