"""Per-example Jacobians of the logits, each parameter's in its cheapest form.

The Jacobian of a weight for one example and one logit is a sum over positions t (tokens, pixels,
repeated calls) of outer products  δ_t ⊗ a_t.  Two exact forms:

- dense: the sum itself, P numbers for each example and logit, all such parameters side by side;
- outer: the δ_t and a_t apart. K then is Σ_ts (δ_t·δ_s)(a_t·a_s), without any P (Novak et al.,
  2022: structured derivatives). It wins when positions are few.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from lmdyn.kernel.trace import Call, Trace, dots, forward, record

# Up to this many examples share one forward pass: enough to fill the cores, small enough that
# their weights in the layout check stay far apart.
PASS_EXAMPLES = 64
# Operations that the elementwise product of an entry costs, in the choice between the two forms.
ELEMENTWISE = 16


@dataclass
class Factor:
    """Parameters' Jacobian for n examples.

    Attributes:
        right: (n, T, V, o), the δ_t; in the dense form the Jacobian itself, (n, 1, V, P).
        left: (n, T, i), the a_t, or (n, T) rows of a table; None in the dense form.
    """

    right: Tensor
    left: Tensor | None = None

    def add_gram(self, other: "Factor", out: Tensor) -> None:
        """out (n, V, m, V) += J Jᵀ."""
        n, v, m, w = out.shape
        for t, delta in enumerate(self.right.unbind(1)):
            for s, epsilon in enumerate(other.right.unbind(1)):
                delta, epsilon = delta.reshape(n * v, -1), epsilon.reshape(m * w, -1)
                if self.left is None:
                    out.view(n * v, m * w).addmm_(delta, epsilon.T)
                    continue
                inputs = dots(self.left[:, t], other.left[:, s]).to(out.dtype)
                out.addcmul_((delta @ epsilon.T).view(out.shape), inputs[:, None, :, None])

    def __getitem__(self, rows: slice) -> "Factor":
        return Factor(self.right[rows], None if self.left is None else self.left[rows])

    @staticmethod
    def concatenate(parts: Sequence["Factor"]) -> "Factor":
        """The factor of all their examples."""
        dense = parts[0].left is None
        left = None if dense else torch.cat([part.left for part in parts])
        return Factor(torch.cat([part.right for part in parts]), left)


class Plan:
    """Which parameters take the generic path and which the outer form, and what an example costs.

    Args:
        model: any module with (N, V) logits.
        x: a batch of one example, of the largest shape that will come.
        params: the trainable parameters.
        generic: those already known to need the generic path.
    """

    def __init__(self, model: nn.Module, x: Tensor, params: list, generic: set):
        self.model, self.params, self.generic = model, params, generic
        seen = self._trace(x)
        self.generic = generic | seen.unseen
        self.logits, v = seen.output.detach(), seen.output.shape[1]
        numbers = {p: v * p.numel() for p in params}
        self.outer: dict[Tensor, Tensor | None] = {}  # a weight, and the bias that it covers
        uses = _uses(seen.calls)
        for param, used in uses.items():
            calls = [call for call, _ in used]
            positions = sum(call.grad_shape[:-1].numel() for call in calls)
            channels, inputs = calls[0].grad_shape[-1], calls[0].features().shape[-1]
            alike = {(kind, call.groups) for call, kind in used}
            separable = alike in ({("matrix", 1)}, {("product", 1)}, {("lookup", 1)})
            if separable and positions**2 * (channels + ELEMENTWISE) < param.numel():
                numbers[param] = positions * (v * channels + inputs)
                self.outer[param] = _bias(uses, param)
        self.factor_bytes = self.logits.itemsize * sum(numbers.values())
        held = sum(v * c.shape.numel() + 2 * c.features().numel() for c in seen.calls)
        self.pass_bytes = self.logits.itemsize * held + activation_bytes(model, x)

    def factors(self, x: Tensor, pass_examples: int) -> tuple[list[Factor], set[Tensor]]:
        """The factors of the outer parameters, and one of all the others.

        Returns:
            The factors, and the parameters whose gradients could not be told apart by example; if
            there are any, the factors are not complete.
        """
        parts = []
        for part in x.split(pass_examples):
            factors, unclear = self._pass(part)
            if unclear:
                return [], unclear
            parts.append(factors)
        pieces = list(zip(*parts, strict=True))
        ragged = {
            param
            for param, same in zip(self.outer, pieces, strict=False)
            if len({factor.right.shape[1] for factor in same}) > 1
        }  # the control flow depends on the data
        return [] if ragged else [Factor.concatenate(same) for same in pieces], ragged

    def _trace(self, x: Tensor) -> Trace:
        return record(lambda: forward(self.model, x), set(self.params) - self.generic)

    def _pass(self, x: Tensor) -> tuple[list[Factor], set[Tensor]]:
        seen = self._trace(x)
        n, v = seen.output.shape
        uses = _uses(seen.calls)
        unclear = seen.unseen | {p for p, b in self.outer.items() if _bias(uses, p) is not b}
        unclear |= set(self.outer) - set(uses)
        features, deltas = {}, {}
        if seen.calls and not unclear:
            features, deltas, unclear = _backward(seen)
        if unclear:
            return [], unclear
        factors, dense = [], []
        for param, bias in self.outer.items():
            calls = [call for call, _ in uses[param]]
            left = torch.cat([features[c] for c in calls], 1)
            left = left.squeeze(-1) if uses[param][0][1] == "lookup" else left
            left = left if bias is None else pad(left, (0, 1), value=1)
            factors.append(Factor(torch.cat([deltas[c] for c in calls], 1), left))
        for param in self.params:
            if param not in {*self.generic, *self.outer, *self.outer.values()}:
                ours = [
                    _per_example(param, kind, call.groups, features[call], deltas[call])
                    for call, kind in uses.get(param, ())
                ]
                dense.append(sum(ours) if ours else seen.output.new_zeros(n, v, param.numel()))
        dense += [self._generic(x)] if self.generic else []
        factors += [Factor(torch.cat(dense, -1).unsqueeze(1))] if dense else []
        return factors, set()

    def _generic(self, x: Tensor) -> Tensor:
        """(n, V, P), one example, one logit at a time: slow, and exact for any operation."""
        params = [p for p in self.params if p in self.generic]
        rows = []
        for example in x.split(1):
            for value in forward(self.model, example)[0]:
                grads = torch.autograd.grad(
                    value, params, retain_graph=True, allow_unused=True, materialize_grads=True
                )
                rows.append(torch.cat([grad.flatten() for grad in grads]))
        return torch.stack(rows).unflatten(0, (len(x), -1))


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


def _uses(calls: list[Call]) -> dict[Tensor, list[tuple[Call, str]]]:
    """For each parameter, the calls that use it, and how."""
    uses = defaultdict(list)
    for call in calls:
        for param, kind in ((call.weight, call.kind), (call.bias, "bias")):
            if param is not None:
                uses[param].append((call, kind))
    return uses


def _bias(uses: dict[Tensor, list], param: Tensor) -> Tensor | None:
    """The bias of all the calls of a weight and of no others: one more feature, always 1."""
    calls = [call for call, _ in uses.get(param, ())]
    bias = calls[0].bias if calls else None
    return bias if bias is not None and [call for call, _ in uses[bias]] == calls else None


def _backward(seen: Trace) -> tuple[dict, dict, set[Tensor]]:
    """By example, for each call: features (n, T, f) and output gradients (n, T, V, c).

    The third value are the parameters whose rows belong to no example alone.
    """
    n, v = seen.output.shape
    z, calls = seen.output, seen.calls

    def gradients(cotangent):
        edges = [call.edge for call in calls]
        grads = torch.autograd.grad(z, edges, cotangent, retain_graph=True, allow_unused=True)
        return [
            call.channels_last(z.new_zeros(call.shape) if grad is None else grad)
            for call, grad in zip(calls, grads, strict=True)
        ]

    generator = torch.Generator().manual_seed(0)
    signs = torch.randn(v, generator=generator, dtype=torch.float64).to(z).expand(n, v)
    weights = torch.linspace(1, 2, n, dtype=z.dtype, device=z.device)[:, None]
    pairs = zip(gradients(signs), gradients(weights * signs), strict=True)
    layouts = [_layout(plain, weighted, weights) for plain, weighted in pairs]
    unclear = [call.params for call, found in zip(calls, layouts, strict=True) if found is None]
    if unclear:
        return {}, {}, set().union(*unclear)
    by_logit = [
        [layout(grad, n) for layout, grad in zip(layouts, gradients(unit), strict=True)]
        for unit in torch.eye(v, dtype=z.dtype, device=z.device)[:, None].expand(v, n, v)
    ]
    deltas = [torch.stack(grads, 2) for grads in zip(*by_logit, strict=True)]
    with torch.no_grad():
        features = [f(call.features().detach(), n) for f, call in zip(layouts, calls, strict=True)]
    return dict(zip(calls, features, strict=True)), dict(zip(calls, deltas, strict=True)), set()


def _layout(plain: Tensor, weighted: Tensor, weights: Tensor) -> Callable | None:
    """How the rows of a call's output belong to examples; None if they belong to none alone.

    A row whose gradient grows by just its example's weight belongs to that example and to no
    other: this checks the arrangement of rows, and that examples do not leak into each other.
    """
    n = len(weights)
    for layout in (_major, _minor) if plain.shape[:-1].numel() % n == 0 else ():
        expected, found = layout(plain, n), layout(weighted, n)
        norm = expected.square().sum(-1)
        error = (found - weights.unsqueeze(-1) * expected).square().sum(-1)
        tolerance = 64 * torch.finfo(plain.dtype).eps  # squared
        if (error <= tolerance * (norm + 1e-4 * norm.mean())).all():
            return layout
    return None


def _major(t: Tensor, n: int) -> Tensor:
    """(rows, …, f) -> (n, T, f), where rows run through the examples one after the other."""
    return t.reshape(n, -1, t.shape[-1])


def _minor(t: Tensor, n: int) -> Tensor:
    """The same, where rows run through the positions, each with all examples."""
    return t.reshape(-1, n, t.shape[-1]).transpose(0, 1)


def _per_example(param: Tensor, kind: str, groups: int, features: Tensor, delta: Tensor) -> Tensor:
    """The gradient from one call: (n, V, P), from (n, T, f) and (n, T, V, c)."""
    if kind == "bias":
        return delta.sum(1)
    if kind == "scale":
        return (delta * features.unsqueeze(2)).sum(1)
    if kind == "lookup":
        delta = delta.transpose(1, 2)
        table = delta.new_zeros(*delta.shape[:2], *param.shape)
        return table.scatter_add_(2, features.unsqueeze(1).expand(delta.shape), delta).flatten(2)
    layout = "nvgio" if kind == "product" else "nvgoi"
    features, delta = features.unflatten(-1, (groups, -1)), delta.unflatten(-1, (groups, -1))
    return torch.einsum(f"ntvgo,ntgi->{layout}", delta, features).flatten(2)
