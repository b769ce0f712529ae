"""What the explorer computes: a family of distributions, exact steps on one label, where mass went.

Probabilities are unitless; everything is computed in float64.
"""

import math
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from lmdyn.softmax import softmax_step, squeeze_line

N_LABELS = 50  # the V of the paper's simulation


@dataclass(frozen=True)
class Slider:
    """Range of one slider. The one for p_y moves log10 p_y."""

    low: float
    high: float
    step: float


SLIDERS = {
    "peakiness": Slider(0, 3, 0.05),
    "y": Slider(0, N_LABELS - 1, 1),
    "log10_p_y": Slider(-6, -0.05, 0.05),
    "step_size": Slider(0.1, 10, 0.1),
    "steps": Slider(0, 50, 1),
}


@dataclass(frozen=True)
class Setting:
    """One position of all controls: the arguments of `explore`."""

    peakiness: float
    y: int
    p_y: float
    lr: float
    steps: int = 1


# The regimes of the paper's simulation. The explorer opens on the first.
PRESETS = {
    "valley": Setting(peakiness=1.5, y=30, p_y=1e-3, lr=-4),
    "peak": Setting(peakiness=1.5, y=0, p_y=10**-0.4, lr=-4),
    "flat": Setting(peakiness=0, y=30, p_y=10**-1.7, lr=-4),
    "positive": Setting(peakiness=1.5, y=30, p_y=1e-3, lr=4),
}
PRESET_NAMES = {
    "valley": "y in a valley (off-policy)",
    "peak": "y on the peak (on-policy)",
    "flat": "flat",
    "positive": "positive step",
}


def distribution(peakiness: float, y: int, p_y: float, n_labels: int = N_LABELS) -> Tensor:
    """The family behind the sliders: π_y = p_y, and the rest shared by a power law of the rank.

    π_i ∝ (i + 1)^(−peakiness) for i ≠ y, so that label 0 leads the others (label 1, if y = 0).

    Args:
        peakiness: 0 makes the others equal; at 1.5 the first of them holds two fifths.
        y: the label that will be pushed, 0 … n_labels − 1.
        p_y: its probability, strictly between 0 and 1.
        n_labels: how many labels there are.

    Returns:
        (V,) float64.

    Raises:
        ValueError: an argument outside its range.

    Example:
        >>> distribution(peakiness=1, y=2, p_y=0.4, n_labels=3)
        tensor([0.4000, 0.2000, 0.4000], dtype=torch.float64)
    """
    if not _is_int(n_labels) or n_labels < 2:
        raise ValueError(f"n_labels must be an integer of at least 2, got {n_labels}")
    if not _is_int(y) or not 0 <= y < n_labels:
        raise ValueError(f"label y must be an integer in 0 … {n_labels - 1}, got {y}")
    if not 0 < p_y < 1:
        raise ValueError(f"p_y must lie strictly between 0 and 1, got {p_y}")
    if not 0 <= peakiness < math.inf:
        raise ValueError(f"peakiness must be finite and not negative, got {peakiness}")
    weights = torch.arange(1, n_labels + 1, dtype=torch.float64) ** -peakiness
    weights[y] = 0
    probs = (1 - p_y) * weights / weights.sum()
    probs[y] = p_y
    return probs


@dataclass(frozen=True)
class Exploration:
    """The distribution before and after the steps, and what there is to say about it.

    Attributes:
        before: (V,) float64.
        after: (V,) float64.
        y: the label pushed.
        lr: step size of each step, signed as in `lmdyn.softmax_step`.
        steps: how many were taken.
    """

    before: Tensor
    after: Tensor
    y: int
    lr: float
    steps: int

    @property
    def top(self) -> int:
        """i*: the most confident label other than y, before the steps (the first, if several)."""
        others = self.before.clone()
        others[self.y] = -1
        return int(others.argmax())

    @property
    def moved(self) -> float:
        """The mass that changed hands: Σ_i max(0, π'_i − π_i), the total variation."""
        return (self.after - self.before).clamp(min=0).sum().item()

    @property
    def share(self) -> float:
        """The part of ``moved`` that i* received; NaN if nothing moved."""
        gain = (self.after[self.top] - self.before[self.top]).clamp(min=0).item()
        return gain / self.moved if self.moved > 0 else math.nan

    @property
    def gaining(self) -> int:
        """How many labels other than y end above where they began."""
        gains = self.after > self.before
        gains[self.y] = False
        return int(gains.sum())

    @property
    def line(self) -> float:
        """The squeeze line to first order, ‖π‖² − π_y, of the first step."""
        return squeeze_line(self.before, self.y).item()

    @property
    def exact_line(self) -> float:
        """The squeeze line of the first step, exact for its step size."""
        return squeeze_line(self.before, self.y, self.lr).item()

    def numbers(self) -> dict[str, float]:
        """Everything the explorer shows, by name, in full precision."""
        return {
            "p_y_before": self.before[self.y].item(),
            "p_y_after": self.after[self.y].item(),
            "top": self.top,
            "top_before": self.before[self.top].item(),
            "top_after": self.after[self.top].item(),
            "moved": self.moved,
            "share": self.share,
            "gaining": self.gaining,
            "line": self.line,
            "exact_line": self.exact_line,
        }

    def verdict(self) -> str:
        """What happened, in one plain sentence."""
        if self.moved == 0:
            return "No step, no change."
        y, top, others = self.y, self.top, len(self.before) - 1
        own = _percent(abs(self.after[y] - self.before[y]).item())
        moved, share = _percent(self.moved), _percent(self.share)
        gainers = f"{self.gaining} of the {others} other labels gain" + "s" * (self.gaining == 1)
        if self.lr > 0 and self.gaining == 0:
            return f"Learned: label {y} gains {own} of the mass, and every other label pays for it."
        if self.lr > 0:
            return f"Learned: label {y} gains {own} of the mass; {gainers} too, the rest pay."
        if self.gaining == others:
            return (
                f"Not squeezed: label {y} loses {own} of the mass and every other label gains; "
                f"label {top} takes {share} of it."
            )
        lost = f"label {y} loses {own} of the mass, but {moved} moves in all"
        if self.gaining == 1:
            return f"Squeezed: {lost}, every bit of it to label {top}."
        return (
            f"Partly squeezed: {lost}; {gainers}, the rest fall, and label {top} takes {share} "
            f"of what moves."
        )


def explore(
    peakiness: float, y: int, p_y: float, lr: float, steps: int = 1, n_labels: int = N_LABELS
) -> Exploration:
    """Push label y by ``steps`` exact softmax steps and report where the mass went.

    Args:
        peakiness: shape of the distribution, as in `distribution`.
        y: the label that is pushed.
        p_y: its probability before the first step.
        lr: step size η' with its sign, as in `lmdyn.softmax_step`: negative pushes y down.
        steps: how many steps, all on y and of the same size; 0 is allowed.
        n_labels: how many labels there are.

    Returns:
        An `Exploration`.

    Raises:
        ValueError: an argument outside its range.

    Example:
        >>> result = explore(peakiness=1.5, y=30, p_y=0.001, lr=-4)
        >>> f"label {result.top} takes {result.share:.0%} of the {result.moved:.0%} that moves"
        'label 0 takes 100% of the 33% that moves'
    """
    if not _is_int(steps) or steps < 0:
        raise ValueError(f"steps must be an integer of at least 0, got {steps}")
    if not math.isfinite(lr):
        raise ValueError(f"lr must be finite, got {lr}")
    before = after = distribution(peakiness, y, p_y, n_labels)
    for _ in range(steps):
        after = softmax_step(after, y, lr)
    return Exploration(before, after, y, lr, steps)


def _is_int(value) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _percent(x: float) -> str:
    """A share for a sentence: one decimal from 1% on, two digits below."""
    x *= 100
    if x >= 1:
        return f"{x:.1f}%"
    return f"{x:#.2g}%" if x >= 1e-4 else "less than 0.0001%"
