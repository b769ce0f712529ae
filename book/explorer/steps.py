"""What the label explorer computes: a family of distributions, exact steps, where mass went.

Probabilities are unitless; everything is computed in float64.
"""

import math
from dataclasses import dataclass
from numbers import Integral
from typing import NamedTuple

import torch
from torch import Tensor

from lmdyn.softmax import softmax_step, squeeze_line

N_LABELS = 50  # the V of the paper's simulation


class Slider(NamedTuple):
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


# The regimes of the paper's simulation, by name. The explorer opens on the first.
PRESETS = {
    "y in a valley (off-policy)": Setting(peakiness=1.5, y=30, p_y=1e-3, lr=-4),
    "y on the peak (on-policy)": Setting(peakiness=1.5, y=0, p_y=10**-0.4, lr=-4),
    "flat": Setting(peakiness=0, y=30, p_y=10**-1.7, lr=-4),
    "positive step": Setting(peakiness=1.5, y=30, p_y=1e-3, lr=4),
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
        (V,) float64; a ValueError for an argument outside its range.

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
        before, after: (V,) float64.
        y, lr: the label pushed, and the signed size of each step.
        numbers: everything the explorer shows, by name, in full precision: the probability of y;
            ``top``, the most confident label other than y before the steps (the first, if
            several), and its probability; ``moved``, the mass that changed hands, the total
            variation; ``share``, the part of it that the top received, NaN if nothing moved;
            ``gaining``, how many labels other than y end above where they began; the squeeze line
            of the first step, to first order and exact for its size.
    """

    before: Tensor
    after: Tensor
    y: int
    lr: float
    numbers: dict[str, float]

    def verdict(self) -> str:
        """What happened, in one plain sentence."""
        y, n, others = self.y, self.numbers, len(self.before) - 1
        if n["moved"] == 0:
            return "No step, no change."
        top, gaining, moved = n["top"], n["gaining"], _percent(n["moved"])
        own = f"{_percent(abs(n['p_y_after'] - n['p_y_before']))} of the mass"
        takes = f"label {top} takes {_percent(n['share'])} of"
        gainers = f"{gaining} of the {others} other labels gain" + "s" * (gaining == 1)
        if self.lr > 0:
            pays = f"; {gainers} too, the rest pay"
            pays = pays if gaining else ", and every other label pays for it"
            return f"Learned: label {y} gains {own}{pays}."
        lost = f"label {y} loses {own}"
        if gaining == others:
            return f"Not squeezed: {lost} and every other label gains; {takes} it."
        if gaining == 1:
            return f"Squeezed: {lost}, but {moved} moves in all, every bit of it to label {top}."
        lost = f"{lost}, but {moved} moves in all"
        return f"Partly squeezed: {lost}; {gainers}, the rest fall, and {takes} what moves."


def explore(
    peakiness: float, y: int, p_y: float, lr: float, steps: int = 1, n_labels: int = N_LABELS
) -> Exploration:
    """Push label y of a `distribution` by exact steps and report where the mass went.

    Args:
        peakiness, y, p_y, n_labels: as in `distribution`, with its errors.
        lr: step size η' with its sign, as in `lmdyn.softmax_step`: negative pushes y down.
        steps: how many steps, all on y and of the same size; 0 is allowed.

    Example:
        >>> found = explore(peakiness=1.5, y=30, p_y=0.001, lr=-4).numbers
        >>> f"label {found['top']} takes {found['share']:.0%} of the {found['moved']:.0%} moved"
        'label 0 takes 100% of the 33% moved'
    """
    if not _is_int(steps) or steps < 0:
        raise ValueError(f"steps must be an integer of at least 0, got {steps}")
    if not math.isfinite(lr):
        raise ValueError(f"lr must be finite, got {lr}")
    before = after = distribution(peakiness, y, p_y, n_labels)
    for _ in range(steps):
        after = softmax_step(after, y, lr)
    others = torch.arange(n_labels) != y
    top = int(before.where(others, -1).argmax())
    gains = (after - before).clamp(min=0)
    moved = gains.sum().item()
    numbers = {
        "p_y_before": before[y].item(),
        "p_y_after": after[y].item(),
        "top": top,
        "top_before": before[top].item(),
        "top_after": after[top].item(),
        "moved": moved,
        "share": gains[top].item() / moved if moved > 0 else math.nan,
        "gaining": int((gains[others] > 0).sum()),
        "line": squeeze_line(before, y).item(),
        "exact_line": squeeze_line(before, y, lr).item(),
    }
    return Exploration(before, after, y, lr, numbers)


def _is_int(value) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _percent(x: float) -> str:
    """A share for a sentence: one decimal from 1% on, two digits below."""
    if x >= 0.01:
        return f"{100 * x:.1f}%"
    return f"{100 * x:#.2g}%" if x >= 1e-6 else "less than 0.0001%"
