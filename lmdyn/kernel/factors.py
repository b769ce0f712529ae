"""Per-example Jacobians of the logits, one unit of parameters at a time, in their cheapest form.

A unit is a weight with its bias. Its Jacobian for one example and one logit is a sum over
positions t (tokens, pixels, repeated calls) of outer products  δ_t ⊗ a_t.  Two exact forms:

- dense: the sum itself, P numbers for each example and logit;
- outer: the δ_t and a_t apart. K then is Σ_ts (δ_t·δ_s)(a_t·a_s), without any P (Novak et al.,
  2022: structured derivatives). It wins when positions are few.
"""

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lmdyn.kernel.trace import Call, Trace, by_example, forward, layouts, trace

# Up to this many examples share one forward pass: enough to fill the cores, small enough that
# their weights in the layout check stay far apart.
PASS_EXAMPLES = 64


class NotStructured(Exception):
    """These parameters cannot be told apart by example in this pass."""

    def __init__(self, params: set[Tensor]):
        self.params = params


@dataclass
class Unit:
    """A parameter, its uses as (call number, role), and the bias that shares all of them."""

    param: Tensor
    uses: list[tuple[int, str]]
    bias: Tensor | None = None
    outer: bool = False

    @property
    def size(self) -> int:
        return self.param.numel() + (0 if self.bias is None else self.bias.numel())


@dataclass
class Dense:
    """(n, V, P)."""

    jacobian: Tensor

    def add_gram(self, other: "Dense", out: Tensor) -> None:
        """out (n, V, m, V) += J Jᵀ."""
        n, v, m, w = out.shape
        left, right = self.jacobian.flatten(0, 1), other.jacobian.flatten(0, 1)
        out.view(n * v, m * w).addmm_(left, right.T)

    def __getitem__(self, rows: slice) -> "Dense":
        return Dense(self.jacobian[rows])


@dataclass
class Outer:
    """left (T, n, i), or (T, n) row numbers of a lookup table; right (T, n, V, o)."""

    left: Tensor
    right: Tensor
    with_bias: bool

    def add_gram(self, other: "Outer", out: Tensor) -> None:
        """out (n, V, m, V) += Σ_ts (δ_t·δ_s)(a_t·a_s + 1[bias])."""
        n, v, m, w = out.shape
        for a, delta in zip(self.left, self.right, strict=True):
            for b, epsilon in zip(other.left, other.right, strict=True):
                inputs = a @ b.T if a.is_floating_point() else a.unsqueeze(1) == b
                if self.with_bias:
                    inputs = inputs + 1
                outputs = delta.flatten(0, 1) @ epsilon.flatten(0, 1).T
                out.addcmul_(outputs.view(n, v, m, w), inputs.to(out.dtype)[:, None, :, None])

    def __getitem__(self, rows: slice) -> "Outer":
        return Outer(self.left[:, rows], self.right[:, rows], self.with_bias)


Factor = Dense | Outer


class Plan:
    """The units of a model, the form of each, and what an example costs.

    Args:
        model: any module with (N, V) logits.
        samples: batches of one example each, one for each shape that will come.
        params: the trainable parameters.
        generic: those already known to need the generic path.
    """

    def __init__(self, model: nn.Module, samples: list[Tensor], params: list, generic: set):
        self.model, self.params = model, params
        tracked = {p for p in params if p not in generic}
        traces = [trace(model, x, tracked) for x in samples]
        self.generic = generic.union(*(seen.unseen for seen in traces))
        self.n_calls = len(traces[0].calls)
        if any(len(seen.calls) != self.n_calls for seen in traces):
            self.generic = set(params)  # the control flow depends on the shape
        self.units = _units(traces[0].calls, params, self.generic)
        logits = traces[0].logits
        self.dtype, self.device, self.vocabulary = logits.dtype, logits.device, logits.shape[1]
        factor, passes = 0, 0
        for x, seen in zip(samples, traces, strict=True):
            forms = sum(_choose_form(u, seen.calls, self.vocabulary) for u in self.units)
            generic_form = self.vocabulary * sum(p.numel() for p in self.generic)
            factor = max(factor, forms + generic_form)
            held = sum(
                self.vocabulary * c.shape.numel() + 2 * c.features().numel() for c in seen.calls
            )
            passes = max(passes, held * self.dtype.itemsize + activation_bytes(model, x))
        self.factor_bytes, self.pass_bytes = factor * self.dtype.itemsize, passes

    def factors(self, x: Tensor, pass_examples: int) -> list[Factor]:
        """One factor for each unit, and one for the generic parameters if there are any."""
        parts = [self._structured(part) for part in x.split(pass_examples)] if self.units else []
        factors = [_concatenate(pieces) for pieces in zip(*parts, strict=True)]
        if self.generic:
            factors.append(self._generic(x))
        return factors

    def _structured(self, x: Tensor) -> list[Factor]:
        tracked = {p for p in self.params if p not in self.generic}
        seen = trace(self.model, x, tracked)
        found = {p for c in seen.calls for p in (c.weight, c.bias)}
        planned = {p for u in self.units for p in (u.param, u.bias)} | {None}
        if seen.unseen or found - planned or len(seen.calls) != self.n_calls:
            raise NotStructured(tracked)  # the control flow depends on the data
        features, deltas = _backward(seen)
        return [_factor(unit, seen.calls, features, deltas) for unit in self.units]

    def _generic(self, x: Tensor) -> Dense:
        """One example, one logit at a time: slow, and exact for whatever autograd can do."""
        params = [p for p in self.params if p in self.generic]
        rows = []
        for example in x.split(1):
            for value in forward(self.model, example)[0]:
                grads = torch.autograd.grad(value, params, retain_graph=True, allow_unused=True)
                rows.append(
                    torch.cat(
                        [
                            (torch.zeros_like(p) if g is None else g).flatten()
                            for p, g in zip(params, grads, strict=True)
                        ]
                    )
                )
        return Dense(torch.stack(rows).unflatten(0, (len(x), -1)))


def activation_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes that autograd keeps for a backward pass over ``model(x)``, weights aside."""
    weights = {p.data_ptr() for p in model.parameters()}
    sizes = {}

    def note(t: Tensor) -> Tensor:
        if t.data_ptr() not in weights:
            sizes[t.data_ptr()] = t.nbytes
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        model(x)
    return sum(sizes.values())


def _units(calls: list[Call], params: list, generic: set) -> list[Unit]:
    uses = defaultdict(list)
    for number, call in enumerate(calls):
        for role in ("weight", "bias"):
            param = getattr(call, role)
            if param is not None and param not in generic:
                uses[param].append((number, role))
    units, merged = [], set()
    for param in params:
        if param not in uses or param in merged or uses[param][0][1] == "bias":
            continue
        unit = Unit(param, uses[param])
        bias = calls[unit.uses[0][0]].bias
        shared = [(number, "bias") for number, _ in unit.uses]
        kinds = {calls[n].kind if role == "weight" else role for n, role in unit.uses}
        if kinds in ({"matrix"}, {"product"}) and bias in uses and uses[bias] == shared:
            unit.bias = bias
            merged.add(bias)
        units.append(unit)
    units += [
        Unit(p, uses[p])
        for p in params
        if p in uses and p not in merged and uses[p][0][1] == "bias"
    ]
    return units


def _choose_form(unit: Unit, calls: list[Call], v: int) -> int:
    """Set the cheaper form of a unit; return the numbers it holds for each example."""
    own = [calls[number] for number, _ in unit.uses]
    kinds = {
        (c.kind if role == "weight" else role) for c, (_, role) in zip(own, unit.uses, strict=True)
    }
    positions = sum(c.positions(1) for c in own)
    dense = v * unit.size
    unit.outer = False
    if kinds not in ({"matrix"}, {"product"}, {"lookup"}) or any(c.groups > 1 for c in own):
        return dense
    rows, columns = len(unit.param), unit.param[0].numel()
    channels, inputs = {
        "matrix": (rows, columns),
        "product": (columns, rows),
        "lookup": (columns, 1),
    }[kinds.pop()]
    # Costs of one pair of examples and logits; the 16 stands for the elementwise product.
    unit.outer = positions**2 * (channels + 16) < unit.size
    return positions * (v * channels + inputs) if unit.outer else dense


def _backward(seen: Trace) -> tuple[list[Tensor], list[Tensor]]:
    """By example, for each call: features (n, T, f) and output gradients (n, V, T, c).

    One more backward pass weights the examples differently. A row of an output whose gradient
    grows by just its example's weight belongs to that example and to no other: this checks the
    arrangement of rows, and that examples do not leak into each other.
    """
    n, v = seen.logits.shape
    z = seen.logits
    generator = torch.Generator().manual_seed(0)
    signs = torch.randn(v, generator=generator, dtype=torch.float64).to(z)
    weights = torch.linspace(1, 2, n, dtype=z.dtype, device=z.device)
    edges = [c.edge for c in seen.calls]

    def gradients(cotangent):
        grads = torch.autograd.grad(z, edges, cotangent, retain_graph=True, allow_unused=True)
        return [
            torch.zeros(c.shape, dtype=z.dtype, device=z.device) if g is None else g
            for c, g in zip(seen.calls, grads, strict=True)
        ]

    probe = gradients(weights[:, None] * signs)
    by_logit = [
        gradients(unit)
        for unit in torch.eye(v, dtype=z.dtype, device=z.device)[:, None].expand(v, n, v)
    ]
    features, deltas, unclear = [], [], set()
    for number, call in enumerate(seen.calls):
        grads = [call.channels_last(g[number]) for g in by_logit]
        total = sum(s * g for s, g in zip(signs, grads, strict=True))
        weighted = call.channels_last(probe[number])
        for layout in layouts(call, n):
            expected = by_example(total, layout, n)
            if _scales(by_example(weighted, layout, n), expected, weights):
                with torch.no_grad():
                    features.append(by_example(call.features().detach(), layout, n))
                deltas.append(torch.stack([by_example(g, layout, n) for g in grads], 1))
                break
        else:
            unclear |= {p for p in (call.weight, call.bias) if p is not None}
    if unclear:
        raise NotStructured(unclear)
    return features, deltas


def _scales(weighted: Tensor, total: Tensor, weights: Tensor) -> bool:
    """Whether each position's gradient is its example's weight times the unweighted one."""
    norm = total.square().sum(-1)
    error = (weighted - weights[:, None, None] * total).square().sum(-1)
    tolerance = 64 * torch.finfo(total.dtype).eps  # squared
    return bool((error <= tolerance * (norm + 1e-4 * norm.mean())).all())


def _factor(unit: Unit, calls: list[Call], features: list, deltas: list) -> Factor:
    if unit.outer:
        left = torch.cat([features[number] for number, _ in unit.uses], 1)
        right = torch.cat([deltas[number] for number, _ in unit.uses], 2)
        if calls[unit.uses[0][0]].kind == "lookup":
            left = left.squeeze(-1)
        return Outer(
            left.transpose(0, 1).contiguous(),
            right.permute(2, 0, 1, 3).contiguous(),
            unit.bias is not None,
        )
    parts = [
        _per_example(calls[number], role, features[number], deltas[number], unit)
        for number, role in unit.uses
    ]
    return Dense(sum(parts))


def _per_example(call: Call, role: str, features: Tensor, delta: Tensor, unit: Unit) -> Tensor:
    """The unit's gradient from one call: (n, V, P), from (n, T, f) and (n, V, T, c)."""
    n, v, positions, channels = delta.shape
    if role == "bias":
        return delta.sum(2)
    if call.kind == "scale":
        return (delta * features.unsqueeze(1)).sum(2)
    if call.kind == "lookup":
        rows = features.squeeze(-1)[:, None, :, None].expand(n, v, positions, channels)
        table = delta.new_zeros(n, v, *unit.param.shape)
        return table.scatter_add_(2, rows, delta).flatten(2)
    features = features.unflatten(-1, (call.groups, -1))
    if unit.bias is not None:
        features = torch.cat([features, torch.ones_like(features[..., :1])], -1)
    delta = delta.unflatten(-1, (call.groups, -1))
    layout = "nvgio" if call.kind == "product" else "nvgoi"
    return torch.einsum(f"nvtgo,ntgi->{layout}", delta, features).flatten(2)


def _concatenate(pieces: tuple[Factor, ...]) -> Factor:
    if len(pieces) == 1:
        return pieces[0]
    if isinstance(pieces[0], Dense):
        return Dense(torch.cat([p.jacobian for p in pieces]))
    return Outer(
        torch.cat([p.left for p in pieces], 1),
        torch.cat([p.right for p in pieces], 1),
        pieces[0].with_bias,
    )
