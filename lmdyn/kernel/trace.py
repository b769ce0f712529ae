"""Which weights reached the logits, and how: the forward pass as `entk` needs to see it.

A forward pass runs under `_Recorder`, which notes every call of an operation whose per-example
gradient has a known form. The autograd graph then has the last word: a parameter counts as
structured only if the graph holds exactly as many uses of it as were noted. So a weight that is
also used in some other way (in an expression, inside attention, by a custom function) is never
half seen: all of it goes to the generic path.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode


@dataclass
class Call:
    """One use of weights by a structured operation.

    Per position, the gradient of the weight is ``features`` combined with the output's gradient:
    their outer product ("matrix" for x Wᵀ, "product" for x W), a row of a table ("lookup"), their
    elementwise product ("scale"). The bias, if any, takes the output's gradient itself.
    """

    kind: str
    weight: Tensor | None
    bias: Tensor | None
    features: Callable[[], Tensor]  # () -> (rows, ..., features), channels last
    channels_last: Callable[[Tensor], Tensor]  # the output's gradient -> (rows, ..., channels)
    groups: int = 1
    edge: GradientEdge | None = None
    shape: torch.Size | None = None
    number: int = 0  # among all uses of tracked weights in the forward pass

    def positions(self, batch: int) -> int:
        """Positions per example: tokens, pixels, or 1."""
        channels = self.channels_last(torch.empty(self.shape, device="meta")).shape[-1]
        return self.shape.numel() // channels // batch


def _same(grad: Tensor) -> Tensor:
    return grad


def _pixels(grad: Tensor) -> Tensor:
    """(rows, C, …) -> (rows, pixels, C)."""
    return grad.reshape(*grad.shape[:2], -1).transpose(1, 2)


def _linear(input, weight, bias=None):
    return Call("matrix", weight, bias, lambda: input, _same)


def _matmul(input, other):
    return Call("product", other, None, lambda: input, _same) if other.ndim == 2 else None


def _addmm(input, mat1, mat2, *, beta=1, alpha=1):
    if beta != 1 or alpha != 1 or input.ndim != 1:
        return None
    return Call("product", mat2, input, lambda: mat1, _same)


def _mul(input, other):
    """A norm written out: weight · x."""
    for weight, x in ((input, other), (other, input)):
        if isinstance(weight, nn.Parameter) and weight.ndim == 1 and isinstance(x, Tensor):
            if x.ndim > 1 and x.shape[-1] == len(weight):
                return Call("scale", weight, None, lambda x=x: x, _same)
    return None


def _conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    if input.ndim != 4:
        return None
    kernel = weight.shape[-2:]

    def patches():
        x, symmetric = input, padding
        if isinstance(padding, str):
            symmetric = 0
            if padding == "same":
                steps = (dilation, dilation) if isinstance(dilation, int) else dilation
                total = [d * (k - 1) for d, k in zip(steps, kernel, strict=True)]
                left = [t // 2 for t in total]  # an odd total puts the extra zero on the right
                x = F.pad(x, (left[1], total[1] - left[1], left[0], total[0] - left[0]))
        return F.unfold(x, kernel, dilation, symmetric, stride).transpose(1, 2)

    return Call("matrix", weight, bias, patches, _pixels, groups)


def _embedding(
    input,
    weight,
    padding_idx=None,
    max_norm=None,
    norm_type=2.0,
    scale_grad_by_freq=False,
    sparse=False,
):
    if max_norm is not None or scale_grad_by_freq:
        return None
    if padding_idx is None:
        grad = _same
    else:
        kept = (input != padding_idx % weight.shape[0]).unsqueeze(-1)

        def grad(g):  # autograd gives the padding row no gradient here
            return g if g.is_meta else g * kept

    return Call("lookup", weight, None, lambda: input.unsqueeze(-1), grad)


def _layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5):
    def normed():
        return F.layer_norm(input, normalized_shape, eps=eps).flatten(-len(normalized_shape))

    return Call("scale", weight, bias, normed, lambda g: g.flatten(-len(normalized_shape)))


def _rms_norm(input, normalized_shape, weight=None, eps=None):
    def normed():
        return F.rms_norm(input, normalized_shape, eps=eps).flatten(-len(normalized_shape))

    return Call("scale", weight, None, normed, lambda g: g.flatten(-len(normalized_shape)))


def _batch_norm(
    input,
    running_mean,
    running_var,
    weight=None,
    bias=None,
    training=False,
    momentum=0.1,
    eps=1e-5,
):
    def normed():
        return _pixels(F.batch_norm(input, running_mean, running_var, eps=eps))

    return None if training else Call("scale", weight, bias, normed, _pixels)


def _group_norm(input, num_groups, weight=None, bias=None, eps=1e-5):
    return Call(
        "scale", weight, bias, lambda: _pixels(F.group_norm(input, num_groups, eps=eps)), _pixels
    )


STRUCTURED = {
    F.linear: _linear,
    torch.addmm: _addmm,
    torch.matmul: _matmul,
    Tensor.matmul: _matmul,
    torch.mul: _mul,
    Tensor.mul: _mul,
    F.conv2d: _conv2d,
    F.embedding: _embedding,
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.batch_norm: _batch_norm,
    F.group_norm: _group_norm,
}


class _Reader(TorchFunctionMode):
    """Meets every use of tracked weights by a structured operation, in turn."""

    def __init__(self, tracked: set[Tensor]):
        self.tracked = tracked
        self.met = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        read = STRUCTURED.get(func)
        call = read(*args, **kwargs) if read else None
        if call is None:
            return out
        call.weight, call.bias = (
            p if isinstance(p, nn.Parameter) and p in self.tracked else None
            for p in (call.weight, call.bias)
        )
        if call.weight is None and call.bias is None:
            return out
        call.number = self.met
        self.met += 1
        return self.meet(call, out)

    def meet(self, call: Call, out: Tensor) -> Tensor:
        raise NotImplementedError


class _Recorder(_Reader):
    def __init__(self, tracked: set[Tensor]):
        super().__init__(tracked)
        self.calls: list[Call] = []

    def meet(self, call: Call, out: Tensor) -> Tensor:
        if not out.requires_grad:
            return out
        if out._is_view():
            out = out.clone()  # an in-place operation on a view would cut its edge
        # The edge is taken now: an in-place activation may overwrite `out` later.
        call.edge, call.shape = get_gradient_edge(out), out.shape
        self.calls.append(call)
        return out


class Shift(_Reader):
    """Adds to the outputs of some uses of weights, given by `Call.number`."""

    def __init__(self, tracked: set[Tensor], shifts: dict[int, Tensor]):
        super().__init__(tracked)
        self.shifts = shifts

    def meet(self, call: Call, out: Tensor) -> Tensor:
        return out + self.shifts[call.number] if call.number in self.shifts else out


@dataclass
class Trace:
    """A recorded forward pass: its output, such as logits (N, V), and what led to it."""

    logits: Tensor
    calls: list[Call]  # those that reach the logits
    unseen: set[Tensor]  # parameters that reach the logits in other ways too


def trace(model: nn.Module, x: Tensor, tracked: set[Tensor]) -> Trace:
    """Run ``model(x)`` and note how each tracked parameter reached the logits."""
    return record(lambda: forward(model, x), tracked)


def record(run: Callable[[], Tensor], tracked: set[Tensor]) -> Trace:
    """Run a forward pass and note how each tracked parameter reached its output."""
    recorder = _Recorder(tracked)
    with recorder:
        logits = run()
    nodes, in_graph = _walk(logits)
    calls = [c for c in recorder.calls if c.edge.node in nodes]
    noted = Counter(p for c in calls for p in (c.weight, c.bias) if p is not None)
    unseen = {p for p in tracked if in_graph[p] != noted[p]}
    calls = [c for c in calls if any(p is not None and p not in unseen for p in (c.weight, c.bias))]
    return Trace(logits, calls, unseen)


def _walk(logits: Tensor) -> tuple[set, Counter]:
    """The nodes of the autograd graph, and how many edges lead to each leaf."""
    nodes, leaves, todo = set(), Counter(), [logits.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in nodes:
            continue
        nodes.add(node)
        for following, _ in node.next_functions:
            if hasattr(following, "variable"):
                leaves[following.variable] += 1
            else:
                todo.append(following)
    return nodes, leaves


def forward(model: nn.Module, x: Tensor) -> Tensor:
    """``model(x)``, refused unless it is finite logits (N, V) that depend on its parameters."""
    logits = model(x)
    check_output(logits, len(x))
    if not logits.requires_grad:
        raise ValueError(
            "the logits do not depend on any parameter that requires grad: does the model detach "
            "them, or run under torch.no_grad()?"
        )
    return logits


def check_output(logits: Tensor, batch: int) -> None:
    """Refuse a model whose output is not finite logits (N, V)."""
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"model(x) must return logits (N, V), a tensor; got {type(logits).__name__}: "
            "wrap the model so that it returns the logits"
        )
    if logits.ndim != 2 or len(logits) != batch:
        raise ValueError(
            f"model(x) must return logits (N, V) with N = {batch}, got {tuple(logits.shape)}"
        )
    bad = ~logits.isfinite()
    if bad.any():
        example = int(bad.any(-1).nonzero()[0])
        raise ValueError(f"model(x) has NaN or infinite logits, first for example {example}")


def by_example(t: Tensor, layout: str, batch: int) -> Tensor:
    """(rows, …, f) -> (batch, positions, f), for rows that belong to examples by ``layout``.

    "major": rows run through the examples one after the other; "second": examples lie along the
    second axis; "minor": rows run through the positions, each with all examples.
    """
    if layout == "second":
        t = t.transpose(0, 1)
    elif layout == "minor":
        t = t.unflatten(0, (-1, batch)).transpose(0, 1)
    return t.reshape(batch, -1, t.shape[-1])


def layouts(call: Call, batch: int) -> list[str]:
    """The arrangements that the shape of the call's output allows, the likeliest first."""
    rows, is_image = call.shape[0], call.channels_last is _pixels
    found = []
    if len(call.shape) < 2:
        return found
    if rows == batch:
        found.append("major")
    if not is_image and len(call.shape) > 2 and call.shape[1] == batch:
        found.append("second")
    if rows != batch and rows % batch == 0:
        found += ["major", "minor"]
    return found
