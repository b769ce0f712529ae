"""Figures of chapter 1: the equation as a picture, and one step on four labels."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.offsetbox import AnchoredOffsetbox, HPacker, TextArea
from matplotlib.patches import FancyBboxPatch

from figures.labels import PALE
from lmdyn.plots import COLORS, GAIN, LOSS, NEUTRAL

LETTERS = {"G": COLORS["other"], "K": COLORS["random"], "A": COLORS["argmax"]}


def equation(push, arriving, change, y, ax=None) -> Axes:
    """The equation as a way: from the update through the shared weights to the observation.

    Args:
        push: (V,) −ηG, what the step asks of the logits of the update.
        arriving: (V,) −ηKG, what reaches the logits of the observation.
        change: (V,) −ηAKG, what the softmax there makes of it.
        y: index of the label that the step learns; ringed.
        ax: Axes to draw on.
    """
    if ax is None:
        ax = plt.subplots(figsize=(4.7, 3.0))[1]
    ax.set(xlim=(0, 10), ylim=(0, 6.3))
    ax.axis("off")
    _formula(ax)
    words = {
        "G": (("update", "$x_u, y_u$"), "$-\\eta\\,G$", ("push: what the", "loss wants here")),
        "K": (("shared", "weights"), "$-\\eta\\,K\\,G$", ("pass on: what", "reaches $x_o$")),
        "A": (
            ("observation", "$x_o$"),
            "$-\\eta\\,A\\,K\\,G$",
            ("normalise: one", "gains, others pay"),
        ),
    }
    scale = 1.1 / max(np.abs(values).max() for values in (push, arriving, change))
    for left, values, (letter, (title, term, role)) in zip(
        (0.05, 3.55, 7.05), (push, arriving, change), words.items(), strict=True
    ):
        color, middle = LETTERS[letter], left + 1.45
        box = FancyBboxPatch((left, 1.15), 2.9, 4.1, boxstyle="round,pad=0,rounding_size=0.25")
        ax.add_patch(box.set(fc="none", ec=color, lw=1.6) and box)
        for height, line in zip((4.72, 4.24), title, strict=True):
            ax.text(middle, height, line, ha="center", va="baseline")
        _bars(ax, left + 0.4, 2.6, scale * np.asarray(values), y)
        ax.text(middle, 1.4, term, ha="center", va="baseline", color=color)
        for height, line in zip((0.62, 0.17), role, strict=True):
            ax.text(middle, height, line, ha="center", va="baseline", fontsize=9)
    for foot in (2.95, 6.45):
        arrow = {"arrowstyle": "-|>", "lw": 1.8, "color": NEUTRAL, "shrinkA": 1, "shrinkB": 1}
        ax.annotate("", (foot + 0.6, 2.6), (foot, 2.6), arrowprops=arrow)
    return ax


def _formula(ax: Axes) -> None:
    """The equation above the boxes, its letters in the colours of theirs."""
    parts = [r"$\Delta \log \pi\,(x_o)\;=\;-\eta$", "$A$", "$K$", "$G$"]
    colors = [COLORS["argmax"], *(LETTERS[letter] for letter in "AKG")]
    texts = [
        TextArea(part, textprops={"fontsize": 14, "color": color})
        for part, color in zip(parts, colors, strict=True)
    ]
    packed = HPacker(children=texts, align="baseline", pad=0, sep=5)
    ax.add_artist(AnchoredOffsetbox("upper center", child=packed, frameon=False, pad=0))


def _bars(ax: Axes, left: float, zero: float, heights, y: int) -> None:
    """Small bars around a line at ``zero``, that of label ``y`` with a ring at its end."""
    x = left + 2.1 * (np.arange(len(heights)) + 0.5) / len(heights)
    width = 1.5 / len(heights)
    ax.bar(x, heights, width, zero, color=np.where(heights > 0, GAIN, LOSS))
    ax.plot([left - 0.1, left + 2.2], [zero, zero], color=NEUTRAL, lw=0.8)
    ax.plot(x[y], zero + heights[y], "o", ms=9, mfc="none", mec=COLORS["argmax"], mew=1.2)


def by_hand(names, before, push, first_order, after, fig=None) -> list[Axes]:
    """One step on a few labels, in three panels: probabilities, push, probabilities.

    Args:
        names: V labels.
        before: (V,) probabilities.
        push: (V,) −ηG, the change of the logits.
        first_order: (V,) probabilities that −ηAKG promises, drawn as diamonds.
        after: (V,) probabilities after the step.
        fig: Figure to draw on.
    """
    fig = plt.figure(figsize=(4.7, 2.5)) if fig is None else fig
    axes = fig.subplots(1, 3, sharey=True, gridspec_kw={"wspace": 0.1})
    before, push, after = map(np.asarray, (before, push, after))
    rows = np.arange(len(names))
    colors = np.where(after > before, GAIN, LOSS)
    _numbered(axes[0], before, PALE, "{:.3f}")
    _numbered(axes[1], push, np.where(push > 0, GAIN, LOSS), "{:+.3f}")
    _numbered(axes[2], after, colors, "{:.3f}")
    axes[2].plot(first_order, rows, "D", ms=5, mfc="white", mec="black", mew=1)
    top = 1.65 * max(before.max(), after.max())
    axes[0].set(title="before", xlim=(0, top), yticks=rows, yticklabels=names)
    reach = 2.0 * np.abs(push).max()
    axes[1].set(title="push on logits", xlim=(-reach, reach))
    axes[1].axvline(0, color=NEUTRAL, lw=0.8)
    axes[1].spines["left"].set_visible(False)
    axes[2].set(title="after", xlim=(0, top))
    axes[0].invert_yaxis()
    for ax in axes:
        ax.set_xticks([])
        ax.tick_params(length=0)
        ax.grid(False)
        ax.spines["bottom"].set_visible(False)
    return list(axes)


def _numbered(ax: Axes, values, colors, form: str) -> None:
    """Horizontal bars, each with its number at its end."""
    ax.barh(np.arange(len(values)), values, 0.62, color=colors)
    for row, value in enumerate(values):
        side = 1 if value >= 0 else -1
        ax.annotate(
            form.format(value).replace("-", "−"),
            (value, row),
            (7 * side, 0),
            textcoords="offset points",
            va="center",
            ha="left" if side > 0 else "right",
            fontsize=9,
        )
