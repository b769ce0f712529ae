"""Figures of the chapter on losses: what each of them asks of a response, a token, a label."""

import numpy as np
from matplotlib.axes import Axes

from figures.labels import PALE
from figures.numbers import SIGNED
from lmdyn.plots import COLORS, LINESTYLES, NEUTRAL, axes


def zoo_map(h, pushes, names, groups=(), ax=None) -> Axes:
    """Who is pushed how hard at which margin: a row a loss, blue up, orange down, white not at all.

    Args:
        h: (S,) margins, nats, evenly spaced.
        pushes: (R, S) of R losses, relative to what counts as full colour.
        names: R names.
        groups: numbers of rows after which a line is drawn.
        ax: Axes to draw on.

    Returns:
        The Axes.
    """
    ax = axes(ax)
    h, pushes = np.asarray(h), np.clip(np.asarray(pushes), -1, 1)
    extent = (h[0], h[-1], len(pushes) - 0.5, -0.5)
    style = {"cmap": SIGNED, "vmin": -1, "vmax": 1, "interpolation": "nearest"}
    ax.imshow(pushes, aspect="auto", extent=extent, **style)
    ax.axvline(0, color=COLORS["argmax"], lw=0.9, ls=":")
    for row in range(1, len(pushes)):
        heavy = row in groups
        ax.axhline(row - 0.5, color=NEUTRAL if heavy else "white", lw=1.2 if heavy else 1.5)
    ax.set_yticks(range(len(names)), names, fontsize=9)
    ax.tick_params(axis="y", length=0)
    ax.grid(False)
    return ax


def steps(x, series, broad="", ax=None) -> Axes:
    """Pushes against what a loss reads; those that coincide stay visible.

    Args:
        x: (S,).
        series: (name, family) → (S,).
        broad: the name of one to draw broad and pale, behind the others.
        ax: Axes to draw on.

    Returns:
        The Axes.
    """
    ax = axes(ax)
    ax.axhline(0, color=NEUTRAL, lw=0.8, zorder=1)
    for (name, family), values in series.items():
        look = {"color": COLORS[family], "ls": LINESTYLES[family], "label": name}
        look |= {"lw": 4.5, "alpha": 0.3, "zorder": 1.5} if name == broad else {}
        ax.plot(x, values, **look)
    return ax


def two_predictions(probs, other, names, ax=None) -> Axes:
    """A prediction as bars, and another as ticks on them.

    Args:
        probs: (V,) the model's.
        other: (V,) such as a teacher's.
        names: the two names, for the legend.
        ax: Axes to draw on.

    Returns:
        The Axes.
    """
    ax = axes(ax)
    x = np.arange(len(probs))
    ax.bar(x, probs, 0.7, color=PALE, label=names[0])
    ax.hlines(other, x - 0.35, x + 0.35, color=COLORS["argmax"], lw=2.2, label=names[1])
    ax.set_xticks(x, x + 1)
    ax.grid(axis="x", visible=False)
    ax.legend(fontsize=9)
    return ax


def label_pushes(pushes, ax=None) -> Axes:
    """What losses ask of each label's logit: bars side by side, above zero is up.

    Args:
        pushes: (name, family) → (V,) of −G.
        ax: Axes to draw on.

    Returns:
        The Axes.
    """
    ax = axes(ax)
    width = 0.8 / len(pushes)
    for number, ((name, family), values) in enumerate(pushes.items()):
        x = np.arange(len(values))
        at = x - 0.4 + (number + 0.5) * width
        ax.bar(at, values, width, color=COLORS[family], alpha=0.85, label=name)
        ax.set_xticks(x, x + 1)
    ax.axhline(0, color=COLORS["argmax"], lw=0.8)
    ax.grid(axis="x", visible=False)
    ax.legend(fontsize=9)
    return ax
