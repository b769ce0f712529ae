"""Figures of the squeeze line as a water level."""

import numpy as np
from matplotlib.axes import Axes

from lmdyn.plots import COLORS, GAIN, LOSS, NEUTRAL, axes

WATER, LAND = "#bfdcf0", "#b9ae96"


def waterline(probs, y, line, low=-0.2, ax=None) -> Axes:
    """Labels as land, the squeeze line as the water level: what stands above it gains.

    The land of a label is as high as its probability. An arrow leads from the water to the land's
    top: up where it stands out, down where it is drowned. Its length times the step size is the
    label's change of log-probability after a negative step on ``y``.

    Args:
        probs: (V,) probabilities before the step.
        y: the label that is pushed down, ringed.
        line: the squeeze line, below zero or above.
        low: how deep the ground is drawn.
        ax: Axes to draw on.

    Returns:
        The Axes.
    """
    ax = axes(ax)
    probs = np.asarray(probs, dtype=float)
    x, other = np.arange(len(probs)), np.arange(len(probs)) != y
    ax.axhspan(low, line, color=WATER, lw=0, zorder=0)
    ax.bar(x, probs - low, 0.86, bottom=low, color=LAND, lw=0, zorder=1)
    ax.axhline(line, color=NEUTRAL, lw=1.4, ls="--", zorder=2)
    for i in x[other]:
        color = GAIN if probs[i] > line else LOSS
        style = {"arrowstyle": "-|>,head_length=0.35,head_width=0.22", "color": color, "lw": 1.6}
        style |= {"shrinkA": 0, "shrinkB": 0}
        ax.annotate("", (i, probs[i]), (i, line), arrowprops=style, zorder=3)
    ax.plot(y, probs[y], "o", ms=9, mfc="none", mec=COLORS["argmax"], mew=1.4, zorder=4)
    ax.set_xticks(x, ["$y$" if i == y else str(i) for i in x])
    ax.set(xlabel="label", ylim=(low, 1.12 * max(probs.max(), line)), xlim=(-0.6, len(x) - 0.4))
    ax.grid(False)
    return ax
