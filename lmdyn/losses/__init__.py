"""G: every loss as a function of log-probs, in nats.

Most losses see a sequence only through its log-prob log π(y|x), so the chain rule splits their
residual into one number a sequence, the *coefficient* c, and one vector a token (section 2 of the
paper); those of reinforcement learning see each token's, and c is one number a token:

    G_l = ∂L/∂z_l = −c_l · (π_l − e_{y_l}),    c_l = ∂L/∂ log π(y_l|x, y_<l).

What reads whole distributions, entropy or a teacher's, has a vector G of its own.
"""

from dataclasses import fields

from torch import Tensor

from lmdyn.checks import check_known, check_logits
from lmdyn.losses import free, margin, mixed, policy, ratio  # noqa: F401 (they fill the registry)
from lmdyn.losses.base import REGISTRY, Loss
from lmdyn.losses.policy import advantages
from lmdyn.softmax import check_fit, entropy_residual, logit_step

__all__ = ["Loss", "advantages", "entropy_residual", "get", "kl_residual", "names", "residual"]


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
            told = f"pass a name with {hyper}, or it alone"
            raise ValueError(f"{name} has its hyperparameters: {told}")
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


def kl_residual(logits: Tensor, other: Tensor, direction: str = "reverse") -> Tensor:
    """G of distillation, (..., V): the gradient of a KL divergence by the logits, nats.

    With π of ``logits`` and q of ``other``, a teacher's, (..., V) each: "reverse" is KL(π‖q), with
    G = π ∘ (log π − log q − KL), and "forward" KL(q‖π), with G = π − q. TRL's
    ``DistillationTrainer`` with β = 1 and β = 0. ValueError where KL(π‖q) is infinite.

    Example:
        >>> import torch
        >>> kl_residual(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0]), "forward")
        tensor([ 0.2311, -0.2311])
    """
    check_known("direction", direction, ("reverse", "forward"))
    check_logits(other, "other")
    check_fit(logits, other, "other")
    if direction == "forward":
        return logits.softmax(-1) - other.softmax(-1)
    logp, logq = logits.log_softmax(-1), other.log_softmax(-1)
    probs = logp.exp()
    gap = (logp - logq).where(probs > 0, 0)
    if bad := gap.isinf().nonzero().tolist():
        told = f"other is -inf at index {tuple(bad[0])}, where logits are not"
        raise ValueError(f'KL(π‖q) is infinite: {told}: direction="forward" is finite')
    return probs * (gap - (probs * gap).sum(-1, keepdim=True))
