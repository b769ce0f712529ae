"""Figures of chapter 2: what one update does to images of digits."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from figures.labels import label_changes
from figures.numbers import images


def one_update(learned, observed, measured, predicted, ylabel) -> list[Axes]:
    """The image that is learned, and below each observed image the change of its prediction.

    Args:
        learned: (1, H, W) image.
        observed: name → (1, H, W) image.
        measured: (N, V) change of each observed prediction.
        predicted: (N, V) the same to first order, drawn as diamonds.
        ylabel: the change and its unit.

    Returns:
        The Axes of the charts.
    """
    columns = range(len(observed))
    upper, lower = ([f"{row} {i}" for i in columns] for row in ("image", "chart"))
    axes = plt.figure(figsize=(4.7, 3)).subplot_mosaic(
        [["learned", *upper], [".", *lower]],
        height_ratios=(1, 1.25),
        width_ratios=(0.5, *(1 for _ in columns)),
    )
    pictures = [learned, *observed.values()]
    shown = [axes[name] for name in ("learned", *upper)]
    images(np.stack([np.asarray(x) for x in pictures]), ["learned", *observed], shown)
    charts = [axes[name] for name in lower]
    changes(charts, measured, predicted, ylabel=ylabel)
    return charts


def changes(axes, measured, predicted, spread=None, ylabel=None) -> None:
    """`label_changes` side by side, on one scale.

    Args:
        axes: N Axes.
        measured: (N, V).
        predicted: (N, V).
        spread: (N, 2, V) ends of whiskers.
        ylabel: of the first.
    """
    spread = [None] * len(axes) if spread is None else spread
    for ax in axes[1:]:  # before anything is drawn: the scale of the first must hold them all
        ax.sharey(axes[0])
    for ax, m, p, s in zip(axes, measured, predicted, spread, strict=True):
        label_changes(m, p, s, ax=ax)
        ax.tick_params(labelsize=9, labelleft=ax is axes[0])
        ax.set_xlabel("label")
    axes[0].set_ylabel(ylabel)
