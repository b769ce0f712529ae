"""Which weights reached the logits, and how: the forward pass as the kernel needs to see it.

`record` notes every call of an operation whose per-example gradient has a known form. A parameter
of which the autograd graph holds other uses too (in an expression, inside attention, by a custom
function) goes to the generic path, which is plain autograd.
"""

import inspect
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from lmdyn.checks import check_logits, described


@dataclass(eq=False)
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
    groups: int = 1
    # the output's gradient -> (rows, ..., channels)
    channels_last: Callable[[Tensor], Tensor] = lambda grad: grad
    edge: GradientEdge | None = None  # where the output's gradient can be asked for
    grad_shape: torch.Size | None = None  # (rows, ..., channels), of that gradient

    @property
    def params(self) -> set[Tensor]:
        return {self.weight, self.bias} - {None}


@dataclass
class Trace:
    """A recorded forward pass: its output, such as logits (N, V), and what led to it."""

    output: Tensor
    calls: list[Call]  # those that reach the output
    unseen: set[Tensor]  # parameters that reach the output in other ways too

    def forget(self, params: set[Tensor]) -> None:
        """Leave these parameters out of the calls."""
        for call in self.calls:
            call.weight = None if call.weight in params else call.weight
            call.bias = None if call.bias in params else call.bias
        self.calls = [call for call in self.calls if call.params]


def record(run: Callable[[], Tensor], tracked: set[Tensor]) -> Trace:
    """Run a forward pass and note how each tracked parameter reached its output."""
    with _Recorder(tracked) as recorder:
        output = run()
    # The nodes of the autograd graph, and how many edges lead to each leaf.
    nodes, in_graph, todo = set(), Counter(), [output.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in nodes:
            continue
        nodes.add(node)
        for following, _ in node.next_functions:
            if hasattr(following, "variable"):
                in_graph[following.variable] += 1
            else:
                todo.append(following)
    calls = [call for call in recorder.calls if call.edge.node in nodes]
    noted = Counter(p for call in calls for p in call.params)
    seen = Trace(output, calls, {p for p in tracked if in_graph[p] != noted[p]})
    seen.forget(seen.unseen)
    return seen


class _Recorder(TorchFunctionMode):
    """Notes the calls whose output depends on tracked weights."""

    def __init__(self, tracked: set[Tensor]):
        super().__init__()
        self.tracked, self.calls = tracked, []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        read = _STRUCTURED.get(func)
        call = read(*args, **kwargs) if read and out.requires_grad else None
        if call is None:
            return out
        tracked = (p if p in self.tracked else None for p in (call.weight, call.bias))
        call.weight, call.bias = tracked
        if call.params:
            if out._is_view():
                out = out.clone()  # an in-place operation on a view would cut its edge
            # The edge is taken now: an in-place activation may overwrite `out` later.
            call.edge = get_gradient_edge(out)
            call.grad_shape = call.channels_last(out.detach()).shape
            self.calls.append(call)
        return out


def forward(model: nn.Module, x: Tensor) -> Tensor:
    """``model(x)``, refused unless it is finite logits (N, V) that depend on its parameters."""
    logits, n = model(x), len(x)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != n:
        told = f"model(x) must return logits (N, V) with N = {n}, got {described(logits)}"
        raise ValueError(f"{told}: wrap the model so that it does")
    check_logits(logits, "model(x)")
    if not logits.requires_grad:
        why = "does the model detach them, or run under torch.no_grad()?"
        raise ValueError(f"the logits do not depend on any parameter that requires grad: {why}")
    return logits


def dots(a: Tensor, b: Tensor) -> Tensor:
    """(T, S) inner products of features: vectors (T, f), or (T,) rows of a table, as one-hot."""
    if a.ndim == 2:
        return a @ b.T if b.ndim == 2 else a[:, b]
    return b.T[a] if b.ndim == 2 else a.unsqueeze(1) == b


def _pixels(grad: Tensor) -> Tensor:
    """(rows, C, …) -> (rows, pixels, C)."""
    return grad.reshape(*grad.shape[:2], -1).transpose(1, 2)


def _matmul(input, other):
    return Call("product", other, None, lambda: input) if other.ndim == 2 else None


def _addmm(input, mat1, mat2, *, beta=1, alpha=1):
    plain = beta == alpha == 1 and input.ndim == 1
    return Call("product", mat2, input, lambda: mat1) if plain else None


def _mul(input, other):
    """A norm written out: weight · x."""
    weight, x = (input, other) if input.ndim == 1 else (other, input)
    fits = isinstance(weight, Tensor) and isinstance(x, Tensor) and weight.ndim == 1 < x.ndim
    return Call("scale", weight, None, lambda: x) if fits and x.shape[-1] == len(weight) else None


def _conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    if input.ndim != 4:
        return None
    kernel = weight.shape[-2:]
    if padding == "same":  # an odd total puts the extra zero on the right
        steps = (dilation, dilation) if isinstance(dilation, int) else dilation
        rows, columns = (d * (k - 1) for d, k in zip(steps, kernel, strict=True))
        input = F.pad(input, (columns // 2, -(-columns // 2), rows // 2, -(-rows // 2)))
    padding = 0 if isinstance(padding, str) else padding
    given = input, kernel, dilation, padding, stride
    return Call("matrix", weight, bias, lambda: _pixels(F.unfold(*given)), groups, _pixels)


def _embedding(_, input, weight, padding_idx=None, max_norm=None, scale_grad_by_freq=False, **rest):
    if max_norm is not None or scale_grad_by_freq:
        return None
    call = Call("lookup", weight, None, lambda: input.unsqueeze(-1))
    if padding_idx is not None:  # autograd gives this row no gradient here
        call.channels_last = lambda grad: grad * (input != padding_idx % len(weight)).unsqueeze(-1)
    return call


def _norm(operation: Callable, weight=None, bias=None, training=False, **given):
    """A norm's features are what it makes of its input without weight and bias."""
    axes = len(given.get("normalized_shape", ()))  # the last ones; else channels, as in an image
    last = (lambda x: x.flatten(-axes)) if axes else _pixels
    call = Call("scale", weight, bias, lambda: last(operation(**given)), channels_last=last)
    return None if training else call  # by the statistics of the batch


def _named(read: Callable, operation: Callable) -> Callable:
    """A reader of an operation's arguments by name."""
    signature = inspect.signature(operation)
    return lambda *args, **kwargs: read(operation, **signature.bind(*args, **kwargs).arguments)


_STRUCTURED = {  # operation → reader of its arguments: a `Call`, or None if of another form
    **{n: _named(_norm, n) for n in (F.layer_norm, F.rms_norm, F.batch_norm, F.group_norm)},
    F.linear: lambda input, weight, bias=None: Call("matrix", weight, bias, lambda: input),
    torch.addmm: _addmm,
    torch.matmul: _matmul,
    Tensor.matmul: _matmul,
    torch.mul: _mul,
    Tensor.mul: _mul,
    F.conv2d: _conv2d,
    F.embedding: _named(_embedding, F.embedding),
}
