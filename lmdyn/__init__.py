"""The learning dynamics of finetuning: Δ log π = −η · A · K · G.

Each core module is one letter of the equation (Ren & Sutherland, ICLR 2025, Proposition 1).
Importing this package needs torch and numpy alone.
"""

from lmdyn.kernel import entk, entk_vp
from lmdyn.softmax import (
    jacobian_norm_sq,
    log_softmax_jacobian,
    log_softmax_jvp,
    softmax_step,
    squeeze_line,
)
from lmdyn.step import OneStep, one_step

__all__ = [
    "OneStep",
    "entk",
    "entk_vp",
    "jacobian_norm_sq",
    "log_softmax_jacobian",
    "log_softmax_jvp",
    "one_step",
    "softmax_step",
    "squeeze_line",
]
