"""K: the empirical neural tangent kernel of the logits, K(o, u) = J_o J_uᵀ with J = ∂z/∂θ.

Weights used by Linear, Conv2d, Embedding and the usual norms take a structured path that never
holds a Jacobian over all parameters; whatever else reaches the logits takes a generic one.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise, product

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from lmdyn.checks import check_finite, check_logits, described, trainable
from lmdyn.kernel.factors import PASS_EXAMPLES, Factor, Plan, add_gram
from lmdyn.kernel.trace import forward


def entk(model: nn.Module, x_o: Tensor, x_u: Tensor | None = None) -> Tensor:
    """The empirical neural tangent kernel of the logits (Proposition 1): K(o, u) = J_o J_uᵀ.

    Exact for any module, over the parameters with ``requires_grad``. Besides the result, memory is
    bounded: the examples are taken in blocks.

    Args:
        model: any module that maps x (N, …) to logits (N, V), each example on its own.
        x_o: observed inputs, (N_o, …).
        x_u: update inputs, (N_u, …); None for ``x_o`` itself, at half the cost.

    Returns:
        (N_o, N_u, V, V), in the dtype of the logits: entry [o, u, i, j] is ⟨∇z_i(x_o), ∇z_j(x_u)⟩.

    Raises:
        ValueError: a model that is random, or whose examples depend on each other, as tried on a
            few; weights in half precision, or none trainable; inputs or logits that are not finite,
            an output that is not (N, V), an empty batch.

    Example:
        >>> model = torch.nn.Linear(3, 2, bias=False)
        >>> entk(model, torch.eye(3)[:1], torch.eye(3)[:2])[0, :, 0, 0]
        tensor([1., 0.])
    """
    x_u = x_o if x_u is None else x_u
    params = [*learned(model, x_o=x_o, x_u=x_u).values()]
    with torch.enable_grad(), keeping_buffers(model):
        return _assemble(model, params, set(), x_o, x_u)


def entk_vp(model: nn.Module, x_o: Tensor, x_u: Tensor, g: Tensor) -> Tensor:
    """Σ_u K(o, u) g_u, (N_o, V), by a backward pass over x_u and a forward-mode one over x_o.

    K is not formed. With g = π − y this is, per unit learning rate, minus the change of the logits
    at x_o when the summed cross-entropy at x_u takes one gradient step.

    Args:
        model, x_o, x_u: as in `entk`, with its errors.
        g: (N_u, V), for instance the residuals of the loss at x_u.

    Example:
        >>> model = torch.nn.Linear(3, 2, bias=False)
        >>> entk_vp(model, torch.eye(3)[:1], torch.eye(3)[:1], torch.tensor([[1.0, -1.0]]))
        tensor([[ 1., -1.]])
    """
    params = learned(model, x_o=x_o, x_u=x_u)
    check_finite(g, "g")
    step = {name: torch.zeros_like(p) for name, p in params.items()}
    # The other kernels of attention have no forward mode.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), keeping_buffers(model):
        wanted = len(x_u), forward(model, x_u[:1]).shape[1]
        if g.shape != wanted:
            raise ValueError(f"g must be (N_u, V) = {wanted}, got {tuple(g.shape)}")
        for x, part in zip(x_u.split(PASS_EXAMPLES), g.split(PASS_EXAMPLES), strict=True):
            z = forward(model, x)
            grads = torch.autograd.grad(z, [*params.values()], part.to(z), materialize_grads=True)
            for total, grad in zip(step.values(), grads, strict=True):
                total += grad
        return torch.cat([_jvp(model, params, step, x) for x in x_o.split(PASS_EXAMPLES)])


def _jvp(model: nn.Module, params: dict, step: dict, x: Tensor) -> Tensor:
    """J(x) · step."""
    primals = {name: p.detach() for name, p in params.items()}
    try:
        z, dz = torch.func.jvp(lambda p: functional_call(model, p, (x,)), (primals,), (step,))
    except RuntimeError:  # an operation without forward mode: differentiate the backward pass
        z = model(x)
        dual = torch.zeros_like(z, requires_grad=True)
        weights, modes = [*params.values()], {"create_graph": True, "materialize_grads": True}
        grads = torch.autograd.grad(z, weights, dual, **modes)
        moved = sum((grad * d).sum() for grad, d in zip(grads, step.values(), strict=True))
        (dz,) = torch.autograd.grad(moved, dual)
    check_logits(z, "model(x_o)")
    return dz.detach()


def _assemble(model, params: list, generic: set, x_o, x_u) -> Tensor:
    """K, with some parameters on the generic path, and those that turn out to need it."""
    plan = Plan(model, max(x_o[:1], x_u[:1], key=torch.numel), params, generic)
    v, symmetric = plan.logits.shape[1], x_u is x_o

    def factors(x: Tensor, start: int) -> list[tuple[slice, list[Factor]]]:
        """Those of a block, pass by pass, with their place in K."""
        stop = min(start + plan.block, len(x))
        cuts = [*range(start, stop, plan.together), stop]
        return [(slice(i * v, j * v), plan.factors(x[i:j])) for i, j in pairwise(cuts)]

    k = plan.logits.new_zeros(len(x_o) * v, len(x_u) * v)
    for i in range(0, len(x_o), plan.block):
        f_o = factors(x_o, i)
        for j in range(i if symmetric else 0, len(x_u), plan.block):
            f_u = f_o if symmetric and i == j else factors(x_u, j)
            if plan.unclear:
                return _assemble(model, params, generic | plan.unclear, x_o, x_u)
            for (o, ours), (u, theirs) in product(f_o, f_u):
                if symmetric and u.start < o.start:
                    continue
                for a, b in zip(ours, theirs, strict=True):
                    add_gram(k[o, u], a, b)
                if symmetric and u != o:
                    k[u, o] = k[o, u].T
    return k.view(len(x_o), v, len(x_u), v).transpose(1, 2)


@contextmanager
def keeping_buffers(model: nn.Module) -> Iterator[None]:
    """Afterwards every buffer is what it was, whatever forward passes inside make of it."""
    places = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    # cuDNN differentiates its recurrent layers in training mode alone.
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    try:
        with torch.backends.cudnn.flags(enabled=False) if recurrent else nullcontext():
            yield
    finally:
        for module, name, buffer, before in places:
            setattr(module, name, buffer)
            if not torch.equal(buffer, before):
                buffer.copy_(before)


def learned(model: nn.Module, **batches: Tensor) -> dict[str, Tensor]:
    """The parameters an update moves, after checking that examples stand alone."""
    for name, x in batches.items():
        if not isinstance(x, Tensor) or x.ndim == 0 or len(x) == 0:
            raise ValueError(f"{name} must be a batch (N, …) with N ≥ 1, got {described(x)}")
        if x.is_floating_point():
            check_finite(x, name)
    params = trainable(model)
    if half := {p.dtype for p in params.values()} - {torch.float32, torch.float64}:
        raise ValueError(f"the kernel needs float32 or float64 weights, got {half.pop()}")
    with torch.enable_grad(), keeping_buffers(model):
        for x in {x.shape[1:]: x for x in batches.values()}.values():
            others = [y[[0, -1]] for y in batches.values() if y.shape[1:] == x.shape[1:]]
            _check_alone(model, x[:1], torch.cat([x[:1], *others]))
    return params


def _check_alone(model: nn.Module, x: Tensor, beside: Tensor) -> None:
    """Refuse a model that is random, or gives an example something else beside others."""
    remedy = "call model.eval(), or take out what does it"
    try:
        model(x)
    except Exception as error:  # anyone's module may raise anything
        why = f"{type(error).__name__}: {' '.join(str(error).split()):.120}"
        raise ValueError(f"the model does not take one example alone ({why}): {remedy}") from error
    state = (torch.cuda if x.is_cuda else torch).get_rng_state
    alone, before, first = forward(model, x), state(), forward(model, beside)
    # A mask that is rarely drawn may come out the same twice.
    for _ in range(1 if torch.equal(before, state()) else 32):
        if not _same(forward(model, beside), first):
            raise ValueError(f"the model gives another answer each time, at random: {remedy}")
    if not _same(first[:1], alone):
        told = "gives an example another answer beside others, so that none has its own kernel"
        raise ValueError(f"the model {told}: {remedy}")


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether logits are equal up to rounding."""
    a, b = (z.detach().nan_to_num(neginf=0.0) for z in (a, b))
    return bool((a - b).norm() <= (1e-3 if a.dtype == torch.float32 else 1e-8) * b.norm())
