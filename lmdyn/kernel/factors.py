"""Per-example Jacobians of the logits, each parameter's in its cheapest form.

The Jacobian of a weight for one example and one logit is a sum over positions t (tokens, pixels,
repeated calls) of outer products  δ_t ⊗ a_t.  Two exact forms:

- dense: the sum itself, P numbers for each example and logit, all such parameters side by side;
- outer: the δ_t and a_t apart. K then is Σ_ts (δ_t·δ_s)(a_t·a_s), without any P (Novak et al.,
  2022: structured derivatives). It wins when positions are few.
"""

import math
import warnings
from collections import defaultdict

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from lmdyn.kernel.trace import Call, Trace, dots, forward, record

CHUNK_BYTES = 2**28  # that the factors of a block of examples, or a pass over some, may take
# Up to this many share one pass: they fill the cores, and their weights in a check stay far apart.
PASS_EXAMPLES = 50
LOGITS = 16  # that share a backward pass, which then keeps as many times what it keeps for one
ELEMENTWISE = 16  # operations that the product of an entry costs, in the choice between the forms

# The Jacobian for n examples: the δ_t (n, T, V, o), and the a_t (n, T, i), or rows of a table
# (n, T). In the dense form: itself (n, 1, V, P), and None.
Factor = tuple[Tensor, Tensor | None]


def add_gram(k: Tensor, ours: Factor, theirs: Factor) -> None:
    """k (n·V, m·V) += J Jᵀ."""
    (deltas, left), (epsilons, right) = ours, theirs
    for t, delta in enumerate(deltas.unbind(1)):
        for s, epsilon in enumerate(epsilons.unbind(1)):
            delta, epsilon = delta.flatten(0, -2), epsilon.flatten(0, -2)
            if left is None:
                k.addmm_(delta, epsilon.T)
                continue
            inputs = dots(left[:, t], right[:, s]).to(k.dtype)
            n, m = inputs.shape
            inputs = inputs.repeat_interleave(len(epsilon) // m, 1).unsqueeze(1)
            k.unflatten(0, (n, -1)).addcmul_((delta @ epsilon.T).unflatten(0, (n, -1)), inputs)


class Plan:
    """Which parameters take the generic path and which the outer form, and how much fits.

    As found with ``x``, one example of the largest shape that will come; its logits, (1, V), stay.
    The factors of ``block`` examples fit, and ``together`` share a pass. Factors lack parameters
    that are ``unclear``: they turned out to need the generic path, besides those given.
    """

    def __init__(self, model: nn.Module, x: Tensor, params: list, generic: set):
        self.model, self.params, self.generic, self.unclear = model, params, generic, set()
        seen = record(lambda: forward(model, x), set(params) - generic)
        self.generic = generic | seen.unseen
        self.logits, v = seen.output.detach(), seen.output.shape[1]
        self.outer: list[tuple[Tensor, ...]] = []
        numbers = v * sum(p.numel() for p in params)
        for unit, calls in _units(seen.calls).items():
            positions = sum(call.grad_shape[:-1].numel() for call in calls)
            channels, inputs = calls[0].grad_shape[-1], calls[0].features().shape[-1]
            alike = {(call.kind, call.groups) for call in calls}
            separable = alike in ({("matrix", 1)}, {("product", 1)}, {("lookup", 1)})
            cheap = positions**2 * (channels + ELEMENTWISE) < unit[0].numel()
            if unit[0] is calls[0].weight and separable and cheap:
                numbers += positions * (v * channels + inputs) - v * sum(p.numel() for p in unit)
                self.outer.append(unit)
        held = sum(v * c.grad_shape.numel() + 2 * c.features().numel() for c in seen.calls)
        fit = CHUNK_BYTES // self.logits.itemsize
        self.block = max(1, fit // (2 * numbers))
        together = PASS_EXAMPLES, self.block, fit // max(1, held), math.isqrt(fit) // v
        self.together = max(1, min(together))

    def factors(self, x: Tensor) -> list[Factor]:
        """The factors of the outer parameters, and one of all the others, from one pass."""
        seen = record(lambda: forward(self.model, x), set(self.params) - self.generic)
        units = _units(seen.calls)
        self.unclear |= seen.unseen.union(*(unit for unit in self.outer if unit not in units))
        found = {} if self.unclear or not seen.calls else self._by_example(seen)
        if self.unclear:
            return []
        factors, jacobians = [], {}
        for unit in self.outer:
            calls = units.pop(unit)
            pairs = zip(*(found[call] for call in calls), strict=True)
            left, deltas = (torch.cat(parts, 1) for parts in pairs)
            left = left.squeeze(-1) if calls[0].kind == "lookup" else left
            factors.append((deltas, pad(left, (0, len(unit) - 1), value=1)))  # a bias sees 1
        for unit, calls in units.items():
            for param in unit:
                jacobians[param] = sum(_per_example(param, call, *found[call]) for call in calls)
        unused = seen.output.new_zeros(()).expand(*seen.output.shape, 1)
        others = set(self.params) - self.generic.union(*self.outer)
        each = {p: unused.expand(-1, -1, p.numel()) for p in self.params if p in others}
        dense = [*(each | jacobians).values(), *([self._generic(x)] if self.generic else [])]
        return factors + ([(torch.cat(dense, -1).unsqueeze(1), None)] if dense else [])

    def _by_example(self, seen: Trace) -> dict[Call, tuple[Tensor, Tensor]]:
        """For each call, features (n, T, f) and output gradients (n, T, V, c)."""
        z, calls = seen.output, seen.calls
        n, v = z.shape

        def gradients(cotangent):
            edges = [call.edge for call in calls]
            grads = torch.autograd.grad(z, edges, cotangent, retain_graph=True, allow_unused=True)
            return [
                z.new_zeros(call.grad_shape) if grad is None else call.channels_last(grad)
                for call, grad in zip(calls, grads, strict=True)
            ]

        signs = torch.randn(v, generator=torch.Generator().manual_seed(0)).to(z)
        weights = torch.linspace(1, 2, n, dtype=z.dtype, device=z.device)[:, None]
        units = torch.eye(v, dtype=z.dtype, device=z.device)[:, None].expand(v, n, v)
        try:
            with warnings.catch_warnings(action="ignore"):  # where it can, but slowly
                each = torch.vmap(gradients, chunk_size=LOGITS)(units)  # of each call (V, rows, …)
        except RuntimeError:  # a backward pass that does not take several logits at once
            each = [torch.stack(of) for of in zip(*map(gradients, units), strict=True)]
        plain = (torch.tensordot(signs, grads, 1) for grads in each)
        pairs = zip(plain, gradients(weights * signs), strict=True)
        axes = [_examples_axis(*pair, weights) for pair in pairs]
        self.unclear.update(*(c.params for c, a in zip(calls, axes, strict=True) if a is None))
        if self.unclear:
            return {}
        by_rows = torch.vmap(_by_rows, (0, None, None), 2)
        deltas = [by_rows(grads, n, axis) for grads, axis in zip(each, axes, strict=True)]
        features = [_by_rows(c.features().detach(), n, a) for c, a in zip(calls, axes, strict=True)]
        return dict(zip(calls, zip(features, deltas, strict=True), strict=True))

    def _generic(self, x: Tensor) -> Tensor:
        """(n, V, P), one example, one logit at a time: slow, and exact for any operation."""
        params = [p for p in self.params if p in self.generic]
        rows = []
        for example in x.split(1):
            for z in forward(self.model, example)[0]:
                grads = torch.autograd.grad(z, params, retain_graph=True, materialize_grads=True)
                rows.append(torch.cat([grad.flatten() for grad in grads]))
        return torch.stack(rows).unflatten(0, (len(x), -1))


def _units(calls: list[Call]) -> dict[tuple[Tensor, ...], tuple[Call, ...]]:
    """Parameters that all their calls share, such as a weight and its bias → these calls."""
    uses, units = defaultdict(tuple), defaultdict(tuple)
    for call in calls:
        for param in (call.weight, call.bias):
            uses[param] += (call,)
    for param, its in uses.items():
        units[its] += () if param is None else (param,)
    return {unit: its for its, unit in units.items() if unit}


def _examples_axis(plain: Tensor, weighted: Tensor, weights: Tensor) -> int | None:
    """How the rows of a call's output belong to examples, as in `_by_rows`; None if to none alone.

    A row whose gradient grows by just its example's weight belongs to that example and to no
    other: this checks the arrangement of rows, and that examples do not leak into each other.
    """
    n = len(weights)
    for axis in (0, 1) if plain.shape[:-1].numel() % n == 0 else ():
        expected, found = _by_rows(plain, n, axis), _by_rows(weighted, n, axis)
        norm = expected.square().sum(-1)
        error = (found - weights.unsqueeze(-1) * expected).square().sum(-1)
        tolerance = 64 * torch.finfo(plain.dtype).eps  # squared
        if (error <= tolerance * (norm + 1e-4 * norm.mean())).all():
            return axis
    return None


def _by_rows(t: Tensor, n: int, axis: int) -> Tensor:
    """(rows, …, f) -> (n, T, f): rows are examples × positions (axis 0), or the reverse (1)."""
    shape = (n, -1) if axis == 0 else (-1, n)
    return t.reshape(*shape, t.shape[-1]).transpose(0, axis)


def _per_example(param: Tensor, call: Call, features: Tensor, delta: Tensor) -> Tensor:
    """The gradient (n, V, P) from one call, as in `Plan._by_example`."""
    if param is call.bias:
        return delta.sum(1)
    if call.kind == "scale":
        return (delta * features.unsqueeze(2)).sum(1)
    if call.kind == "lookup":
        delta = delta.transpose(1, 2)
        table = delta.new_zeros(*delta.shape[:2], *param.shape)
        return table.scatter_add_(2, features.unsqueeze(1).expand(delta.shape), delta).flatten(2)
    layout = "nvgio" if call.kind == "product" else "nvgoi"
    features, delta = (t.unflatten(-1, (call.groups, -1)) for t in (features, delta))
    return torch.einsum(f"ntvgo,ntgi->{layout}", delta, features).flatten(2)
