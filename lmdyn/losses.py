"""G: every loss as a function of sequence log-probs.

A loss sees a sequence only through its log-prob log π(y|x), so the chain rule splits its residual
into one number a sequence and one vector a token (section 2 of the paper):

    G_l = ∂L/∂z_l = −c · (π_l − e_{y_l}),    c = ∂L/∂ log π(y|x).

The numbers c are the *coefficients*. All values are in nats; log-probs are sums over the tokens
of a response.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from lmdyn._check import as_labels, check_probs, unknown


class Loss:
    """A loss of one or more responses to the same prompt.

    A loss is a frozen dataclass whose fields are its hyperparameters. It is added to the zoo by
    its name in `_LOSSES`.

    Attributes:
        responses: the names of the responses it reads.
        needs_ref: whether it reads the log-probs of a reference model.
    """

    responses: ClassVar[tuple[str, ...]]
    needs_ref: ClassVar[bool] = False

    def value(
        self,
        logps: Mapping[str, Tensor],
        ref: Mapping[str, Tensor] | None = None,
        lengths: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """The loss of each of B rows.

        Args:
            logps: response name → (B,) log π(y|x), nats.
            ref: the same under the reference model, where `needs_ref`.
            lengths: response name → (B,) tokens, EOS included.

        Returns:
            (B,), differentiable in ``logps``.
        """
        raise NotImplementedError

    def coefficients(
        self,
        logps: Mapping[str, Tensor],
        ref: Mapping[str, Tensor] | None = None,
        lengths: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """c = ∂L/∂ log π(y|x) in closed form: response name → (B,). Arguments as in `value`."""
        raise NotImplementedError


@dataclass(frozen=True)
class SFT(Loss):
    """−log π(y+): c+ = −1, so G is π − e_y, as for a classifier."""

    responses = ("chosen",)

    def value(self, logps, ref=None, lengths=None):
        return -logps["chosen"]

    def coefficients(self, logps, ref=None, lengths=None):
        return {"chosen": -torch.ones_like(logps["chosen"])}


_LOSSES: dict[str, type[Loss]] = {"sft": SFT}


def names() -> list[str]:
    """The names that `get` knows.

    Example:
        >>> names()
        ['sft']
    """
    return list(_LOSSES)


def get(name: str, **hyper: float) -> Loss:
    """A loss by its name.

    Args:
        name: one of `names()`.
        **hyper: its hyperparameters, where they differ from their defaults.

    Returns:
        A `Loss`.

    Raises:
        ValueError: an unknown loss or hyperparameter (with the nearest name).

    Example:
        >>> get("sft").value({"chosen": torch.tensor([-2.0, -3.0])})
        tensor([2., 3.])
    """
    if name not in _LOSSES:
        raise ValueError(unknown("loss", name, _LOSSES))
    known = [field.name for field in fields(_LOSSES[name])]
    for key in hyper:
        if key not in known:
            raise ValueError(unknown(f"hyperparameter of {name}", key, known))
    return _LOSSES[name](**hyper)


def residual(probs: Tensor, labels: int | Tensor, coefficient: float | Tensor) -> Tensor:
    """G = −c · (π − e_y): the gradient of a loss with respect to the logits.

    Args:
        probs: (..., V), each row sums to one: the prediction π at each token.
        labels: the token y, an int or integers that broadcast to the leading axes.
        coefficient: c = ∂L/∂ log π(y|x), a float or a tensor that broadcasts to the leading axes;
            for one number a sequence and probs (B, T, V), pass (B, 1).

    Returns:
        (..., V), the same dtype as ``probs``. Each row sums to zero.

    Raises:
        ValueError: rows that are no distributions, a label out of range, shapes that do not fit.

    Example:
        >>> residual(torch.tensor([0.5, 0.3, 0.2]), labels=0, coefficient=-1.0)
        tensor([-0.5000,  0.3000,  0.2000])
    """
    check_probs(probs)
    labels = as_labels(labels, probs)
    c = torch.as_tensor(coefficient, dtype=probs.dtype, device=probs.device)
    try:
        c = c.expand(probs.shape[:-1])
    except RuntimeError:
        raise ValueError(
            f"coefficient has shape {tuple(c.shape)}, which does not fit the leading axes "
            f"{tuple(probs.shape[:-1])} of probs"
        ) from None
    return -c.unsqueeze(-1) * (probs - one_hot(labels, probs.shape[-1]).to(probs.dtype))
