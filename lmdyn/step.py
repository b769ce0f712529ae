"""One gradient step: predicted and measured, side by side."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lmdyn.checks import check_logits, trainable
from lmdyn.kernel import entk, keeping_buffers
from lmdyn.softmax import log_softmax_jacobian, logit_step


@dataclass(frozen=True)
class OneStep:
    """What one gradient step does to the predictions at x_o (Proposition 1)."""

    A: Tensor  #: (N_o, V, V), the log-softmax Jacobian at each observation
    K: Tensor  #: (N_o, N_u, V, V), the empirical NTK between observations and updates
    G: Tensor  #: (N_u, V), the residual π − y at each update
    predicted: Tensor  #: (N_o, V), nats, the change of log π to first order, −lr · A · Σ_u K G
    measured: Tensor  #: (N_o, V), nats, its change; both 0 where a probability was and stays zero
    lr: float  #: the step size


def one_step(model: nn.Module, x_o: Tensor, x_u: Tensor, y_u: int | Tensor, lr: float) -> OneStep:
    """Predict and measure what one SGD step on (x_u, y_u) does to log π at x_o.

    The step is θ ← θ − lr · Σ_u ∇ CE(x_u, y_u) over the trainable parameters: for the mean of the
    cross-entropies, divide ``lr`` by N_u. The model's own weights stay as they are, bit for bit.

    Args:
        model, x_o, x_u: as in `entk`.
        y_u: labels to learn, integers (N_u,), or one for all.
        lr: η; negative unlearns the labels.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> step = one_step(torch.nn.Linear(4, 3), torch.eye(4), torch.eye(4)[:1], 2, lr=1e-3)
        >>> torch.allclose(step.predicted, step.measured, atol=1e-5)
        True
    """
    if not math.isfinite(lr):
        raise ValueError(f"lr must be finite, got {lr}")
    k = entk(model, x_o, x_u)  # which checks the model and its inputs
    params = trainable(model)
    with torch.enable_grad(), keeping_buffers(model):
        z_u = model(x_u)
        *_, g = logit_step(z_u.softmax(-1).detach(), y_u, coefficient=-1.0)
        # ∂L/∂z is G, so the backward pass starts there.
        grads = torch.autograd.grad(z_u, [*params.values()], g, materialize_grads=True)
    with torch.no_grad(), keeping_buffers(model):
        moved = {name: p - lr * of for (name, p), of in zip(params.items(), grads, strict=True)}
        before, after = model(x_o), functional_call(model, moved, (x_o,))
        check_logits(after, f"the logits after a step of lr = {lr}")
        a, gone = log_softmax_jacobian(before), before.isneginf() & after.isneginf()
        predicted = -lr * torch.einsum("ovi,ouij,uj->ov", a, k, g)
        measured = after.log_softmax(-1) - before.log_softmax(-1)
        return OneStep(a, k, g, *(x.masked_fill(gone, 0.0) for x in (predicted, measured)), lr)
