"""What a record of `lmdyn.digits.train` says about pairs of images, and of classes."""

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from lmdyn import log_softmax_jacobian
from lmdyn.digits import Record


def influences(record: Record) -> Tensor:
    """Change of log π at x_o in nats per unit of η, −A_o K_ou G_u, as (S, N, N, V).

    The first-order effect on image o of learning image u with its true label (Proposition 1).
    Both are observed test images: the run never learned them.
    """
    jacobian = log_softmax_jacobian(record.log_probs)  # A of log-probs is A of the logits
    residual = record.log_probs.exp() - one_hot(record.labels, record.log_probs.shape[-1])
    return -torch.einsum("sovw,souwx,sux->souv", jacobian, record.kernel, residual)


def class_mean(pairs: Tensor, labels: Tensor) -> Tensor:
    """Mean over pairs of images of each pair of classes; no image is paired with itself.

    Args:
        pairs: (..., N, N), one number for each pair of images.
        labels: (N,) their classes, 0 … C − 1, at least two images of each.

    Returns:
        (..., C, C).
    """
    member = one_hot(labels).to(pairs)  # (N, C)
    others = 1 - torch.eye(len(labels)).to(pairs)
    return member.T @ (pairs * others) @ member / (member.T @ others @ member)
