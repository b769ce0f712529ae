"""K between positions, a column at a time: back through the update, forward through the observed.

A column of K_ml is what one small step does to all logits at m: the step J_lᵀe. For a layer
y = x Wᵀ the step moves W by Σ_s δ_s ⊗ x_s, with δ from one backward pass through the update. In
the observed sequence that adds Σ_s (x_t·x_s) δ_s to the layer's output at t: no step over the
parameters is ever formed. One forward-mode pass leads from there to all positions m at once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import one_hot

from lmdyn.kernel.trace import Call, Shift, _pixels, record
from lmdyn.lm import forward
from lmdyn.lm._inner import dots

ROWS = 256  # steps taken together
HELD_BYTES = 2**29  # of their δ

# How the gradient of a weight is laid out: outputs first, outputs last, or without positions.
_LAYOUT = {"matrix": "first", "product": "last", "lookup": "last", "scale": "none"}


@dataclass
class _Use:
    """A use of weights: its features are (T, f), or (T,) rows of a table."""

    call: Call
    layout: str | None
    features: Tensor | None
    known: bool

    @classmethod
    def of(cls, call: Call) -> "_Use":
        known = call.groups == 1 and call.channels_last is not _pixels
        if call.weight is None:
            return cls(call, None, None, known)
        features = call.features().detach()
        known = known and features.shape[:-1].numel() == call.positions(1)
        known = known and (call.kind == "scale" or call.weight.ndim == 2)
        features = features.flatten() if call.kind == "lookup" else features.flatten(0, -2)
        return cls(call, _LAYOUT[call.kind], features, known)


class Side:
    """One sequence, its hidden states and logits at some positions, and how weights reach them.

    Args:
        model: a causal language model in eval mode, whose output layer is linear.
        ids: (T,) tokens.
        positions: P of them.
        generic: parameters that have uses of no known form.
    """

    def __init__(self, model, ids: Tensor, positions: Sequence[int], generic: set[Tensor]):
        self.ids, self.positions, self.head = ids, list(positions), forward.head(model)
        self.base = forward.body(model)
        self.generic = {n: p for n, p in self.base.named_parameters() if p in generic}
        self.tracked = {p for p in model.parameters() if p.requires_grad} - generic
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the others have no batches
            self.trace = record(lambda: self._run({})[0], self.tracked)
        with torch.no_grad():
            self.uses = [_Use.of(call) for call in self.trace.calls]
            self.states = self.trace.logits.detach()[self.positions]
            self.logits = self.head(self.states)

    def _run(self, weights: dict[str, Tensor]) -> Tensor:
        inputs = {"input_ids": self.ids[None], "use_cache": False}
        return functional_call(self.base, weights, (), inputs).last_hidden_state

    def residuals(self) -> Tensor:
        """(P, V): π − e_y at each position, y the token after it."""
        labels = self.ids[torch.tensor(self.positions, device=self.ids.device) + 1]
        return self.logits.softmax(-1) - one_hot(labels, self.logits.shape[1])

    def table(self) -> list[int]:
        """The uses of the output layer's weight as the table of embeddings."""
        weight = self.head.weight
        return [i for i, use in enumerate(self.uses) if use.call.weight is weight]

    def backward(
        self, positions: Sequence[int], weights: Tensor
    ) -> tuple[list[Tensor], dict[Tensor, Tensor]]:
        """Gradients of sums of hidden units, weights (p, q, d), at p of the positions.

        Returns:
            (p·q, T, f) for each use, the gradient of its output; parameter → (p·q, …), that of
            each parameter without positions.
        """
        if not self.trace.logits.requires_grad:
            return [], {}
        p, q, d = weights.shape
        cotangents = weights.new_zeros(p, q, len(self.ids), d)
        for number, i in enumerate(positions):
            cotangents[number, :, self.positions[i]] = weights[number]
        inputs = [use.call.edge for use in self.uses] + list(self.generic.values())
        grads = torch.autograd.grad(
            self.trace.logits,
            inputs,
            cotangents.flatten(0, 1),
            retain_graph=True,
            is_grads_batched=True,
            allow_unused=True,
            materialize_grads=True,
        )
        deltas: list[Tensor] = []
        vectors: dict[Tensor, Tensor] = {}
        for use, grad in zip(self.uses, grads[: len(self.uses)], strict=True):
            weight, bias = use.call.weight, use.call.bias
            delta = use.call.channels_last(grad).flatten(1, -2)
            deltas.append(delta)
            if bias is not None:
                vectors[bias] = vectors.get(bias, 0) + delta.sum(1)
            if use.layout == "none":
                vectors[weight] = vectors.get(weight, 0) + (delta * use.features).sum(1)
        return deltas, vectors | dict(
            zip(self.generic.values(), grads[len(self.uses) :], strict=True)
        )

    def forward(self, shifts: dict[int, Tensor], moves: dict[Tensor, Tensor], rows: int) -> Tensor:
        """(R, P, d): how the hidden states move with the outputs of uses and generic parameters.

        Args:
            shifts: the number of a use → (R, T, f).
            moves: generic parameter → (R, …).
            rows: R.
        """
        if not shifts and not moves:
            return self.states.new_zeros(rows, *self.states.shape)
        calls = [self.uses[i].call for i in shifts]
        ways = [
            call.channels_last(shift.reshape(rows, *call.shape))
            for call, shift in zip(calls, shifts.values(), strict=True)
        ]
        still = [torch.zeros_like(way[0]) for way in ways]
        names = [name for name, p in self.generic.items() if p in moves]
        ways += [moves[self.generic[name]] for name in names]
        still += [self.generic[name].detach() for name in names]
        numbers = [call.number for call in calls]

        def states(*values):
            weights = dict(zip(names, values[len(calls) :], strict=True))
            with Shift(self.tracked, dict(zip(numbers, values, strict=False))):
                return self._run(weights)[0, self.positions]

        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            return vmap(lambda *ways: jvp(states, tuple(still), ways)[1])(*ways)


def sides(model, *sequences: tuple[Tensor, Sequence[int]]) -> list[Side]:
    """A side for each sequence (ids, positions), all with the same generic parameters."""
    generic: set[Tensor] = set()
    while True:
        found = [Side(model, ids, positions, generic) for ids, positions in sequences]
        layouts: dict[Tensor, set[str]] = {}
        bad = set().union(*(side.trace.unseen for side in found))
        for use in (use for side in found for use in side.uses):
            if not use.known:
                bad |= {p for p in (use.call.weight, use.call.bias) if p is not None}
            if use.call.weight is not None:
                layouts.setdefault(use.call.weight, set()).add(use.layout)
        bad |= {p for p, kinds in layouts.items() if len(kinds) > 1}
        if found[0].head.weight in bad or layouts.get(found[0].head.weight, {"last"}) != {"last"}:
            raise ValueError("the weight of the output layer has another use than as embedding")
        if not bad:
            return found
        generic |= bad


def columns(o: Side, u: Side, sums: Tensor | None = None) -> Iterator[tuple[int, Tensor]]:
    """K_ml zᵀ for each position l of the update: z sums of its logits, or each of them.

    Args:
        o: the M observed positions.
        u: the L positions of the update.
        sums: (L, q, V), what to sum at l; None for the identity, q = V.

    Yields:
        The number of a position l, and (M, V, q).
    """
    w = o.head.weight.detach()
    # All logits are sums of the d hidden units, so d steps are enough for them.
    eye = torch.eye(w.shape[1], dtype=w.dtype, device=w.device)
    q = len(eye) if sums is None else sums.shape[1]
    held = sum(use.call.shape.numel() for use in u.uses) * w.itemsize
    size = max(1, min(ROWS, HELD_BYTES // (held + 1)) // q)
    for chunk in torch.arange(len(u.positions)).split(size):
        weights = eye.expand(len(chunk), -1, -1) if sums is None else sums[chunk] @ w
        deltas, vectors = u.backward(chunk.tolist(), weights)
        shifts = _shifts(o, u, deltas, vectors)
        if sums is not None:
            for i in o.table():  # the output layer's own part of the step, as it is the table
                rows = sums[chunk][:, :, o.uses[i].features].unsqueeze(-1)
                shifts[i] = shifts[i] + (rows * u.states[chunk, None, None]).flatten(0, 1)
        moves = {p: vectors[p] for p in o.generic.values() if p in vectors}
        moved = o.forward(shifts, moves, len(chunk) * q).unflatten(0, (len(chunk), q))
        for number, j in enumerate(chunk.tolist()):
            found = torch.einsum("vd,qmd->mvq", w, moved[number])
            z = None if sums is None else sums[j]
            gradients = [deltas[i].unflatten(0, (-1, q))[number] for i in u.table()]
            if z is None:
                found = found @ w.T
                gradients = [torch.einsum("vk,ktd->vtd", w, g) for g in gradients]
                _add_table(found, o, u.states[j])
            _add_output_layer(found, o, u.states[j], z)
            for i, gradient in zip(u.table(), gradients, strict=True):
                seen = torch.einsum("qtd,md->mtq", gradient, o.states)
                found.index_add_(1, u.uses[i].features, seen)
            yield j, found


def _shifts(
    o: Side, u: Side, deltas: list[Tensor], vectors: dict[Tensor, Tensor]
) -> dict[int, Tensor]:
    """How steps on the update move the outputs of the uses in the observed sequence: (R, T, f)."""
    shifts: dict[int, Tensor] = {}
    for i, use in enumerate(o.uses):
        weight, bias = use.call.weight, use.call.bias
        parts = []
        if use.layout == "none" and weight in vectors:
            parts.append(vectors[weight].unsqueeze(1) * use.features)
        elif use.layout in ("first", "last"):
            for other, delta in zip(u.uses, deltas, strict=True):
                if other.call.weight is weight:
                    near = dots(use.features, other.features).to(delta)
                    parts.append(torch.einsum("ts,rsf->rtf", near, delta))
        if bias in vectors:
            parts.append(vectors[bias].unsqueeze(1).expand(-1, use.call.positions(1), -1))
        if parts:
            shifts[i] = sum(parts)
    return shifts


def _add_output_layer(found: Tensor, o: Side, state: Tensor, z: Tensor | None) -> None:
    """∂z_v/∂W = e_v ⊗ h and ∂z_v/∂b = e_v."""
    weight, bias = (p is not None and p.requires_grad for p in (o.head.weight, o.head.bias))
    own = weight * (o.states @ state) + bias
    if z is None:
        found.diagonal(dim1=1, dim2=2).add_(own.unsqueeze(1))
    else:
        found += own[:, None, None] * z.T


def _add_table(found: Tensor, o: Side, state: Tensor) -> None:
    """What a step on each row of the output layer does where it is the table of embeddings."""
    for i in o.table():
        ids, rows = o.uses[i].features.unique(return_inverse=True)
        shift = one_hot(rows).T.unsqueeze(-1) * state  # (tokens, T, d)
        moved = o.forward({i: shift}, {}, len(ids))
        found[:, :, ids] += torch.einsum("vd,nmd->mvn", o.head.weight.detach(), moved)
