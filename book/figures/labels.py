"""Figures of a prediction over labels, and of what a step does to it."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from lmdyn.plots import COLORS, GAIN, LINESTYLES, LOSS, NEUTRAL, axes

PALE = "#a3abb8"  # of probabilities before a step: seen on light pages and dark ones


def probabilities(before, after, y, line=None, log=False, ax=None, labels=None) -> Axes:
    """Where the mass went: every label's probability before and after a step.

    Grey bars are before; a triangle marks after, up and in the gain colour where the probability
    rose, down and in the loss colour where it fell. A ring marks the label the step was on.

    Args:
        before: (V,) probabilities, in the order to draw them.
        after: (V,) probabilities.
        y: index of the label that the step was on.
        line: the squeeze line, drawn dashed if given and in view.
        log: logarithmic probability axis.
        ax: Axes to draw on.
        labels: (V,) names under the bars; the index if absent.

    Returns:
        The Axes.
    """
    ax = axes(ax)
    before, after = np.asarray(before), np.asarray(after)
    x = np.arange(len(before))
    crowded = len(x) > 200
    size = 3 if crowded else float(np.clip(240 / len(x), 4, 9))
    if crowded:
        edges, heights = np.append(x, len(x)) - 0.5, before
    else:  # all bars as one path, with gaps where the height is NaN: one each makes a large file
        edges = (x[:, None] + np.array([-0.4, 0.4])).ravel()
        heights = np.insert(before.astype(float), np.arange(1, len(x)), np.nan)
    ax.stairs(heights, edges, fill=True, color=PALE, label="before", rasterized=crowded)
    for up, marker, color, name in (
        (True, "^", GAIN, "gains"),
        (False, "v", LOSS, "falls"),
    ):
        of = (after > before) == up
        ax.plot(
            x[of],
            after[of],
            marker,
            color=color,
            ms=size,
            mew=0,
            label=f"after: {name}",
            rasterized=crowded,
        )
    ax.plot(
        x[y],
        after[y],
        "o",
        ms=size + 6,
        mfc="none",
        mec=COLORS["argmax"],
        mew=1.3,
        clip_on=False,
        label="label $y$ of the step",
    )
    if log:
        ax.set_yscale("log")
        drawn = np.concatenate([before, after])
        ax.set_ylim(drawn[drawn > 0].min() / 2, min(2 * drawn.max(), 1.5))
    else:
        ax.set_ylim(0, 1.06 * max(before.max(), after.max()))
    if line is not None and line > ax.get_ylim()[0]:
        ax.axhline(line, ls="--", lw=1.2, color=NEUTRAL, label="squeeze line", zorder=1.5)
    ax.set_xlim(-0.02 * len(x) if crowded else -0.7, len(x) - 0.3)
    if labels is not None:
        ax.set_xticks(x, labels)
    ax.grid(axis="x", visible=False)
    ax.set(xlabel="label", ylabel="probability")
    return ax


def gain_by_probability(probs, change, y, line=None, log=False, ax=None) -> Axes:
    """Each label's change of log-probability against the probability it had: who gains, who falls.

    Args:
        probs: (V,) probabilities before.
        change: (V,) log of after / before, nats.
        y: index of the label that the step was on.
        line: the squeeze line, drawn dashed if given.
        log: logarithmic probability axis.
        ax: Axes to draw on.

    Returns:
        The Axes.
    """
    ax = axes(ax)
    probs, change = np.asarray(probs), np.asarray(change)
    ax.axhline(0, color=NEUTRAL, lw=0.8, zorder=1)
    if line is not None:
        ax.axvline(line, ls="--", lw=1.2, color=NEUTRAL, label="squeeze line", zorder=1)
    other = np.arange(len(probs)) != y
    for up, marker, color, name in (
        (True, "^", GAIN, "gains"),
        (False, "v", LOSS, "falls"),
    ):
        of = other & ((change > 0) == up)
        ax.plot(probs[of], change[of], marker, color=color, ms=5, mew=0, label=name)
    ax.plot(probs[y], change[y], "o", ms=7, mfc="none", mec=COLORS["argmax"], label="label $y$")
    if log:
        ax.set_xscale("log")
    ax.set(xlabel="probability before", ylabel=r"$\log \alpha_i$, nats")
    return ax


def share_map(p_y, peakiness, share, boundaries=(), ax=None) -> Axes:
    """Which part of the mass that moves goes to the most confident other label.

    Args:
        p_y: (C,) probabilities of the label before the step, the columns.
        peakiness: (R,) the rows.
        share: (R, C) between 0 and 1, as colour.
        boundaries: up to two (R, C) arrays, each drawn as a line where it crosses zero; the first
            solid, the second dashed.
        ax: Axes to draw on.

    Returns:
        The Axes.
    """
    ax = axes(ax)
    colors = ax.pcolormesh(p_y, peakiness, share, vmin=0, vmax=1, rasterized=True)
    ax.figure.colorbar(colors, ax=ax, label="share of the moved mass that goes to $i^*$")
    for margin, style in zip(boundaries, ("-", "--"), strict=False):
        line = ax.contour(p_y, peakiness, margin, levels=[0], colors="white", linestyles=style)
        line.set(path_effects=[withStroke(linewidth=3.5, foreground=COLORS["argmax"])])
    ax.set(xscale="log", xlabel="probability $p_y$ before the step", ylabel="peakiness")
    ax.grid(visible=False)
    return ax


def label_changes(measured, predicted, spread=None, ax=None) -> Axes:
    """What a step did to each label: bars for the change measured, diamonds for the predicted.

    Args:
        measured: (V,) changes; gains and losses have their own colours.
        predicted: (V,) changes to first order.
        spread: (2, V) lower and upper ends of a whisker on each bar.
        ax: Axes to draw on.

    Returns:
        The Axes.
    """
    ax = axes(ax)
    measured, x = np.asarray(measured), np.arange(len(measured))
    ax.bar(
        x,
        measured,
        color=np.where(measured > 0, GAIN, LOSS),
        alpha=0.75,
        label="measured",
    )
    if spread is not None:
        ax.vlines(x, *np.asarray(spread), color=COLORS["argmax"], lw=1)
    ax.plot(x, predicted, "D", ms=3.5, mfc="white", mec="black", mew=0.9, label="predicted")
    ax.axhline(0, color=NEUTRAL, lw=0.8)
    ax.set_xticks(x)
    ax.tick_params(labelsize=9)
    ax.grid(axis="x", visible=False)
    return ax


def pushes(probs, push, labels, names=("$x^+$", "$x^-$"), ax=None) -> Axes:
    """What a loss asks of its predictions: bars of probability, an arrow at each for its logit.

    Arrows start at the top of the bar, up in the gain colour, down in the loss colour.

    Args:
        probs: (C, V) predictions in C contexts, drawn side by side.
        push: (C, V) −G, as long as it is to be drawn; what is shorter than a hundredth is left out.
        labels: (C,) the label that the loss names in each context; ringed.
        names: C names of the contexts.
        ax: Axes to draw on.

    Returns:
        The Axes.
    """
    ax = axes(ax)
    probs, push = np.asarray(probs), np.asarray(push)
    n_labels = probs.shape[1]
    starts = np.arange(len(probs)) * (n_labels + 1)
    for start, heights, arrows, label in zip(starts, probs, push, labels, strict=True):
        x = start + np.arange(n_labels)
        ax.update_datalim(np.column_stack([x, heights + arrows]))  # arrows alone do not count
        ax.bar(x, heights, width=0.75, color=PALE)
        ax.plot(x[label], heights[label], "o", ms=5, mfc="none", mec=COLORS["argmax"], mew=1)
        for at, height, length in zip(x, heights, arrows, strict=True):
            if abs(length) > 0.01:
                arrow = {
                    "arrowstyle": "-|>",
                    "color": GAIN if length > 0 else LOSS,
                    "lw": 1.8,
                }
                arrow |= {"shrinkA": 0, "shrinkB": 0, "mutation_scale": 9}
                ax.annotate("", (at, height + length), (at, height), arrowprops=arrow)
    ax.axhline(0, color=NEUTRAL, lw=0.8)
    ax.set_xticks(starts + (n_labels - 1) / 2, names)
    ax.set_yticks([])
    ax.tick_params(length=0)
    ax.grid(visible=False)
    ax.spines[["left", "bottom"]].set_visible(False)
    return ax


def push_field(x, y, push, path=None, ax=None) -> Axes:
    """Where a loss of two quantities drives them: arrows, and the lines where a part of it stops.

    Seven arrows along each axis, each as long as the cube root of its strength, so that weak ones
    can be seen. The line where the push along the first axis changes its sign has the colour of y+
    and is solid, that of the second axis has the colour of y− and is dashed; where both pushes are
    zero the plane is grey.

    Args:
        x: (C,) of the first quantity.
        y: (R,) of the second.
        push: (2, R, C) both parts at each place.
        path: (S, 2) a way through the plane, with a dot at its end.
        ax: Axes to draw on.

    Returns:
        The Axes.
    """
    ax = axes(ax)
    push = np.asarray(push)
    strength = np.hypot(*push)
    with np.errstate(invalid="ignore", divide="ignore"):
        arrows = push / strength * np.cbrt(strength / strength.max())
    rows, columns = (((np.arange(7) + 0.5) * len(axis) / 7).astype(int) for axis in (y, x))
    ax.quiver(
        np.asarray(x)[columns],
        np.asarray(y)[rows],
        *arrows[:, rows[:, None], columns],
        color=NEUTRAL,
        angles="xy",
        pivot="mid",
        scale=10,
        width=0.009,
        headwidth=4,
    )
    ax.contourf(x, y, strength, levels=[-1, 1e-12 * strength.max()], colors="#e2e5ea", zorder=0)
    for part, family in zip(push, ("chosen", "rejected"), strict=True):
        if part.min() < 0 < part.max():
            ax.contour(
                x,
                y,
                part,
                levels=[0],
                colors=COLORS[family],
                linestyles=LINESTYLES[family],
            )
    if path is not None:
        ax.plot(*np.asarray(path).T, color=COLORS["argmax"], lw=1.4)
        ax.plot(*np.asarray(path)[-1], "o", ms=5, color=COLORS["argmax"])
    ax.grid(visible=False)
    return ax
