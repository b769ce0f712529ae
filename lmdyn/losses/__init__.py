"""G: every loss as a function of sequence log-probs, in nats.

A loss sees a sequence only through its log-prob log π(y|x), so the chain rule splits its residual
into one number a sequence, the *coefficient* c, and one vector a token (section 2 of the paper):

    G_l = ∂L/∂z_l = −c · (π_l − e_{y_l}),    c = ∂L/∂ log π(y|x).
"""

from dataclasses import fields

from torch import Tensor

from lmdyn.checks import check_known
from lmdyn.losses import free, margin, mixed, ratio  # noqa: F401 (they fill the registry)
from lmdyn.losses.base import REGISTRY, Loss
from lmdyn.softmax import logit_step

__all__ = ["Loss", "get", "names", "residual"]


def __getattr__(name: str) -> type[Loss]:
    """The class of a loss, by its own name: ``losses.DPO``."""
    for loss in REGISTRY.values():
        if loss.__name__ == name:
            return loss
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def names() -> list[str]:
    """The names that `get` knows."""
    return list(REGISTRY)


def get(name: str | Loss, **hyper: float | str) -> Loss:
    """A loss by its name, with hyperparameters that differ from their defaults.

    Example:
        >>> get("dpo", beta=0.5)
        DPO(beta=0.5, label_smoothing=0.0)
    """
    if isinstance(name, Loss):
        if hyper:
            raise ValueError(
                f"{name} has its hyperparameters: pass a name with {hyper}, or it alone"
            )
        return name
    check_known("loss", name, REGISTRY)
    known = [field.name for field in fields(REGISTRY[name])]
    for key in hyper:
        check_known(f"hyperparameter of {name}", key, known)
    return REGISTRY[name](**hyper)


def residual(probs: Tensor, labels: int | Tensor, coefficient: float | Tensor) -> Tensor:
    """G = −c · (π − e_y), (..., V): the gradient of a loss with respect to the logits.

    Args:
        probs: (..., V), the prediction π at each token.
        labels: the token y, an int or integers that broadcast to the leading axes.
        coefficient: c, which broadcasts to them too; one number a sequence is (B, 1).

    Example:
        >>> import torch
        >>> residual(torch.tensor([0.5, 0.3, 0.2]), labels=0, coefficient=-1.0)
        tensor([-0.5000,  0.3000,  0.2000])
    """
    return logit_step(probs, labels, coefficient=coefficient)[-1]
