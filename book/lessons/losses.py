"""A toy of one pair: two contexts, one token of y⁺ and one of y⁻, that share their weights."""

import torch
from torch import Tensor

import explorer
import zoo
from lmdyn import losses
from lmdyn.losses import Loss

OVERLAP, SIZE = 2.7, 3.0  # ⟨x⁺, x⁻⟩ and ‖x⁻‖ for ‖x⁺‖ = 1, as in the chapter on the squeeze
KERNEL = torch.tensor([[1.0, OVERLAP], [OVERLAP, SIZE**2]], dtype=torch.float64)
CHOSEN, REJECTED = 5, 30  # of the fifty labels: y⁺, and y⁻ in a valley
DEEP = -30.0  # Δ⁻ at which a run ends, nats


def start() -> Tensor:
    """(50,): the prediction that both contexts begin with."""
    p = explorer.distribution(peakiness=1.5, y=REJECTED, p_y=0.001, n_labels=50)
    p[CHOSEN] = 0.05
    return p / p.sum()


def train(loss: Loss, steps: int = 600, size: float = 0.04) -> tuple[Tensor, Tensor]:
    """A run: the predictions, (S, 2, V), and Δ⁺ and Δ⁻, (S, 2), at each step.

    A step is scaled by the larger push, so that strong losses and weak ones go equally fast.
    """
    first, y = start().log(), torch.tensor([CHOSEN, REJECTED])
    z = first.repeat(2, 1)
    path, moved, strongest = [], [], None
    for _ in range(steps):
        path.append(z.log_softmax(-1))
        moved.append((path[-1] - first)[[0, 1], y])
        c = -zoo.push(loss, *moved[-1])
        strongest = c.abs().max() if strongest is None else strongest
        if c.abs().max() < 1e-6 * strongest or moved[-1][1] < DEEP:
            break
        G = losses.residual(path[-1].exp(), y, c)
        z = z - size / torch.maximum(c.abs().max(), strongest / 5) * KERNEL @ G
    return torch.stack(path).exp(), torch.stack(moved)


def leak(path: Tensor) -> Tensor:
    """(S,): κ₊₋ / κ₊₊, the share of a push on y⁻ that arrives at y⁺, along a run."""
    residual = torch.eye(path.shape[-1], dtype=path.dtype)[[CHOSEN, REJECTED]] - path
    inner = (residual[:, 0] * residual[:, 1]).sum(-1)
    return OVERLAP * inner / residual[:, 0].square().sum(-1)
