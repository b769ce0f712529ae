"""A: what the softmax makes of a change of logits, and the exact softmax-regression step.

Section 2 of the paper for A; its appendix on the squeezing effect for the step. Everything batches
over leading axes, in the dtype and on the device of its input. A logit of −inf is probability zero.
"""

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from lmdyn.checks import as_labels, broadcast, check_finite, check_logits


def log_softmax_jacobian(logits: Tensor) -> Tensor:
    """A = ∂ log π / ∂z = I − 1πᵀ (Proposition 1): (..., V, V) for logits (..., V).

    Example:
        >>> log_softmax_jacobian(torch.zeros(2))
        tensor([[ 0.5000, -0.5000],
                [-0.5000,  0.5000]])
    """
    check_logits(logits)
    probs = logits.softmax(-1).unsqueeze(-2)
    return torch.eye(logits.shape[-1], dtype=logits.dtype, device=logits.device) - probs


def log_softmax_jvp(logits: Tensor, dz: Tensor) -> Tensor:
    """A·dz = dz − π·dz, nats: how the log-probs move when the logits move by dz, (..., V) each.

    Example:
        >>> log_softmax_jvp(torch.zeros(2), torch.tensor([1.0, 0.0]))
        tensor([ 0.5000, -0.5000])
    """
    check_fit(logits, dz, "dz")
    return dz - (logits.softmax(-1) * dz).sum(-1, keepdim=True)


def entropy_jvp(logits: Tensor, dz: Tensor) -> Tensor:
    """ΔH = −Cov_π(log π, Δz), nats: how the entropy moves, to first order, when the logits do.

    (...) for logits and dz (..., V). Cui et al. 2025, arXiv 2505.22617.

    Example:
        >>> entropy_jvp(torch.tensor([1.0, 0.0]), torch.tensor([0.1, 0.0]))
        tensor(-0.0197)
    """
    check_fit(logits, dz, "dz")
    slope = -entropy_residual(logits)
    return (slope * dz.where(slope != 0, 0)).sum(-1)


def entropy_residual(logits: Tensor) -> Tensor:
    """G = π ∘ (log π + H), (..., V), of L = −H; that of an entropy bonus −αH is α times it. Nats.

    Example:
        >>> entropy_residual(torch.tensor([1.0, 0.0]))
        tensor([ 0.1966, -0.1966])
    """
    check_logits(logits)
    logp = logits.log_softmax(-1)
    probs = logp.exp()
    logp = logp.where(probs > 0, 0)
    return probs * (logp - (probs * logp).sum(-1, keepdim=True))


def jacobian_norm_sq(logits: Tensor) -> Tensor:
    """‖A‖²_F = V‖π‖² + V − 2, how peaky π is, from V − 1 (uniform) to 2V − 2 (one-hot): (...).

    Example:
        >>> jacobian_norm_sq(torch.zeros(10))
        tensor(9.)
    """
    check_logits(logits)
    v = logits.shape[-1]
    return v * logits.softmax(-1).square().sum(-1) + v - 2


def softmax_step(probs: Tensor, y: int | Tensor, lr: float | Tensor) -> Tensor:
    """The exact probabilities (..., V) after one softmax-regression step on label y.

    With weights W, logits z = Wx and a unit-norm input x, the step z ← z + lr·(e_y − π) gives
    π'_i ∝ π_i · exp(lr·(1[i = y] − π_i)). For another input, pass lr·‖x‖².

    Args:
        probs: (..., V), each row a distribution.
        y: the label, an int or integers that broadcast with the leading axes.
        lr: step size, likewise; negative for the negative gradient (the paper's η' = −lr).

    Example:
        >>> softmax_step(torch.tensor([0.6, 0.3, 0.1]), y=2, lr=-1.0)
        tensor([0.7104, 0.2631, 0.0264])
    """
    probs, _, _, dz = logit_step(probs, y, lr=lr)
    return (probs.log() + dz).softmax(-1)


def squeeze_line(probs: Tensor, y: int | Tensor, lr: float | Tensor | None = None) -> Tensor:
    """The probability (...) at which a step on y turns a gain of another label into a loss.

    After a negative step, label i ≠ y gains if and only if π_i lies above the line; after a
    positive step, if and only if it lies below. To first order the line is ‖π‖² − π_y. Exactly
    it is −(1/lr)·log Σ_j π_j exp(lr·(1[j = y] − π_j)), which tends to the former as lr → 0.

    Args:
        probs, y, lr: as in `softmax_step`; lr None for the first-order line.

    Example:
        >>> squeeze_line(torch.tensor([0.6, 0.3, 0.1]), y=2)
        tensor(0.3600)
    """
    probs, y, step, dz = logit_step(probs, y, lr=0.0 if lr is None else lr)
    first_order = probs.square().sum(-1) - probs.gather(-1, y.unsqueeze(-1)).squeeze(-1)
    if lr is None:
        return first_order
    # Small steps need log1p and expm1 to keep the limit, large ones a sum that cannot overflow.
    small, large = (probs * dz.expm1()).sum(-1).log1p(), (probs.log() + dz).logsumexp(-1)
    exact = -torch.where(step.abs() < 1, small, large) / torch.where(step == 0, 1.0, step)
    return torch.where(step == 0, first_order, exact)


def entropy_line(probs: Tensor) -> Tensor:
    """The probability (...) above which learning a label lowers the entropy, to first order.

    A small step s on y changes H by −s·(f(π_y) − Σ_v π_v f(π_v)), f(p) = p(log p + H). This mean is
    not negative; f is negative below e^{−H}, and increases above. So one probability p*, where f is
    the mean, tells the signs apart; below it learning raises H. A negative step is the opposite.

    Always e^{−H} ≤ ‖π‖² ≤ p* ≤ max π: pushing down a label in a valley (`squeeze_line`) lowers H.
    Of a large step all this is a trend: on its way the label may cross the line.

    Example:
        >>> entropy_line(torch.tensor([0.6, 0.3, 0.1]))
        tensor(0.4961)
    """
    _check_probs(probs)
    terms = torch.special.entr(probs)
    entropy = terms.sum(-1)
    mean = (probs * (probs * entropy.unsqueeze(-1) - terms)).sum(-1).clamp(min=0)
    # p* = e^{w − H} with w·e^w = a: Newton's steps from log(1 + a), above the root, only descend.
    a = mean * entropy.exp()
    w = a.log1p()
    for _ in range(8):
        w = w - (w - a * (-w).exp()) / (w + 1)
    return (w - entropy).exp()


def logit_step(probs: Tensor, y, **size) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """π, y and a named size s, checked and broadcast over the leading axes, and s·(e_y − π)."""
    _check_probs(probs)
    ((name, s),) = size.items()
    s = torch.as_tensor(s, dtype=probs.dtype, device=probs.device)
    if not s.isfinite().all():
        raise ValueError(f"{name} must be finite")
    y = as_labels(y, probs)
    shape = broadcast(**{"probs": probs.shape[:-1], "labels": y.shape, name: s.shape})
    probs, y, s = probs.expand(*shape, -1), y.expand(shape), s.expand(shape)
    return probs, y, s, s.unsqueeze(-1) * (one_hot(y, probs.shape[-1]).to(probs.dtype) - probs)


def _check_probs(probs: Tensor) -> None:
    check_finite(probs, "probs")
    if bad := ((probs < 0).any(-1) | ((probs.sum(-1) - 1).abs() > 1e-3)).nonzero().tolist():
        told = f"the row at index {tuple(bad[0])} does not: pass logits.softmax(-1)"
        raise ValueError(f"probs must be non-negative and sum to one along the last axis; {told}")


def check_fit(logits: Tensor, other: Tensor, name: str) -> None:
    check_logits(logits)
    if other.shape[-1:] != logits.shape[-1:]:
        shapes = f"{name} {tuple(other.shape)} and logits {tuple(logits.shape)}"
        raise ValueError(f"{shapes} do not fit: their last axes must be equal")
    broadcast(**{name: other.shape[:-1], "logits": logits.shape[:-1]})
