"""Directions in weight space: the step of a loss, or what an optimiser did."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lmdyn import losses
from lmdyn.checks import trainable, unknown
from lmdyn.lm.data import ProbeSet, as_probes, with_all
from lmdyn.lm.forward import Reweighted, batches, head, hidden, token_logps, undisturbed
from lmdyn.lm.predict._dual import float_weights
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
            for name, grad in zip(moving, grads, strict=True):
                if grad is not None:
                    total[name] = total[name] + grad if name in total else grad
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


def check_direction(model, direction: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The direction under the first name of each weight, in the dtype and place of the pass."""
    if not isinstance(direction, Mapping):
        kind = type(direction).__name__
        raise ValueError(f"direction must map parameter names to tensors, got {kind}")
    if not direction:
        raise ValueError("direction is empty: it names no parameter to move")
    known = dict(model.named_parameters(remove_duplicate=False))
    first = {p: name for name, p in model.named_parameters()}
    weights = float_weights(model)
    checked, given = {}, {}
    for name, move in direction.items():
        if name not in known:
            raise ValueError(f"direction: {unknown('parameter', name, known)}")
        own = first[known[name]]
        move = torch.as_tensor(move).detach().to(weights[own])
        if move.shape != weights[own].shape:
            raise ValueError(
                f"direction[{name!r}] has shape {tuple(move.shape)}, "
                f"the parameter {tuple(weights[own].shape)}"
            )
        if not move.isfinite().all():
            raise ValueError(f"direction[{name!r}] holds NaN or infinity")
        if own in checked and not torch.equal(checked[own], move):
            raise ValueError(
                f"direction[{name!r}] and direction[{given[own]!r}] differ, "
                "but they are one weight (tied): keep one of them"
            )
        checked[own], given[own] = move, name
    return checked
