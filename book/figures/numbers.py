"""Figures that hold two numbers, or many, against each other."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm
from matplotlib.transforms import Bbox

from lmdyn.plots import COLORS, GAIN, LINESTYLES, LOSS, NEUTRAL, axes

SIGNED = LinearSegmentedColormap.from_list("signed", [LOSS, "white", GAIN])


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
    ax = axes(ax)
    markers = {"o": GAIN, "s": LOSS, "^": NEUTRAL}
    for (name, error), (marker, color) in zip(measured.items(), markers.items(), strict=False):
        ax.loglog(lr, error, marker, ms=4.5, color=color, label=name)
        if expected and name in expected:
            ax.loglog(lr, expected[name], "-", lw=1, color=color)
    ax.set(xlabel=r"step size $\eta$", ylabel="|measured − predicted|, nats")
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
    ax = axes(ax)
    ax.plot(predicted, measured, ".", ms=4, color=GAIN, alpha=0.6, mew=0, rasterized=True)
    ax.axline((0, 0), slope=1, color=NEUTRAL, lw=1, ls="--")
    ax.set(xlabel="predicted Δ log π, nats", ylabel="measured Δ log π, nats")
    return ax


def agreement(series, ax=None) -> Axes:
    """One quantity against another that should equal it, with the diagonal of agreement.

    Args:
        series: name → (x, y), each (N,); up to three, told apart by marker and colour.
        ax: Axes to draw on.

    Returns:
        The Axes.
    """
    ax = axes(ax)
    markers = {"o": GAIN, "s": LOSS, "^": NEUTRAL}
    for (name, (x, y)), (marker, color) in zip(series.items(), markers.items(), strict=False):
        ax.plot(x, y, marker, ms=4.5, mew=0, alpha=0.75, color=color, label=name)
    ax.axline((0, 0), slope=1, color=NEUTRAL, lw=1, ls="--", zorder=1)
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
    ax = axes(ax)
    matrix = np.asarray(matrix)
    colors = ax.imshow(matrix, vmax=vmax)
    extend = "neither" if vmax is None else "max"
    ax.figure.colorbar(colors, ax=ax, label=label, extend=extend, shrink=0.9)
    ax.set_xticks(range(len(matrix)))
    ax.set_yticks(range(len(matrix)))
    ax.grid(False)
    ax.set(xlabel=column, ylabel=row)
    return ax


def table(values, rows, columns, label, form=None, top=None, ax=None) -> Axes:
    """A number for each pair of names, as colour: white is zero where there are both signs, a
    gain is blue and a loss orange.

    Args:
        values: (rows, columns); NaN stays blank.
        rows: the names of the rows, e.g. tokens.
        columns: the names of the columns.
        label: what the colour means, with its unit.
        form: how to write each number into its cell, e.g. ``"{:+.1f}"``; not written if absent.
        top: the size from which on the colour stays the same, with either sign; if absent, the
            largest where there are both signs.
        ax: Axes to draw on.

    Returns:
        The Axes.
    """
    ax = axes(ax)
    values = np.asarray(values, dtype=float)
    low, high = np.nanmin(values), np.nanmax(values)
    if top or low < 0 < high:
        top = top or max(-low, high)
        style = {"cmap": SIGNED, "norm": TwoSlopeNorm(0, -top, top)}
    else:
        style = {"cmap": "Blues"}
    image = ax.imshow(values, aspect="auto", interpolation="nearest", **style)
    ax.figure.colorbar(image, ax=ax, label=label, shrink=0.9)
    ax.set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(rows)), rows)
    ax.grid(False)
    if form:
        for (i, j), value in np.ndenumerate(values):
            if np.isfinite(value):
                linear = np.array(image.cmap(image.norm(value))[:3]) ** 2.2
                # White has more contrast with a luminance below 0.18 (WCAG 2.2), black above.
                ink = "white" if linear @ (0.2126, 0.7152, 0.0722) < 0.18 else "black"
                said = form.format(value).replace("-", "−")
                ax.text(j, i, said, ha="center", va="center", fontsize=9, color=ink)
    return ax


def tables(of, rows, columns, label, form, top, axes):
    """Tables side by side, with the same names and colours.

    Args:
        of: title → values of `table`.
        rows, columns, label, form, top: as there.
        axes: an Axes for each table.

    Returns:
        The Axes.
    """
    for ax, (title, values) in zip(axes, of.items(), strict=True):
        table(values, rows, columns, label, form, top, ax)
        ax.set_title(title)
    for ax in axes[:-1]:
        ax.images[0].colorbar.remove()
    return axes


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
    ax = axes(ax)
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


def clouds(groups, ax=None) -> Axes:
    """Dots of several groups, told apart by marker and colour.

    Args:
        groups: name → (x, y), each (N,); up to three.
        ax: Axes to draw on.

    Returns:
        The Axes.
    """
    ax = axes(ax)
    looks = {"o": COLORS["chosen"], "s": COLORS["rejected"], "^": COLORS["other"]}
    for (name, (x, y)), (marker, color) in zip(groups.items(), looks.items(), strict=False):
        dots = {"ms": 3.5, "mew": 0, "color": color}
        ax.plot([], [], marker, label=name, **dots)  # in the legend, not pale
        pale = 0.6 if len(x) > 100 else 0.9
        ax.plot(x, y, marker, rasterized=len(x) > 500, alpha=pale, **dots)
    return ax


def shares(bars, families, ax=None) -> Axes:
    """What something is made of: horizontal bars, each stacked from named shares.

    Args:
        bars: name of a bar → {part: share}; the same parts, in the same order, in each.
        families: the response family whose colour each part takes.
        ax: Axes to draw on.

    Returns:
        The Axes.
    """
    ax = axes(ax)
    start = np.zeros(len(bars))
    for part, family in zip(next(iter(bars.values())), families, strict=True):
        width = np.array([parts[part] for parts in bars.values()])
        ax.barh(range(len(bars)), width, 0.75, start, color=COLORS[family], label=part)
        start += width
    ax.set_yticks(range(len(bars)), list(bars))
    ax.set(xlim=(0, max(1, start.max())), ylim=(len(bars) - 0.5, -0.5))
    ax.grid(False)
    return ax


def tradeoff(points, frontier=(), ax=None) -> Axes:
    """Two things one wants at once: each way as a dot at its mean, with a ray to each of its runs.

    Args:
        points: name → (x, y), each (runs,).
        frontier: the names whose dots are filled, such as those that no other beats in both.
        ax: Axes to draw on.

    Returns:
        The Axes.
    """
    ax = axes(ax)
    middles = {}
    for name, (x, y) in points.items():
        runs = np.array([x, y], dtype=float)
        middles[name] = middle = runs.mean(1)
        color = COLORS["chosen"] if name in frontier else NEUTRAL
        rays = np.stack([np.broadcast_to(middle[:, None], runs.shape), runs], 1)  # (2, 2, runs)
        ax.plot(*rays, lw=0.7, alpha=0.5, color=color, zorder=1)
        ax.plot(*middle, "o", ms=6, color=color, mfc=color if name in frontier else "white")
    ax.margins(0.2, 0.1)  # for the names
    _name_dots(ax, middles)
    return ax


def _name_dots(ax: Axes, dots: dict[str, np.ndarray]) -> None:
    """A name beside each dot, at the first place where it hides no dot and no other name."""
    ax.figure.canvas.draw()  # the axes have their final size only then
    frame = ax.get_window_extent()
    radius = 3 * ax.figure.dpi / 72
    corners = [ax.transData.transform(dot) - radius for dot in dots.values()]
    taken = [Bbox.from_bounds(*corner, 2 * radius, 2 * radius) for corner in corners]
    places = [(7, 0, "left"), (-7, 0, "right"), (0, 9, "center"), (0, -9, "center")]
    further = (9, -9, 18, -18, 27, -27, 36, -36)
    places += [(x, y, ha) for y in further for x, ha in ((5, "left"), (-5, "right"))]
    for name, dot in dots.items():
        style = {"textcoords": "offset points", "va": "center", "fontsize": 9}
        text = ax.annotate(name, dot, xytext=(0, 0), **style)
        for x, y, side in places:  # where none is free, the last
            text.set(position=(x, y), ha=side)
            box = text.get_window_extent()
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1
            if inside and not any(box.overlaps(other) for other in taken):
                break
        taken.append(text.get_window_extent())


def rates(x, series, ax=None) -> Axes:
    """Shares with their intervals, side by side at each of a few places.

    Args:
        x: (S,), such as sample sizes; they are drawn evenly spaced.
        series: (name, family) → (S, 3): share, low end, high end; the family gives the colour.
        ax: Axes to draw on.

    Returns:
        The Axes.
    """
    ax = axes(ax)
    places = np.arange(len(x))
    for number, ((name, family), values) in enumerate(series.items()):
        share, low, high = np.asarray(values, dtype=float).T
        at = places + 0.16 * (number - (len(series) - 1) / 2)
        reach = np.abs([share - low, high - share])
        marker = "os^D"[number % 4]
        ax.errorbar(at, share, reach, fmt=marker, ms=5, lw=1.4, color=COLORS[family], label=name)
    ax.set_xticks(places, [str(value) for value in x])
    ax.set(xlim=(-0.5, len(x) - 0.5), ylim=(-0.03, 1.03))
    return ax
