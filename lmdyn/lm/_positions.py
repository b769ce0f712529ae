"""Gradients of the hidden states at single positions of a sequence, and their inner products."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import one_hot

from lmdyn._trace import Call, _pixels, record
from lmdyn.lm import _pack
from lmdyn.lm._inner import dots

ROWS = 256  # gradients taken in one backward pass
HELD_BYTES = 2**30  # of the updates' gradients

# How the gradient of a weight is laid out: outputs first, outputs last, or without positions.
_LAYOUT = {"matrix": "first", "product": "last", "lookup": "last", "scale": "none"}


class Side:
    """One sequence: combinations of the logits at some of its positions, and their gradients.

    The combinations are all V logits, or one weighted sum of them at each position. Their
    gradients follow from a *basis*: all d hidden units, or one weighted sum. `lift` leads from
    the basis to the combinations.

    Args:
        model: a causal language model in eval mode, whose output layer is linear.
        ids: (T,) tokens.
        positions: P of them.
        generic: parameters that have uses of no known form.
    """

    def __init__(self, model, ids: Tensor, positions: Sequence[int], generic: set[Tensor]):
        self.ids, self.positions, self.head = ids, positions, _pack.head(model)
        self.generic = [p for p in model.parameters() if p in generic]
        tracked = {p for p in model.parameters() if p.requires_grad} - generic
        base = _pack._unwrap(model).base_model
        # The other kernels of attention cannot take many backward passes at once.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            self.trace = record(
                lambda: base(input_ids=ids[None], use_cache=False).last_hidden_state[0], tracked
            )
        with torch.no_grad():
            self.uses = [_Use.of(call) for call in self.trace.calls]
            self.states = self.trace.logits[list(positions)]
            self.logits = self.head(self.states)
        self.weights: Tensor | None = None

    def sum_logits(self, weights: Tensor) -> None:
        """Take one weighted sum at each position, weights (P, V), not all V logits."""
        self.weights = weights

    def residuals(self) -> Tensor:
        """(P, V): π − e_y at each position, y the token after it."""
        labels = self.ids[torch.tensor(self.positions, device=self.ids.device) + 1]
        return self.logits.softmax(-1) - one_hot(labels, self.logits.shape[1])

    def combinations(self, i: int) -> Tensor | None:
        """(q, V) weights of the logits at position i; None for the identity."""
        return None if self.weights is None else self.weights[i : i + 1]

    def basis(self, i: int) -> Tensor:
        """(q, d) weights of the hidden units at position i."""
        if self.weights is None:
            return torch.eye(self.states.shape[1]).to(self.states)
        return self.weights[i : i + 1] @ self.head.weight.detach()

    def lift(self, basis: Tensor) -> Tensor:
        """(q of the basis, n) -> (q of the combinations, n)."""
        return basis if self.weights is not None else self.head.weight.detach() @ basis

    def chunks(self) -> list[range]:
        """Numbers of positions whose gradients are taken together."""
        step = max(1, ROWS // len(self.basis(0)))
        n = len(self.positions)
        return [range(start, min(start + step, n)) for start in range(0, n, step)]

    def gradients(self, chunk: Sequence[int]) -> tuple[list[Tensor], dict[Tensor, Tensor]]:
        """Gradients of the bases at p positions, R = p·q of them.

        Returns:
            (R, T, f) for each use, the gradient of its output; parameter → (R, P), the gradient
            of each parameter that has no positions.
        """
        if not self.trace.logits.requires_grad:
            return [], {}
        bases = [self.basis(i) for i in chunk]
        q, d = bases[0].shape
        cotangents = bases[0].new_zeros(len(chunk), q, len(self.ids), d)
        for number, (i, basis) in enumerate(zip(chunk, bases, strict=True)):
            cotangents[number, :, self.positions[i]] = basis
        inputs = [call.edge for call in self.trace.calls] + self.generic
        grads = list(
            torch.autograd.grad(
                self.trace.logits,
                inputs,
                cotangents.flatten(0, 1),
                retain_graph=True,
                is_grads_batched=True,
                allow_unused=True,
                materialize_grads=True,
            )
        )
        deltas: list[Tensor] = []
        vectors: dict[Tensor, Tensor] = {}
        for use, call in zip(self.uses, self.trace.calls, strict=True):
            delta = call.channels_last(grads.pop(0)).flatten(1, -2)
            deltas.append(delta)
            if call.bias is not None:
                vectors[call.bias] = vectors.get(call.bias, 0) + delta.sum(1)
            if use.layout == "none":
                scaled = (delta * use.features).sum(1)
                vectors[call.weight] = vectors.get(call.weight, 0) + scaled
        vectors |= {p: grad.flatten(1) for p, grad in zip(self.generic, grads, strict=True)}
        return deltas, vectors

    def as_table(self, deltas: list[Tensor]) -> tuple[Tensor, Tensor] | None:
        """Rows (T,) of the output layer's weight, where it is also the table of embeddings, and
        their gradients (p, q, T, d)."""
        own = [i for i, use in enumerate(self.uses) if use.weight is self.head.weight]
        if not own:
            return None
        gradients = torch.cat([deltas[i] for i in own], 1)
        rows = torch.cat([self.uses[i].features for i in own])
        return rows, gradients.unflatten(0, (-1, len(self.basis(0))))


@dataclass
class _Use:
    """A use of weights: its features are (T, f), or (T,) rows of a table."""

    weight: Tensor | None
    layout: str | None
    features: Tensor | None
    known: bool

    @classmethod
    def of(cls, call: Call) -> "_Use":
        known = call.groups == 1 and call.channels_last is not _pixels
        if call.weight is None:
            return cls(None, None, None, known)
        features = call.features().detach()
        positions = features.shape[:-1].numel()
        known = known and positions == call.positions(1)
        known = known and (call.kind == "scale" or call.weight.ndim == 2)
        features = features.flatten() if call.kind == "lookup" else features.flatten(0, -2)
        return cls(call.weight, _LAYOUT[call.kind], features, known)


def sides(model, *sequences: tuple[Tensor, Sequence[int]]) -> list[Side]:
    """A side for each sequence (ids, positions), all with the same generic parameters."""
    generic: set[Tensor] = set()
    while True:
        found = [Side(model, ids, positions, generic) for ids, positions in sequences]
        layouts: dict[Tensor, set[str]] = {}
        bad = set().union(*(side.trace.unseen for side in found))
        for side in found:
            for use, call in zip(side.uses, side.trace.calls, strict=True):
                if not use.known:
                    bad |= {p for p in (call.weight, call.bias) if p is not None}
                layouts.setdefault(use.weight, set()).add(use.layout)
        bad |= {p for p, kinds in layouts.items() if p is not None and len(kinds) > 1}
        head = found[0].head.weight
        tied = [use for side in found for use in side.uses if use.weight is head]
        if head in bad or any(use.features.ndim == 2 for use in tied):
            raise ValueError("the weight of the output layer has another use than as embedding")
        if not bad:
            return found
        generic |= bad


def hidden_kernels(o: Side, u: Side) -> Iterator[tuple[range, range, Tensor, Tensor, Tensor]]:
    """Inner products of the bases' gradients, without those of the output layer.

    Yields:
        rows and columns, the numbers of p and r positions; their (p, q, r, q'); and for each side
        its `as_table`.
    """
    chunks, held = u.chunks(), []
    for number, columns in enumerate(chunks, 1):
        deltas, vectors = u.gradients(columns)
        seen_by_o = [_through(use, u.uses, deltas) for use in o.uses]
        held.append((columns, seen_by_o, vectors, u.as_table(deltas)))
        each = sum(t.nbytes for t in (*seen_by_o, *vectors.values()) if t is not None)
        if number < len(chunks) and (len(held) + 1) * each < HELD_BYTES:
            continue
        for rows in o.chunks():
            deltas_o, vectors_o = o.gradients(rows)
            table_o, shape = o.as_table(deltas_o), (len(rows), len(o.basis(0)))
            # Nothing lies after the last position: half of all products need not be taken.
            moved = [delta.ne(0).any(2).any(0).nonzero().flatten().tolist() for delta in deltas_o]
            for part, seen_by_o, vectors_u, table_u in held:
                k = o.states.new_zeros(*shape, len(part), len(u.basis(0)))
                flat = k.view(shape[0] * shape[1], -1)
                for delta, seen, tokens in zip(deltas_o, seen_by_o, moved, strict=True):
                    for t in tokens if seen is not None else ():
                        flat.addmm_(delta[:, t], seen[:, t].T)
                for p in vectors_o.keys() & vectors_u.keys():
                    flat.addmm_(vectors_o[p], vectors_u[p].T)
                yield rows, part, k, table_o, table_u
        held = []


def _through(use: _Use, others: list[_Use], deltas: list[Tensor]) -> Tensor | None:
    """Σ_s (x_t·x_s) δ_s over all other uses of this weight: (R, T, f)."""
    total = None
    for other, delta in zip(others, deltas, strict=True):
        if use.layout not in ("first", "last") or other.weight is not use.weight:
            continue
        shared = dots(use.features, other.features).to(delta)
        product = torch.einsum("ts,rsf->rtf", shared, delta)
        total = product if total is None else total + product
    return total
