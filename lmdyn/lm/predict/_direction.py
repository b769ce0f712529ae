"""Directions in weight space: the step of a loss, or what an optimiser did."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lmdyn import losses
from lmdyn.checks import check_known, trainable
from lmdyn.lm.data import ProbeSet, as_probes, with_all
from lmdyn.lm.forward import Reweighted, batches, head, hidden, token_logps, undisturbed
from lmdyn.lm.score import score
from lmdyn.lm.tokens import encode

STEP_TOKENS = 1024  # in a batch: its logits are all kept for the backward pass


def sgd_direction(
    model,
    tokenizer,
    rows: ProbeSet | Sequence[Mapping[str, str]],
    loss: str | losses.Loss = "sft",
    lr: float = 1.0,
    *,
    ref: Mapping[str, Sequence[float]] | None = None,
    tokens: int = STEP_TOKENS,
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
        tokens: how many, padding included, go through the model at a time.

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
    weights = float_weights(model)
    moving = {name: weights[name].requires_grad_() for name in trainable(model)}
    scores = score(model, tokenizer, probes, stats=False, progress=False)
    logps, lengths = (
        dict(zip(probes.types, torch.from_numpy(values).T, strict=True))
        for values in (scores.logp, scores.n_tokens)
    )
    given = {n: torch.as_tensor(x, dtype=torch.float64) for n, x in (ref or logps).items()}
    c = loss.coefficients(logps, given, lengths)
    total: dict[str, Tensor] = {}
    with undisturbed(model), torch.enable_grad():
        states, logits = Reweighted(model, hidden), Reweighted(model, part=head(model))
        for batch in batches(model, encode(tokenizer, probes), tokens):
            logp = token_logps(logits.at(weights, states.at(weights, batch)), batch)
            of_response = torch.stack([c[name][row] for row, name in batch.responses])
            weighted = logp @ of_response.to(logp)[batch.segment]
            grads = torch.autograd.grad(weighted, list(moving.values()), allow_unused=True)
            found = {n: g for n, g in zip(moving, grads, strict=True) if g is not None}
            total |= {name: total.get(name, 0) + grad for name, grad in found.items()}
    return {name: -lr * grad for name, grad in total.items()}


def update_direction(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What an optimiser did: the difference of two state dicts.

    Args:
        before: parameter name → tensor, *copied* before the update: ``model.state_dict()`` alone
            gives the live weights, which the update changes too.
        after: the same afterwards.

    Returns:
        Parameter name → after − before, for those that changed.

    Raises:
        ValueError: names that differ, or no change at all.

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


@torch.inference_mode(False)
def float_weights(model) -> dict[str, Tensor]:
    """The model's weights, detached; those in half precision as float32.

    A small step would vanish in half precision, and the difference that it makes with it.
    """
    if any(p.is_inference() for p in model.parameters()):
        raise ValueError(
            "the model was made under torch.inference_mode(), which rules out derivatives: "
            "load it outside"
        )
    return {
        name: p.detach().float() if p.dtype in (torch.float16, torch.bfloat16) else p.detach()
        for name, p in model.named_parameters()
    }


@torch.inference_mode(False)
def weights_and_moves(
    model, direction: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """`float_weights`, and the direction under their names, in their dtype and place."""
    if not isinstance(direction, Mapping) or not direction:
        raise ValueError("direction must map names of parameters, at least one, to tensors")
    known = dict(model.named_parameters(remove_duplicate=False))
    first = {p: name for name, p in model.named_parameters()}
    weights, moves = float_weights(model), {}
    for name, move in direction.items():
        check_known("parameter of the direction", name, known)
        own = first[known[name]]
        move, shape = torch.as_tensor(move).detach().to(weights[own]), weights[own].shape
        if move.shape != shape or not move.isfinite().all():
            raise ValueError(
                f"direction[{name!r}] must be finite and of the parameter's shape {tuple(shape)}, "
                f"got {tuple(move.shape)} with {int(move.isnan().sum())} NaN"
            )
        if own in moves and not torch.equal(moves[own], move):
            raise ValueError(
                f"direction[{name!r}] is another than that of {own!r}, "
                "but they are one weight (tied): keep one of them"
            )
        moves[own] = move
    return weights, moves
