"""G: every loss as a function of sequence log-probs.

A loss sees a sequence only through its log-prob log π(y|x), so the chain rule splits its residual
into one number a sequence and one vector a token (section 2 of the paper):

    G_l = ∂L/∂z_l = −c · (π_l − e_{y_l}),    c = ∂L/∂ log π(y|x).

The numbers c are the *coefficients*. All values are in nats; log-probs are sums over the tokens
of a response.
"""

from dataclasses import fields

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from lmdyn.checks import as_labels, check_probs, unknown
from lmdyn.losses.base import Loss
from lmdyn.losses.free import ORPO, SFT, SimPO, SLiC
from lmdyn.losses.margin import DPO, EXO, IPO, SPIN, DiscoPOP, Hinge, Robust
from lmdyn.losses.mixed import CWDPO, CWSFT, DPOP, RPO, CalDPO
from lmdyn.losses.ratio import BCO, KTO, NCA, SPPO, APODown, APOZero

_LOSSES: dict[str, type[Loss]] = {
    "sft": SFT,
    "dpo": DPO,
    "ipo": IPO,
    "slic": SLiC,
    "hinge": Hinge,
    "sppo": SPPO,
    "spin": SPIN,
    "robust": Robust,
    "nca": NCA,
    "bco": BCO,
    "exo": EXO,
    "apo_zero": APOZero,
    "apo_down": APODown,
    "discopop": DiscoPOP,
    "simpo": SimPO,
    "orpo": ORPO,
    "kto": KTO,
    "rpo": RPO,
    "dpop": DPOP,
    "cal_dpo": CalDPO,
    "cw_sft": CWSFT,
    "cw_dpo": CWDPO,
}

__all__ = [
    "BCO",
    "CWDPO",
    "CWSFT",
    "DPO",
    "DPOP",
    "EXO",
    "IPO",
    "KTO",
    "NCA",
    "ORPO",
    "RPO",
    "SFT",
    "SPIN",
    "SPPO",
    "APODown",
    "APOZero",
    "CalDPO",
    "DiscoPOP",
    "Hinge",
    "Loss",
    "Robust",
    "SLiC",
    "SimPO",
    "get",
    "names",
    "residual",
]


def names() -> list[str]:
    """The names that `get` knows.

    Example:
        >>> "dpo" in names()
        True
    """
    return list(_LOSSES)


def get(name: str, **hyper: float | str) -> Loss:
    """A loss by its name.

    Args:
        name: one of `names()`.
        **hyper: its hyperparameters, where they differ from their defaults.

    Returns:
        A `Loss`.

    Raises:
        ValueError: an unknown loss or hyperparameter (with the nearest name), a hyperparameter out
            of its range.

    Example:
        >>> get("sft").value({"chosen": torch.tensor([-2.0, -3.0])})
        tensor([2., 3.])
        >>> get("dpo", beta=0.5)
        DPO(beta=0.5, label_smoothing=0.0)
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
