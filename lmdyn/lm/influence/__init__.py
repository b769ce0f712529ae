"""Who moves whom: the first-order effect of every update on every response, pair by pair."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lmdyn import losses
from lmdyn.checks import trainable
from lmdyn.lm.data import Rows, as_probes, read_by
from lmdyn.lm.forward import bar, undisturbed
from lmdyn.lm.influence._gradients import Block, Gradients, flat, inner_products
from lmdyn.lm.predict import descent
from lmdyn.lm.score import check_logps, coefficients, token_coefficients
from lmdyn.lm.tokens import Encoded, Format, encode
from lmdyn.lm.ways import check_fits


class Shares(NamedTuple):
    """What the next step of an optimizer does to log π, in nats: the parts add up to its effect.

    To first order: of the actual Δθ, ⟨Δθ, ∇_θ log π(y_o,r | x_o)⟩ = rows.sum(0) + momentum + decay.
    """

    rows: np.ndarray  #: (N_u, N_o, R), or (N_u, S, N_o, R): what each row of the batch adds
    momentum: np.ndarray  #: (N_o, R), what earlier batches add
    decay: np.ndarray  #: (N_o, R), what weight decay adds


def influence(
    model,
    tokenizer,
    updates: Rows,
    probes: Rows,
    loss: str | losses.Loss = "sft",
    *,
    types: Sequence[str] | None = None,
    by_response: bool = False,
    format: Format | None = None,
    ref: Mapping[str, Sequence] | None = None,
    old: Mapping[str, Sequence] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    memory: float = 8e9,
    progress: bool | None = None,
) -> np.ndarray | Shares:
    """What one SGD step on each update does to log π of each response, to first order (Eq. 5).

    Entry [u, o, r] is −⟨∇_θ L_u, ∇_θ log π(y_o,r | x_o)⟩, over the parameters with
    ``requires_grad``: multiplied by the learning rate, the change of the log-prob in nats. It is
    equation 5 summed over all tokens of both sequences, with A, K and G contracted. Exact for any
    model; no gradient of an example is held as a whole. The model stays as it was; dropout is off.

    Args:
        model, tokenizer, progress: as in `score`.
        updates: N_u rows to learn from, with the responses that the loss reads.
        probes: N_o rows to observe.
        loss: a name of `lmdyn.losses`, or a loss: of a row, as `Loss.value` has it.
        types: the R response types to observe, in this order; those of ``probes`` if not given.
        by_response: keep apart what each of the S responses that the loss reads does, in the order
            of ``loss.responses``: −c⟨∇_θ log π(y_u), ∇_θ log π(y_o)⟩ with its coefficient c, for a
            preference loss the pull of y+ and the push of y−.
        format: how the texts become tokens; each probe set's own if not given.
        ref, old: as in `sgd_direction`.
        optimizer: torch's AdamW, Adam, RMSprop or SGD of this model, in whatever state it is: each
            update is then a row of its next batch, whose gradient is the mean over them, not
            clipped. In Δθ = −P g + …, P is of v̂ with this batch's g² in it, so that the shares
            add up; in another batch a row has another share.
        memory: bytes of activations to hold, up to three quarters of them for updates. What does
            not fit is taken in blocks; for each block of updates all probes pass the model again.

    Returns:
        (N_u, N_o, R) float64, nats per unit learning rate; NaN where a row lacks the type.
        With ``by_response`` (N_u, S, N_o, R), which adds up to the former over axis 1. With
        ``optimizer`` a `Shares`, in nats, as the learning rate is the optimizer's.

    Raises:
        ValueError: as in `sgd_direction` and `encode`, a sequence beyond the model's context, or
            an optimizer of another model or kind.
    """
    loss = losses.get(loss)
    updates = as_probes(updates, format=format, where="updates")
    updates, keys, advantage = read_by(loss, updates, "updates")
    probes = as_probes(probes, types, format, where="probes")
    ours, theirs = encode(tokenizer, updates, "updates"), encode(tokenizer, probes, "probes")
    names, given = [*keys.values()], (advantage, ref, old)
    step, weights, share = None, None, 1 if loss.of_batch else len(ours)
    if loss.per_token or optimizer is not None:
        c = token_coefficients(model, ours, keys, loss, *given, what="updates")
        weights = c if loss.per_token else None
        step = optimizer and Step(optimizer, model, descent(model, ours, c, -1 / share))
    logps, products, rest = gradient_products(
        model, ours, theirs, names, probes.types, memory, progress, weights, step
    )
    if not weights:
        own = {r: torch.from_numpy(logps[:, i]) for i, r in enumerate(keys)}
        c = torch.stack([*coefficients(ours, keys, loss, own, *given).values()], 1)
        products *= c.numpy()[:, :, None, None]
    parts = -products if by_response else -products.sum(1)
    return Shares(parts / share, *rest) if step else parts


class Pushes(NamedTuple):
    """What moves each watched response in a step of SGD on the mean over N pairs.

    In nats per unit learning rate; axis S is what the loss reads: the pull of y+, the push of y−.
    """

    own: np.ndarray  #: (S, N_o, R), what the pairs with the same prompt do; 0 where there is none
    others: np.ndarray  #: (S, N_o, R), what all other pairs do
    pairs: np.ndarray  #: (N, S, N_o, R), what each pair does; its sum is own + others


def pushes(model, tokenizer, pairs, watched, loss: str | losses.Loss = "dpo", **options) -> Pushes:
    """Who moves the responses of watched rows, their own pair or the others: `influence`, summed.

    Arguments, errors and options, but an optimizer, are `influence`'s: N_o rows are watched.
    """
    if options.get("optimizer") is not None:
        raise ValueError("pushes are of SGD: leave optimizer out, or ask influence(optimizer=…)")
    pairs, watched = as_probes(pairs), as_probes(watched, options.get("types"))
    found = influence(model, tokenizer, pairs, watched, loss, by_response=True, **options)
    mine = np.array([[ours["prompt"] == row["prompt"] for row in watched] for ours in pairs])
    mine, found = mine[:, None, :, None], found / len(pairs)
    return Pushes((found * mine).sum(0), (found * ~mine).sum(0), found)


def gradient_products(
    model, ours, theirs, names, types, memory=8e9, progress=None, weights=None, step=None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """log π of the responses ``names`` of ours, (N_u, S), and ⟨∇ log π(y_u), ∇ log π(y_o)⟩.

    Both sides are `Encoded` rows. The products are (N_u, S, N_o, R), NaN where a row of theirs
    lacks the type. ``weights`` of tokens, (row, type) → (T,), make log π(y_u) their weighted sum.
    With ``step`` they are ⟨P ∇ log π(y_u), ∇ log π(y_o)⟩; the last, (2, N_o, R), is what its
    momentum and weight decay do to theirs, empty without a step.
    """
    check_fits(model, ours)
    check_fits(model, theirs)
    left, logps = step and step.left, np.empty((len(ours), len(names)))
    products = np.full((logps.size + 2 * (step is not None), len(theirs) * len(types)), np.nan)
    total = logps.size * sum(len(e.responses) for e in theirs)
    with undisturbed(model), bar("influence", "pair", progress, total) as shown:
        gradients = Gradients(model, [*ours, *theirs])
        for u in gradients.blocks(ours, 0.75 * memory, weights):
            check_logps(u.logps, "updates")
            at_u = _at(u.logps, names)
            logps.flat[at_u] = [*u.logps.values()]
            rows = [*at_u, *range(logps.size, len(products))]
            met, others = ({}, theirs) if weights else _met(u, ours, theirs)
            if met:
                found = inner_products(u, u, left).numpy()[:, [*met.values()]]
                products[np.ix_(rows, _at(met, types))] = found
                shown.update(found.size)
            for o in gradients.blocks(others, memory - u.nbytes):
                check_logps(o.logps, "probes")
                found = inner_products(u, o, left).numpy()
                products[np.ix_(rows, _at(o.logps, types))] = found
                shown.update(found.size)
    products, rest = np.split(products, [logps.size])
    shape = len(theirs), len(types)
    return logps, products.reshape(*logps.shape, *shape), rest.reshape(-1, *shape)


def _met(u: Block, ours: Sequence[Encoded], theirs: Sequence[Encoded]):
    """Their responses that are a block's too, (row, type) → its number there; and all the others.

    If they are few, none: products of the block with itself are those of all of it.
    """

    def key(row: Encoded, name: str) -> tuple:
        return *row.own.get(name, row.prompt), None, *row.responses[name]

    here = {key(ours[i], name): number for number, (i, name) in enumerate(u.logps)}
    every = {(i, name): key(row, name) for i, row in enumerate(theirs) for name in row.responses}
    met = {place: here[at] for place, at in every.items() if at in here}
    met, others = met if 2 * len(met) >= len(here) else {}, []
    for i, row in enumerate(theirs):
        kept = {name: ids for name, ids in row.responses.items() if (i, name) not in met}
        others.append(replace(row, responses=kept))
    return met, others


def _at(keys: Iterable[tuple[int, str]], names: Sequence[str]) -> list[int]:
    """Where responses, (row, type), stand in (rows · names,)."""
    return [row * len(names) + names.index(name) for row, name in keys]


def _adam(group: Mapping, state: Mapping, theta: Tensor, g: Tensor):
    (first, second), decay, lr = group["betas"], group["weight_decay"], group["lr"]
    apart, step = group["decoupled_weight_decay"], float(state.get("step", 0)) + 1
    whole = g if apart else g + decay * theta
    v = second * state.get("exp_avg_sq", 0) + (1 - second) * whole.square()
    size = lr / (1 - first**step) / ((v / (1 - second**step)).sqrt() + group["eps"])
    gain, momentum = (1 - first) * size, -first * size * state.get("exp_avg", 0)
    return gain, momentum, -decay * theta * (lr if apart else gain)


def _rmsprop(group: Mapping, state: Mapping, theta: Tensor, g: Tensor):
    decay, alpha = group["weight_decay"], group["alpha"]
    v = alpha * state.get("square_avg", 0) + (1 - alpha) * (g + decay * theta).square()
    gain = group["lr"] / (v.sqrt() + group["eps"])
    kept = group["momentum"] * state.get("momentum_buffer", torch.zeros_like(theta))
    return gain, -group["lr"] * kept, -decay * theta * gain


def _sgd(group: Mapping, state: Mapping, theta: Tensor, g: Tensor):
    kept = state.get("momentum_buffer")  # which the first step fills with g, undamped
    gain = group["lr"] * (1 if kept is None else 1 - group["dampening"])
    kept = torch.zeros_like(theta) if kept is None else group["momentum"] * kept
    return torch.full_like(theta, gain), -group["lr"] * kept, -gain * group["weight_decay"] * theta


_RULES = {"AdamW": _adam, "Adam": _adam, "RMSprop": _rmsprop, "SGD": _sgd}


class Step:
    """The next step of an optimizer: Δθ = −P g + what momentum and weight decay do, P diagonal.

    It is linear in the gradient g, once v̂ is known. A parameter without one stays, as in torch.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, model, gradients: Mapping[str, Tensor]):
        kind, weights = type(optimizer), trainable(model)
        if kind is not getattr(torch.optim, kind.__name__, None) or kind.__name__ not in _RULES:
            known = ", ".join(_RULES)
            raise ValueError(f"{kind.__name__} is none of torch's {known}: unwrap it, or pass none")
        self.rule, self.state = _RULES[kind.__name__], optimizer.state
        self.groups = {p: group for group in optimizer.param_groups for p in group["params"]}
        if other := [name for name, p in weights.items() if p not in self.groups]:
            what = f"the optimizer does not hold {other[0]}, which has requires_grad"
            raise ValueError(f"{what}: pass that of this model, or freeze what it does not move")
        for option in ("amsgrad", "centered", "maximize", "nesterov"):
            if any(group.get(option) for group in optimizer.param_groups):
                raise ValueError(f"{kind.__name__} with {option}=True is not known: leave it out")
        self.gradients = {weights[name]: g for name, g in gradients.items()}

    def parts(self, param: Tensor, rows: range, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """P, the momentum's part and decay's, of some rows with gradient g (…, D)."""
        state = {
            key: flat(x, param, rows).to(g.dtype) if getattr(x, "shape", 0) == param.shape else x
            for key, x in self.state.get(param, {}).items()
        }
        return self.rule(self.groups[param], state, flat(param, param, rows).to(g.dtype), g)

    def left(self, param: Tensor, rows: range, a: Tensor) -> Tensor:
        """(S + 2, D): P times the gradients (S, D), the momentum's part and decay's."""
        if param not in self.gradients:
            return a.new_zeros(len(a) + 2, a.shape[1])
        gain, *rest = self.parts(param, rows, flat(self.gradients[param], param, rows).to(a.dtype))
        return torch.cat([a * gain, *(x.expand(1, -1) for x in rest)])
