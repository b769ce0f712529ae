"""K: the empirical neural tangent kernel of the logits, K(o, u) = J_o J_uᵀ with J = ∂z/∂θ.

Weights used by Linear, Conv2d, Embedding and the usual norms take a structured path that never
holds a Jacobian over all parameters; whatever else reaches the logits takes a generic one.
"""

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from lmdyn.checks import check_logits, trainable
from lmdyn.kernel.factors import PASS_EXAMPLES, Factor, Plan, activation_bytes
from lmdyn.kernel.trace import check_output, forward

# Bytes that the factors of a block of examples, or one forward and backward pass, may take.
CHUNK_BYTES = 2**28


def entk(model: nn.Module, x_o: Tensor, x_u: Tensor | None = None) -> Tensor:
    """The empirical neural tangent kernel of the logits (Proposition 1): K(o, u) = J_o J_uᵀ.

    Exact for any module. Only parameters with ``requires_grad`` count, as only they move in an
    update. Besides the result, memory is bounded: the examples are taken in blocks.

    Args:
        model: any module that maps x (N, …) to logits (N, V), each example on its own.
        x_o: observed inputs, (N_o, …).
        x_u: update inputs, (N_u, …); None for ``x_o`` itself, at half the cost.

    Returns:
        (N_o, N_u, V, V), in the dtype of the logits: entry [o, u, i, j] is ⟨∇z_i(x_o), ∇z_j(x_u)⟩.

    Raises:
        ValueError: a batch-norm layer in training mode or an active dropout (examples would not
            stand alone); weights in half precision, or none trainable; an output that is not
            (N, V) or not finite; an empty batch.

    Example:
        >>> model = torch.nn.Linear(3, 2, bias=False)
        >>> entk(model, torch.eye(3)[:1], torch.eye(3)[:2])[0, :, 0, 0]
        tensor([1., 0.])
    """
    params = learned(model)
    symmetric = x_u is None
    x_u = x_o if symmetric else x_u
    check_inputs(x_o=x_o, x_u=x_u)
    largest = max(x_o[:1], x_u[:1], key=torch.numel)
    generic: set[Tensor] = set()
    with torch.enable_grad():
        while True:
            plan = Plan(model, largest, params, generic)
            k, unclear = _assemble(plan, x_o, x_u, symmetric)
            if not unclear:
                return k
            generic = plan.generic | unclear


def entk_vp(model: nn.Module, x_o: Tensor, x_u: Tensor, g: Tensor) -> Tensor:
    """Σ_u K(o, u) g_u without forming K: one backward pass over x_u, one forward-mode over x_o.

    With g = π − y this is how far the logits at x_o move, per unit learning rate and with the
    sign flipped, when the summed cross-entropy at x_u takes one gradient step.

    Args:
        model, x_o, x_u: as in `entk`.
        g: (N_u, V), for instance the residuals of the loss at x_u.

    Returns:
        (N_o, V).

    Raises:
        ValueError: as in `entk`, or a ``g`` that is not (N_u, V).

    Example:
        >>> model = torch.nn.Linear(3, 2, bias=False)
        >>> entk_vp(model, torch.eye(3)[:2], torch.eye(3)[:1], torch.tensor([[1.0, -1.0]]))
        tensor([[ 1., -1.],
                [ 0.,  0.]])
    """
    params = learned(model)
    check_inputs(x_o=x_o, x_u=x_u)
    check_logits(g, "g")
    if g.ndim != 2 or len(g) != len(x_u):
        raise ValueError(f"g must be (N_u, V) with N_u = {len(x_u)}, got {tuple(g.shape)}")
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the others have no forward mode
        direction = [torch.zeros_like(p) for p in params]
        chunk = _chunk(model, x_u)
        for x, g_part in zip(x_u.split(chunk), g.split(chunk), strict=True):
            z = forward(model, x)
            if z.shape[1] != g.shape[1]:
                raise ValueError(f"g has V = {g.shape[1]}, but the model has V = {z.shape[1]}")
            grads = torch.autograd.grad(
                z, params, g_part.to(z), allow_unused=True, materialize_grads=True
            )
            direction = [total + grad for total, grad in zip(direction, grads, strict=True)]
        return torch.cat([_jvp(model, params, x, direction) for x in x_o.split(_chunk(model, x_o))])


def _jvp(model: nn.Module, params: list[Tensor], x: Tensor, direction: list[Tensor]) -> Tensor:
    """J(x) · direction."""
    names = {p: name for name, p in model.named_parameters()}
    primals = {names[p]: p.detach() for p in params}
    tangents = {names[p]: d for p, d in zip(params, direction, strict=True)}
    try:
        z, dz = torch.func.jvp(lambda p: functional_call(model, p, (x,)), (primals,), (tangents,))
    except (NotImplementedError, RuntimeError):
        # Some operations have no forward mode: differentiate the backward pass instead.
        z = model(x)
        dual = torch.zeros_like(z, requires_grad=True)
        grads = torch.autograd.grad(
            z, params, dual, create_graph=True, allow_unused=True, materialize_grads=True
        )
        product = sum((g * d).sum() for g, d in zip(grads, direction, strict=True))
        (dz,) = torch.autograd.grad(product, dual)
    check_output(z, len(x))
    return dz.detach()


def _assemble(plan: Plan, x_o: Tensor, x_u: Tensor, symmetric: bool) -> tuple[Tensor, set[Tensor]]:
    """K, and the parameters that turned out to need the generic path: if any, K is not whole."""
    v, block = plan.logits.shape[1], _fit(2 * plan.factor_bytes)
    pass_examples = min(PASS_EXAMPLES, _fit(plan.pass_bytes))
    k = plan.logits.new_empty(len(x_o), len(x_u), v, v)
    for i in range(0, len(x_o), block):
        f_o, unclear = plan.factors(x_o[i : i + block], pass_examples)
        for j in range(i if symmetric else 0, len(x_u), block):
            diagonal, f_u = symmetric and i == j, f_o
            if not diagonal and not unclear:
                f_u, unclear = plan.factors(x_u[j : j + block], pass_examples)
            if unclear:
                return k, unclear
            _fill(k[i : i + block, j : j + block], f_o, f_u, diagonal)
    for o in range(len(x_o) if symmetric else 0):
        k[o + 1 :, o] = k[o, o + 1 :].transpose(1, 2)
    return k, set()


def _fill(k: Tensor, f_o: list[Factor], f_u: list[Factor], diagonal: bool) -> None:
    """Sum the Gram products into a block of K, a few rows of examples at a time."""
    n, m, v, _ = k.shape
    rows = min(_fit(16 * m * v * v * k.element_size()), -(-n // 8))
    for start in range(0, n, rows):
        stop = min(start + rows, n)
        first = start if diagonal else 0  # the rest is known by symmetry
        out = k.new_zeros(stop - start, v, m - first, v)
        for a, b in zip(f_o, f_u, strict=True):
            a[start:stop].add_gram(b[first:], out)
        k[start:stop, first:] = out.transpose(1, 2)


def _chunk(model: nn.Module, x: Tensor) -> int:
    """Examples whose activations, twice (primal and tangent), fit."""
    return _fit(2 * activation_bytes(model, x[:1]))


def _fit(bytes_each: int) -> int:
    return max(1, CHUNK_BYTES // max(1, bytes_each))


def learned(model: nn.Module) -> list[Tensor]:
    """The parameters an update moves, after checking that examples stand alone."""
    for name, module in model.named_modules():
        label = f"{name or 'the model'} ({type(module).__name__})"
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            raise ValueError(
                f"{label} normalises by the statistics of the batch, so that no example has a "
                "kernel of its own: call model.eval(), and keep track_running_stats on"
            )
        rate = getattr(module, "p" if isinstance(module, _DropoutNd) else "dropout", 0)
        if module.training and isinstance(rate, float) and rate > 0:
            raise ValueError(f"{label} drops at random: call model.eval()")
    params = [*trainable(model).values()]
    half = {p.dtype for p in params} - {torch.float32, torch.float64}
    if half:
        raise ValueError(f"the kernel needs float32 or float64 weights, got {half.pop()}")
    return params


def check_inputs(**inputs: Tensor) -> None:
    for name, x in inputs.items():
        if not isinstance(x, Tensor) or x.ndim == 0 or len(x) == 0:
            what = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"{name} must be a batch (N, …) with N ≥ 1, got {what}")
        if x.is_floating_point() and not x.isfinite().all():
            raise ValueError(f"{name} has NaN or infinite values")
