"""Per-example Jacobians of the logits, one unit of parameters at a time, in their cheapest form.

A unit is a weight with its bias. Its Jacobian for one example and one logit is a sum over
positions t (tokens, pixels, repeated calls) of outer products  δ_t ⊗ a_t.  Two exact forms:

- dense: the sum itself, P numbers for each example and logit;
- outer: the δ_t and a_t apart. K then is Σ_ts (δ_t·δ_s)(a_t·a_s), without any P (Novak et al.,
  2022: structured derivatives). It wins when positions are few.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lmdyn.kernel.trace import Call, Trace, dots, forward, trace

# Up to this many examples share one forward pass: enough to fill the cores, small enough that
# their weights in the layout check stay far apart.
PASS_EXAMPLES = 64
# Operations that the elementwise product of an entry costs, in the choice between the two forms.
ELEMENTWISE = 16


@dataclass
class Factor:
    """A unit's Jacobian for n examples.

    Attributes:
        right: (T, n, V, o), the δ_t; in the dense form the Jacobian itself, (1, n, V, P).
        left: (T, n, i), the a_t, or (T, n) rows of a table; None in the dense form.
        with_bias: whether a bias adds 1 to every a_t·a_s.
    """

    right: Tensor
    left: Tensor | None = None
    with_bias: bool = False

    def add_gram(self, other: "Factor", out: Tensor) -> None:
        """out (n, V, m, V) += J Jᵀ."""
        n, v, m, w = out.shape
        for t, delta in enumerate(self.right.flatten(1, 2)):
            for s, epsilon in enumerate(other.right.flatten(1, 2)):
                if self.left is None:
                    out.view(n * v, m * w).addmm_(delta, epsilon.T)
                    continue
                inputs = dots(self.left[t], other.left[s])
                if self.with_bias:
                    inputs = inputs + 1
                outputs = (delta @ epsilon.T).view(n, v, m, w)
                out.addcmul_(outputs, inputs.to(out.dtype)[:, None, :, None])

    def __getitem__(self, rows: slice) -> "Factor":
        left = None if self.left is None else self.left[:, rows]
        return Factor(self.right[:, rows], left, self.with_bias)

    @staticmethod
    def concatenate(parts: Sequence["Factor"]) -> "Factor":
        """The factor of all their examples."""
        first = parts[0]
        if len(parts) == 1:
            return first
        left = None if first.left is None else torch.cat([part.left for part in parts], 1)
        return Factor(torch.cat([part.right for part in parts], 1), left, first.with_bias)


@dataclass
class Unit:
    """A parameter, its uses as (call number, kind), and the bias that shares all of them."""

    param: Tensor
    uses: list[tuple[int, str]]
    bias: Tensor | None = None
    outer: bool = False

    @property
    def size(self) -> int:
        return self.param.numel() + (0 if self.bias is None else self.bias.numel())

    @property
    def kind(self) -> str | None:
        """The kind of its uses, or "bias"; None if they are of several."""
        kinds = {kind for _, kind in self.uses}
        return kinds.pop() if len(kinds) == 1 else None

    @property
    def widths(self) -> tuple[int, int]:
        """Numbers that a position holds: of the output's gradient, of the features."""
        rows, columns = len(self.param), self.param[0].numel()
        return {"matrix": (rows, columns), "product": (columns, rows), "lookup": (columns, 1)}[
            self.kind
        ]

    def positions(self, calls: list[Call]) -> int:
        return sum(calls[number].positions(1) for number, _ in self.uses)

    def numbers(self, calls: list[Call], v: int) -> int:
        """What its factor holds for each example."""
        if not self.outer:
            return v * self.size
        channels, inputs = self.widths
        return self.positions(calls) * (v * channels + inputs)


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
        traces = [trace(model, x, set(params) - generic) for x in samples]
        self.generic = generic.union(*(seen.unseen for seen in traces))
        self.n_calls = len(traces[0].calls)
        if any(len(seen.calls) != self.n_calls for seen in traces):
            self.generic = set(params)  # the control flow depends on the shape
        self.units = _units(traces[0].calls, params, self.generic)
        for unit in self.units:
            _choose_form(unit, traces)
        logits = traces[0].output
        self.dtype, self.device, self.vocabulary = logits.dtype, logits.device, logits.shape[1]
        self.factor_bytes = self.dtype.itemsize * max(map(self._factor_numbers, traces))
        self.pass_bytes = max(map(self._pass_bytes, samples, traces))

    def _factor_numbers(self, seen: Trace) -> int:
        generic = self.vocabulary * sum(p.numel() for p in self.generic)
        return generic + sum(unit.numbers(seen.calls, self.vocabulary) for unit in self.units)

    def _pass_bytes(self, x: Tensor, seen: Trace) -> int:
        held = sum(self.vocabulary * c.shape.numel() + 2 * c.features().numel() for c in seen.calls)
        return held * self.dtype.itemsize + activation_bytes(self.model, x)

    def factors(self, x: Tensor, pass_examples: int) -> tuple[list[Factor], set[Tensor]]:
        """One factor for each unit, and one for the generic parameters if there are any.

        Returns:
            The factors, and the parameters whose gradients could not be told apart by example; if
            there are any, the factors are not complete.
        """
        parts = []
        for part in x.split(pass_examples) if self.units else ():
            factors, unclear = self._structured(part)
            if unclear:
                return [], unclear
            parts.append(factors)
        factors = [Factor.concatenate(pieces) for pieces in zip(*parts, strict=True)]
        if self.generic:
            factors.append(self._generic(x))
        return factors, set()

    def _structured(self, x: Tensor) -> tuple[list[Factor], set[Tensor]]:
        tracked = set(self.params) - self.generic
        seen = trace(self.model, x, tracked)
        found = set().union(*(call.params for call in seen.calls))
        planned = {p for unit in self.units for p in (unit.param, unit.bias)}
        if seen.unseen or found - planned or len(seen.calls) != self.n_calls:
            return [], tracked  # the control flow depends on the data
        features, deltas, unclear = _backward(seen)
        if unclear:
            return [], unclear
        return [_factor(unit, seen.calls, features, deltas) for unit in self.units], set()

    def _generic(self, x: Tensor) -> Factor:
        """One example, one logit at a time: slow, and exact for whatever autograd can do."""
        params = [p for p in self.params if p in self.generic]
        rows = []
        for example in x.split(1):
            for value in forward(self.model, example)[0]:
                grads = torch.autograd.grad(
                    value, params, retain_graph=True, allow_unused=True, materialize_grads=True
                )
                rows.append(torch.cat([grad.flatten() for grad in grads]))
        return Factor(torch.stack(rows).unflatten(0, (1, len(x), -1)))


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
        for param, kind in ((call.weight, call.kind), (call.bias, "bias")):
            if param is not None and param not in generic:
                uses[param].append((number, kind))
    units, merged = [], set()
    # Weights come first, as some biases join them.
    for param in sorted((p for p in params if p in uses), key=lambda p: uses[p][0][1] == "bias"):
        if param in merged:
            continue
        unit = Unit(param, uses[param])
        bias = calls[unit.uses[0][0]].bias
        shared = [(number, "bias") for number, _ in unit.uses]
        if unit.kind in ("matrix", "product") and bias in uses and uses[bias] == shared:
            unit.bias = bias
            merged.add(bias)
        units.append(unit)
    return units


def _choose_form(unit: Unit, traces: list[Trace]) -> None:
    """Set the form in which a pair of examples and logits costs less."""
    grouped = any(traces[0].calls[number].groups > 1 for number, _ in unit.uses)
    if unit.kind in ("matrix", "product", "lookup") and not grouped:
        pairs = unit.positions(traces[0].calls) * unit.positions(traces[-1].calls)
        unit.outer = pairs * (unit.widths[0] + ELEMENTWISE) < unit.size


def _backward(seen: Trace) -> tuple[list[Tensor], list[Tensor], set[Tensor]]:
    """By example, for each call: features (n, T, f) and output gradients (n, V, T, c).

    One more backward pass weights the examples differently: from it `_layout` finds the rows of
    each example. The third value are the parameters for which it finds none.
    """
    n, v = seen.output.shape
    z = seen.output
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
    units = torch.eye(v, dtype=z.dtype, device=z.device)[:, None].expand(v, n, v)
    by_logit = [gradients(unit) for unit in units]
    features, deltas, unclear = [], [], set()
    for number, call in enumerate(seen.calls):
        grads = [call.channels_last(g[number]) for g in by_logit]
        total = sum(s * g for s, g in zip(signs, grads, strict=True))
        layout = _layout(call, total, call.channels_last(probe[number]), weights)
        if layout is None:
            unclear |= call.params
            continue
        with torch.no_grad():
            features.append(_by_example(call.features().detach(), layout, n))
        deltas.append(torch.stack([_by_example(g, layout, n) for g in grads], 1))
    return features, deltas, unclear


def _layout(call: Call, total: Tensor, weighted: Tensor, weights: Tensor) -> str | None:
    """How the rows of a call's output belong to examples; None if they belong to none alone.

    A row whose gradient grows by just its example's weight belongs to that example and to no
    other: this checks the arrangement of rows, and that examples do not leak into each other.
    """
    n = len(weights)
    for layout in _layouts(call, n):
        expected, found = _by_example(total, layout, n), _by_example(weighted, layout, n)
        norm = expected.square().sum(-1)
        error = (found - weights[:, None, None] * expected).square().sum(-1)
        tolerance = 64 * torch.finfo(total.dtype).eps  # squared
        if (error <= tolerance * (norm + 1e-4 * norm.mean())).all():
            return layout
    return None


def _layouts(call: Call, batch: int) -> list[str]:
    """The arrangements that the shape of the call's output allows, the likeliest first."""
    if len(call.shape) < 2:
        return []
    rows = call.shape[0]
    found = ["major"] if rows == batch else []
    if not call.is_image and len(call.shape) > 2 and call.shape[1] == batch:
        found.append("second")
    return found + (["major", "minor"] if rows != batch and rows % batch == 0 else [])


def _by_example(t: Tensor, layout: str, batch: int) -> Tensor:
    """(rows, …, f) -> (batch, positions, f), for rows that belong to examples by ``layout``.

    "major": rows run through the examples one after the other; "second": examples lie along the
    second axis; "minor": rows run through the positions, each with all examples.
    """
    if layout == "second":
        t = t.transpose(0, 1)
    elif layout == "minor":
        t = t.unflatten(0, (-1, batch)).transpose(0, 1)
    return t.reshape(batch, -1, t.shape[-1])


def _factor(unit: Unit, calls: list[Call], features: list, deltas: list) -> Factor:
    if unit.outer:
        left = torch.cat([features[number] for number, _ in unit.uses], 1)
        right = torch.cat([deltas[number] for number, _ in unit.uses], 2)
        if unit.kind == "lookup":
            left = left.squeeze(-1)
        left, right = left.transpose(0, 1).contiguous(), right.permute(2, 0, 1, 3).contiguous()
        return Factor(right, left, unit.bias is not None)
    parts = [
        _per_example(unit, kind, calls[number].groups, features[number], deltas[number])
        for number, kind in unit.uses
    ]
    return Factor(sum(parts).unsqueeze(0))


def _per_example(unit: Unit, kind: str, groups: int, features: Tensor, delta: Tensor) -> Tensor:
    """The unit's gradient from one call: (n, V, P), from (n, T, f) and (n, V, T, c)."""
    n, v, positions, channels = delta.shape
    if kind == "bias":
        return delta.sum(2)
    if kind == "scale":
        return (delta * features.unsqueeze(1)).sum(2)
    if kind == "lookup":
        rows = features.squeeze(-1)[:, None, :, None].expand(n, v, positions, channels)
        table = delta.new_zeros(n, v, *unit.param.shape)
        return table.scatter_add_(2, rows, delta).flatten(2)
    features = features.unflatten(-1, (groups, -1))
    if unit.bias is not None:
        features = torch.cat([features, torch.ones_like(features[..., :1])], -1)
    delta = delta.unflatten(-1, (groups, -1))
    layout = "nvgio" if kind == "product" else "nvgoi"
    return torch.einsum(f"nvtgo,ntgi->{layout}", delta, features).flatten(2)
