"""One function per kind of figure, used by every chapter. Draws what it is given, computes nothing.

Call `use_style` once per notebook. Every function takes ``ax=None`` (a new figure if absent) and
returns the Axes it drew on, so that a reader can add to it.
"""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

# One colour per response family, everywhere; each has its own line style, so that no meaning
# hangs on colour alone. The families and their hues are those of the paper's reference code.
COLORS = {
    "chosen": "#0072b2",
    "rejected": "#d97706",
    "other": "#b91c3c",
    "random": "#0e9aa7",
    "argmax": "#111111",
}
LINESTYLES = {"chosen": "-", "rejected": "--", "other": "-.", "random": ":", "argmax": "-"}
GAIN, LOSS = COLORS["chosen"], COLORS["rejected"]
NEUTRAL = "#6b7280"
SEQUENTIAL, DIVERGING = "cividis", "RdBu"  # both are safe for colour-blind readers


def use_style() -> None:
    """Set the book's figure style: vector output, readable sizes, a white card in dark mode."""
    plt.rcParams.update(
        {
            "figure.figsize": (6.4, 3.6),
            "figure.constrained_layout.use": True,
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            "font.size": 10.5,
            "axes.titlesize": 11,
            "axes.labelsize": 10.5,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.25,
            "legend.frameon": False,
            "lines.linewidth": 1.8,
            "image.cmap": SEQUENTIAL,
            "svg.hashsalt": "lmdyn",  # the same figure gives the same file
        }
    )
    try:
        from matplotlib_inline.backend_inline import set_matplotlib_formats
    except ImportError:  # outside a notebook
        return
    set_matplotlib_formats("svg", metadata={"Date": None})


def _axes(ax: Axes | None) -> Axes:
    return plt.subplots()[1] if ax is None else ax


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
    ax = _axes(ax)
    before, after = np.asarray(before), np.asarray(after)
    x = np.arange(len(before))
    crowded = len(x) > 200
    size = 2 if crowded else float(np.clip(240 / len(x), 4, 9))
    if crowded:
        edges, heights = np.append(x, len(x)) - 0.5, before
    else:  # all bars as one path, with gaps where the height is NaN: one each makes a large file
        edges = (x[:, None] + np.array([-0.4, 0.4])).ravel()
        heights = np.insert(before.astype(float), np.arange(1, len(x)), np.nan)
    ax.stairs(heights, edges, fill=True, color="#c9ced6", label="before", rasterized=crowded)
    for up, marker, color, name in ((True, "^", GAIN, "gains"), (False, "v", LOSS, "falls")):
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
    ax.set_xlim(-0.7, len(x) - 0.3)
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
    ax = _axes(ax)
    probs, change = np.asarray(probs), np.asarray(change)
    ax.axhline(0, color=NEUTRAL, lw=0.8, zorder=1)
    if line is not None:
        ax.axvline(line, ls="--", lw=1.2, color=NEUTRAL, label="squeeze line", zorder=1)
    other = np.arange(len(probs)) != y
    for up, marker, color, name in ((True, "^", GAIN, "gains"), (False, "v", LOSS, "falls")):
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
    ax = _axes(ax)
    colors = ax.pcolormesh(p_y, peakiness, share, vmin=0, vmax=1, rasterized=True)
    ax.figure.colorbar(colors, ax=ax, label="share of the moved mass that goes to $i^*$")
    for margin, style in zip(boundaries, ("-", "--"), strict=False):
        line = ax.contour(p_y, peakiness, margin, levels=[0], colors="white", linestyles=style)
        line.set(path_effects=[withStroke(linewidth=3.5, foreground=COLORS["argmax"])])
    ax.set(xscale="log", xlabel="probability $p_y$ before the step", ylabel="peakiness")
    ax.grid(visible=False)
    return ax


def curves(x, series, ax=None) -> Axes:
    """Lines over a common axis, each told apart by colour and style.

    Args:
        x: (S,).
        series: name → (S,) values, or (name, family) → (S,) values to take the colour and line
            style of a response family. Without one they come in the order of ``COLORS``.
        ax: Axes to draw on.

    Returns:
        The Axes.
    """
    ax = _axes(ax)
    families = list(COLORS)
    for number, (name, values) in enumerate(series.items()):
        name, family = name if isinstance(name, tuple) else (name, families[number % 5])
        ax.plot(x, values, LINESTYLES[family], color=COLORS[family], label=name)
    return ax


def simplex(labels=("label 0", "label 1", "label 2"), ax=None) -> Axes:
    """The triangle of all predictions over three labels: each corner is certainty of one label.

    Args:
        labels: three names: of the left, the right and the top corner.
        ax: Axes to draw on.

    Returns:
        The Axes, to be given to `simplex_arrows` or `simplex_contours`.
    """
    ax = _axes(ax)
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
    ax = _axes(ax)
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
    ax = _axes(ax)
    x, y = _on_simplex(np.asarray(probs)).T
    colors = ax.tricontourf(x, y, np.asarray(values), levels=12)
    ax.figure.colorbar(colors, ax=ax, label=label, shrink=0.8)
    return ax


def _on_simplex(probs):
    """(N, 3) barycentric coordinates to (N, 2) points of the triangle with side one."""
    return probs @ np.array([[0, 0], [1, 0], [0.5, np.sqrt(0.75)]])


def remainder(lr, measured, expected=None, ax=None) -> Axes:
    """The error of the first-order prediction against the step size, on log-log axes.

    Args:
        lr: (S,) step sizes.
        measured: name → (S,) errors in nats, drawn as dots with a line style each.
        expected: name → (S,) errors that theory gives for curves of ``measured``, as thin lines.
        ax: Axes to draw on.

    Returns:
        The Axes.
    """
    ax = _axes(ax)
    markers = {"o": GAIN, "s": LOSS, "^": NEUTRAL}
    for (name, error), (marker, color) in zip(measured.items(), markers.items(), strict=False):
        ax.loglog(lr, error, marker, ms=4.5, color=color, label=name)
        if expected and name in expected:
            ax.loglog(lr, expected[name], "-", lw=1, color=color)
    ax.set(xlabel=r"step size $\eta$", ylabel="|measured − predicted|, nats")
    return ax


def images(batch, titles=None, axes=None):
    """Grey-scale images in a row, ink dark on white paper.

    Args:
        batch: (N, 1, H, W) or (N, H, W) in any units: the smallest value is paper, the largest ink.
        titles: N lines of text, one above each image.
        axes: N Axes to draw on; a new row if absent.

    Returns:
        The N Axes.
    """
    batch = np.asarray(batch)
    if axes is None:
        axes = plt.subplots(1, len(batch), figsize=(6.4, 7.2 / len(batch)), squeeze=False)[1][0]
    for number, (ax, image) in enumerate(zip(axes, batch, strict=True)):
        ax.imshow(
            image.reshape(image.shape[-2:]), cmap="gray_r", vmin=batch.min(), vmax=batch.max()
        )
        ax.set_xticks([])
        ax.set_yticks([])
        ax.grid(False)
        ax.spines[:].set_visible(False)
        if titles is not None:
            ax.set_title(titles[number])
    return axes


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
    ax = _axes(ax)
    measured, x = np.asarray(measured), np.arange(len(measured))
    ax.bar(x, measured, color=np.where(measured > 0, GAIN, LOSS), alpha=0.75, label="measured")
    if spread is not None:
        ax.vlines(x, *np.asarray(spread), color=NEUTRAL, lw=1.2)
    ax.plot(x, predicted, "D", ms=3.5, mfc="white", mec="black", mew=0.9, label="predicted")
    ax.axhline(0, color=NEUTRAL, lw=0.8)
    ax.set_xticks(x)
    ax.tick_params(labelsize=8)
    ax.grid(axis="x", visible=False)
    return ax


def predicted_measured(predicted, measured, ax=None) -> Axes:
    """Measured against predicted change, a dot each, with the diagonal of perfect prediction.

    Args:
        predicted: (N,) nats.
        measured: (N,) nats.
        ax: Axes to draw on.

    Returns:
        The Axes.
    """
    ax = _axes(ax)
    ax.plot(predicted, measured, ".", ms=3, color=GAIN, alpha=0.4, mew=0, rasterized=True)
    ax.axline((0, 0), slope=1, color=NEUTRAL, lw=1, ls="--")
    ax.set(xlabel="predicted Δ log π, nats", ylabel="measured Δ log π, nats")
    return ax


def class_matrix(matrix, row, column, label, vmax=None, ax=None) -> Axes:
    """A number for each pair of classes, as colour.

    Args:
        matrix: (C, C).
        row: what the rows are.
        column: what the columns are.
        label: what the colour means.
        vmax: values from here on share the last colour.
        ax: Axes to draw on.

    Returns:
        The Axes.
    """
    ax = _axes(ax)
    matrix = np.asarray(matrix)
    colors = ax.imshow(matrix, vmax=vmax)
    extend = "neither" if vmax is None else "max"
    ax.figure.colorbar(colors, ax=ax, label=label, extend=extend, shrink=0.9)
    ax.set_xticks(range(len(matrix)))
    ax.set_yticks(range(len(matrix)))
    ax.grid(False)
    ax.set(xlabel=column, ylabel=row)
    return ax


def runs(x, series, ax=None) -> Axes:
    """Curves of several runs: the mean as a line, each run thin beside it.

    Args:
        x: (S,).
        series: as in `curves`, with (R, S) values: a row for each run.
        ax: Axes to draw on.

    Returns:
        The Axes.
    """
    ax = curves(x, {name: np.asarray(values).mean(0) for name, values in series.items()}, ax)
    for line, values in zip(ax.lines[-len(series) :], series.values(), strict=True):
        ax.plot(x, np.asarray(values).T, lw=0.7, alpha=0.45, color=line.get_color())
    return ax


def ranking(x, values, names, families=None, ax=None) -> Axes:
    """Curves with their names at the right end, to be compared by their order.

    Args:
        x: (S,).
        values: (S, M).
        names: M short names.
        families: name → response family whose colour and style it takes; the others are grey.
        ax: Axes to draw on.

    Returns:
        The Axes.
    """
    ax = _axes(ax)
    families, values = families or {}, np.asarray(values)
    heights, gap = {}, 0.05 * np.ptp(values)  # names that would overlap are moved apart
    for m in values[-1].argsort():
        heights[m] = max(values[-1, m], max(heights.values(), default=-np.inf) + gap)
    for m, name in enumerate(names):
        family = families.get(name)
        color, style = (COLORS[family], LINESTYLES[family]) if family else (NEUTRAL, "-")
        ax.plot(x, values[:, m], style, color=color, lw=1.8 if family else 0.8)
        at = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "fontsize": 9}
        ax.annotate(name, (x[-1], heights[m]), color=color, **at)
    return ax


def agreement(series, ax=None) -> Axes:
    """One quantity against another that should equal it, with the diagonal of agreement.

    Args:
        series: name → (x, y), each (N,); up to three, told apart by marker and colour.
        ax: Axes to draw on.

    Returns:
        The Axes.
    """
    ax = _axes(ax)
    markers = {"o": GAIN, "s": LOSS, "^": NEUTRAL}
    for (name, (x, y)), (marker, color) in zip(series.items(), markers.items(), strict=False):
        ax.plot(x, y, marker, ms=4.5, mew=0, alpha=0.75, color=color, label=name)
    ax.axline((0, 0), slope=1, color=NEUTRAL, lw=1, ls="--", zorder=1)
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
    ax = _axes(ax)
    probs, push = np.asarray(probs), np.asarray(push)
    n_labels = probs.shape[1]
    starts = np.arange(len(probs)) * (n_labels + 1)
    for start, heights, arrows, label in zip(starts, probs, push, labels, strict=True):
        x = start + np.arange(n_labels)
        ax.update_datalim(np.column_stack([x, heights + arrows]))  # arrows alone do not count
        ax.bar(x, heights, width=0.75, color="#c9ced6")
        ax.plot(x[label], heights[label], "o", ms=5, mfc="none", mec=COLORS["argmax"], mew=1)
        for at, height, length in zip(x, heights, arrows, strict=True):
            if abs(length) > 0.01:
                arrow = {"arrowstyle": "-|>", "color": GAIN if length > 0 else LOSS, "lw": 1.8}
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
    ax = _axes(ax)
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
            ax.contour(x, y, part, levels=[0], colors=COLORS[family], linestyles=LINESTYLES[family])
    if path is not None:
        ax.plot(*np.asarray(path).T, color=COLORS["argmax"], lw=1.4)
        ax.plot(*np.asarray(path)[-1], "o", ms=5, color=COLORS["argmax"])
    ax.grid(visible=False)
    return ax
