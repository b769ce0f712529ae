"""The learning dynamics of finetuning: Δ log π = −η · A · K · G.

Each module is a letter of it (Ren & Sutherland, ICLR 2025, Proposition 1): `softmax` is A, `kernel`
is K, `losses` is G, and `step` the whole; `lmdyn.lm` does the same for language models. Importing
this package needs torch and numpy alone.
"""

from importlib.metadata import version

from lmdyn import losses
from lmdyn.kernel import entk, entk_vp
from lmdyn.softmax import (
    entropy_jvp,
    entropy_line,
    jacobian_norm_sq,
    log_softmax_jacobian,
    log_softmax_jvp,
    softmax_step,
    squeeze_line,
)
from lmdyn.step import OneStep, one_step

__version__ = version("lmdyn")

__all__ = ["OneStep", "entk", "entk_vp", "entropy_jvp", "entropy_line", "jacobian_norm_sq"]
__all__ += ["log_softmax_jacobian", "log_softmax_jvp", "losses", "one_step", "softmax_step"]
__all__ += ["squeeze_line"]
