"""Figures on the triangle of all predictions over three labels."""

import numpy as np
from matplotlib.axes import Axes

from lmdyn.plots import GAIN, NEUTRAL, axes


def simplex(labels=("label 0", "label 1", "label 2"), ax=None) -> Axes:
    """The triangle of all predictions over three labels: each corner is certainty of one label.

    Args:
        labels: three names: of the left, the right and the top corner.
        ax: Axes to draw on.

    Returns:
        The Axes, to be given to `simplex_arrows` or `simplex_contours`.
    """
    ax = axes(ax)
    corners = _on_simplex(np.eye(3))
    ax.fill(*corners.T, facecolor="none", edgecolor=NEUTRAL, lw=1.2, zorder=1.5)
    for name, (x, y), shift, va in zip(
        labels, corners, (-0.04, -0.04, 0.03), ("top", "top", "bottom"), strict=True
    ):
        ax.text(x, y + shift, name, ha="center", va=va)
    ax.set(xlim=(-0.12, 1.12), ylim=(-0.14, 0.99), aspect="equal")
    ax.axis("off")
    return ax


def simplex_arrows(start, change, color=GAIN, linestyle="-", label=None, ax=None) -> Axes:
    """Arrows on the triangle of `simplex`, each with a dot where it starts.

    Args:
        start: (N, 3) distributions, or one (3,).
        change: (N, 3) vectors whose entries sum to zero, such as a change of probabilities.
        color: of arrows and dots.
        linestyle: of the arrows.
        label: entry in the legend.
        ax: Axes to draw on.

    Returns:
        The Axes.
    """
    ax = axes(ax)
    start, change = np.atleast_2d(start), np.atleast_2d(change)
    for foot, tip in zip(_on_simplex(start), _on_simplex(start + change), strict=True):
        arrow = {"arrowstyle": "-|>", "color": color, "lw": 1.8, "ls": linestyle}
        ax.annotate("", tip, foot, arrowprops=arrow | {"shrinkA": 0, "shrinkB": 0})
    ax.plot(*_on_simplex(start).T, "o", ms=5, color=NEUTRAL, zorder=3)
    ax.plot([], [], linestyle, color=color, label=label)
    return ax


def simplex_contours(probs, values, label, ax=None) -> Axes:
    """A quantity as colour over the triangle of `simplex`.

    Args:
        probs: (N, 3) distributions that cover the triangle.
        values: (N,) the quantity at each.
        label: its name, beside the colour bar.
        ax: Axes to draw on.

    Returns:
        The Axes.
    """
    ax = axes(ax)
    x, y = _on_simplex(np.asarray(probs)).T
    colors = ax.tricontourf(x, y, np.asarray(values), levels=12)
    ax.figure.colorbar(colors, ax=ax, label=label, shrink=0.8)
    return ax


def _on_simplex(probs):
    """(N, 3) barycentric coordinates to (N, 2) points of the triangle with side one."""
    return probs @ np.array([[0, 0], [1, 0], [0.5, np.sqrt(0.75)]])
