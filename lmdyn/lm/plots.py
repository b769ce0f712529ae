"""Figures of token sequences and of response types. Draws what it is given, computes nothing.

Colours are those of `lmdyn.plots`: one a response family, everywhere in the book.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.transforms import Bbox

from lmdyn.plots import COLORS, DIVERGING, LINESTYLES, NEUTRAL, SEQUENTIAL, _axes

# type → its family, which gives the colour, and its name in figures.
NAMES = {
    "chosen": ("chosen", "chosen $y^+$"),
    "chosen_initial": ("chosen", "own answer"),
    "chosen_selfr": ("chosen", "self-rephrase"),
    "chosen_gptsemantic": ("chosen", "rephrase of $y^+$"),
    "chosen_gptformat": ("chosen", "format twin of $y^+$"),
    "rejected": ("rejected", "rejected $y^-$"),
    "reject_gptsemantic": ("rejected", "rephrase of $y^-$"),
    "reject_gptformat": ("rejected", "format twin of $y^-$"),
    "irr_train": ("other", "other training answer"),
    "irr_test": ("other", "held-out answer"),
    "irr_hum": ("other", "unrelated sentence"),
    "random_permute": ("random", "shuffled words"),
    "random_nonhum": ("random", "random words"),
    "argmax": ("argmax", "argmax $y^*$"),
}
_VARIANTS = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))


def _style(name: str) -> tuple[str, object, str]:
    """Colour, line style and name: the first type of a family has the family's own style."""
    family, label = NAMES.get(name, ("argmax", name))
    members = [other for other, (its, _) in NAMES.items() if its == family]
    place = members.index(name) if name in members else 0
    own = LINESTYLES[family]
    styles = [own, *(style for style in _VARIANTS if style != own)]
    return COLORS[family], styles[place], label


def responses(x, series, ax=None, names=True) -> Axes:
    """The log-prob of each response type over training, each named at the right end.

    Args:
        x: (S,), e.g. updates or epochs.
        series: type → (S,) values, or (runs, S): their mean as a line, each run thin beside it.
        ax: Axes to draw on.
        names: write the names; leave them to another panel if not.

    Returns:
        The Axes.
    """
    ax = _axes(ax)
    ends = {}
    for name, values in series.items():
        values = np.atleast_2d(np.asarray(values, dtype=float))
        color, style, label = _style(name)
        ax.plot(x, values.mean(0), linestyle=style, color=color, label=label)
        if len(values) > 1:
            ax.plot(x, values.T, lw=0.6, alpha=0.4, color=color)
        ends[name] = values.mean(0)[-1]
    if names:
        _name_ends(ax, x[-1], ends)
    return ax


def _name_ends(ax: Axes, x: float, ends: dict[str, float]) -> None:
    """Names right of the curves' ends, moved apart where they would overlap."""
    ax.figure.canvas.draw()  # the axis has its final height only then
    pixels = ax.get_window_extent().height * 72 / ax.figure.dpi
    low, high = ax.get_ylim()
    gap = (high - low) * 10.5 / pixels
    order = sorted(ends, key=ends.get)
    heights = np.array([ends[name] for name in order])
    for _ in range(200):  # neighbours that are too close push each other apart
        short = gap - np.diff(heights)
        if (short <= 1e-9 * gap).all():
            break
        push = np.maximum(short, 0) / 2
        heights[:-1] -= push
        heights[1:] += push
    for name, height in zip(order, heights, strict=True):
        color, _, label = _style(name)
        at = {"xytext": (5, 0), "textcoords": "offset points", "va": "center", "fontsize": 8.5}
        ax.annotate(label, (x, height), color=color, annotation_clip=False, **at)
    ax.set_ylim(min(low, heights.min() - gap), max(high, heights.max() + gap))


def table(values, rows, columns, label, form=None, top=None, ax=None) -> Axes:
    """A number for each pair of names, as colour: white is zero where there are both signs.

    Args:
        values: (rows, columns); NaN stays blank.
        rows: the names of the rows, e.g. tokens.
        columns: the names of the columns.
        label: what the colour means, with its unit.
        form: how to write each number into its cell, e.g. ``"{:+.1f}"``; not written if absent.
        top: where there are both signs, the size from which on the colour stays the same; the
            largest if absent.
        ax: Axes to draw on.

    Returns:
        The Axes.
    """
    ax = _axes(ax)
    values = np.asarray(values, dtype=float)
    low, high = np.nanmin(values), np.nanmax(values)
    if low < 0 < high:
        top = top or max(-low, high)
        style = {"cmap": DIVERGING, "norm": TwoSlopeNorm(0, -top, top)}
    else:
        style = {"cmap": SEQUENTIAL}
    image = ax.imshow(values, aspect="auto", interpolation="nearest", **style)
    ax.figure.colorbar(image, ax=ax, label=label, shrink=0.9)
    ax.set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(rows)), rows)
    ax.grid(False)
    if form:
        for (i, j), value in np.ndenumerate(values):
            if np.isfinite(value):
                red, green, blue, _ = image.cmap(image.norm(value))
                dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
                ink = "white" if dark else "black"
                ax.text(j, i, form.format(value), ha="center", va="center", fontsize=8, color=ink)
    return ax


def by_type(values, label, ax=None) -> Axes:
    """A number for each response type: the mean as a dot, the middle half of the prompts as a bar.

    Args:
        values: type → (N,) one value a prompt; NaN where a row lacks the type.
        label: what is shown, with its unit.
        ax: Axes to draw on.

    Returns:
        The Axes.
    """
    ax = _axes(ax)
    names = []
    for place, (name, of_prompts) in enumerate(values.items()):
        color, _, shown = _style(name)
        of_prompts = np.asarray(of_prompts, dtype=float)
        of_prompts = of_prompts[~np.isnan(of_prompts)]
        ax.hlines(place, *np.quantile(of_prompts, (0.25, 0.75)), color=color, lw=4, alpha=0.35)
        ax.plot(of_prompts.mean(), place, "o", ms=5.5, color=color)
        names.append(shown)
    ax.set_yticks(range(len(names)), names)
    ax.set(xlabel=label, ylim=(len(names) - 0.5, -0.5))
    return ax


def who_sees_whom(sees, block, names, ax=None) -> Axes:
    """An attention mask: which tokens (columns) each token (row) may look at.

    Args:
        sees: (T, T) booleans.
        block: (T,) which part of the sequence each token belongs to: 0, 1, …, in order.
        names: a name for each part.
        ax: Axes to draw on.

    Returns:
        The Axes.
    """
    ax = _axes(ax)
    block = np.asarray(block)
    ax.imshow(np.where(np.asarray(sees), 1.0, np.nan), cmap="binary", vmin=0, vmax=1.6)
    starts = np.searchsorted(block, range(len(names)))
    for edge in starts[1:] - 0.5:
        ax.axhline(edge, color=COLORS["argmax"], lw=0.6)
        ax.axvline(edge, color=COLORS["argmax"], lw=0.6)
    middles = [np.flatnonzero(block == i).mean() for i in range(len(names))]
    ax.set_xticks(middles, names, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(middles, names)
    ax.tick_params(length=0)
    ax.set(xlabel="is seen", ylabel="sees")
    ax.spines[:].set_visible(True)
    ax.grid(False)
    return ax


def next_tokens(tokens, n_prompt, at, ax=None) -> Axes:
    """Teacher forcing: the tokens that are read below, and above each the one to predict there.

    Args:
        tokens: T names, of a prompt and its response.
        n_prompt: how many are the prompt's; nothing of the prompt is scored.
        at: the place that fans out to all it has read.
        ax: Axes to draw on.

    Returns:
        The Axes.
    """
    ax = _axes(ax)
    word = {"rotation": 90, "ha": "center", "fontsize": 9}
    for place, token in enumerate(tokens[:-1]):
        color = NEUTRAL if place < n_prompt else COLORS["chosen"]
        ax.text(place, -0.08, token, va="top", color=color, **word)
        if place <= at:
            ax.plot([place, at], [0, 1], lw=0.7, color=NEUTRAL, zorder=1)
        if place >= n_prompt - 1:
            ax.plot([place, place], [0, 1], color=COLORS["chosen"], lw=1.2)
            weight = "bold" if place == at else "normal"
            ax.text(place, 1.08, tokens[place + 1], color=COLORS["chosen"], weight=weight, **word)
    ax.plot(range(len(tokens) - 1), np.zeros(len(tokens) - 1), "o", ms=4, color=COLORS["argmax"])
    ax.set(xlim=(-0.8, len(tokens) - 1.2), ylim=(-0.9, 1.9))
    ax.set_yticks([0, 1], ["read", "to predict"])
    ax.set_xticks([])
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    ax.grid(False)
    return ax


def token_bars(values, tokens, label, ax=None) -> Axes:
    """The terms of a score, token by token, of responses that line up.

    Args:
        values: type → (T,) a number for each token; the first type filled, others as outlines.
        tokens: T names.
        label: what is shown, with its unit.
        ax: Axes to draw on.

    Returns:
        The Axes.
    """
    ax = _axes(ax)
    x, width = np.arange(len(tokens)), 0.8 / len(values)
    for i, (name, terms) in enumerate(values.items()):
        color, _, shown = _style(name)
        shift = (i - (len(values) - 1) / 2) * width
        fill = {"color": color} if i == 0 else {"facecolor": "white", "edgecolor": color}
        ax.bar(x + shift, terms, width, label=shown, **fill)
    ax.set_xticks(x, tokens, rotation=45, ha="right", rotation_mode="anchor", fontsize=9)
    ax.grid(axis="x", visible=False)
    ax.axhline(0, color=COLORS["argmax"], lw=0.8)
    ax.set_ylabel(label)
    return ax


def clouds(groups, ax=None) -> Axes:
    """Dots of several groups, told apart by marker and colour.

    Args:
        groups: name → (x, y), each (N,); up to three.
        ax: Axes to draw on.

    Returns:
        The Axes.
    """
    ax = _axes(ax)
    looks = {"o": COLORS["chosen"], "s": COLORS["rejected"], "^": COLORS["other"]}
    for (name, (x, y)), (marker, color) in zip(groups.items(), looks.items(), strict=False):
        dots = {"ms": 3.5, "mew": 0, "alpha": 0.5, "color": color}
        ax.plot(x, y, marker, label=name, rasterized=len(x) > 500, **dots)
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
    ax = _axes(ax)
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
    ax = _axes(ax)
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
        style = {"textcoords": "offset points", "va": "center", "fontsize": 8.5}
        text = ax.annotate(name, dot, xytext=(0, 0), **style)
        for x, y, side in places:  # where none is free, the last
            text.set(position=(x, y), ha=side)
            box = text.get_window_extent()
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1
            if inside and not any(box.overlaps(other) for other in taken):
                break
        taken.append(text.get_window_extent())


def mass(groups, families, ax=None) -> Axes:
    """Where probability went: for each group of tokens, what each part has gained or lost.

    Args:
        groups: name of a group → {part: gain}, or {part: (runs,) gains}: their mean as a bar, each
            run a dot. The same parts, in the same order, in each.
        families: the response family whose colour each part takes.
        ax: Axes to draw on.

    Returns:
        The Axes.
    """
    ax = _axes(ax)
    height = 0.8 / len(families)
    for number, (part, family) in enumerate(
        zip(next(iter(groups.values())), families, strict=True)
    ):
        gains = [np.atleast_1d(np.asarray(parts[part], dtype=float)) for parts in groups.values()]
        y = np.arange(len(groups)) - 0.4 + (number + 0.5) * height
        means = [of_runs.mean() for of_runs in gains]
        ax.barh(y, means, height, color=COLORS[family], alpha=0.8, label=part)
        for place, of_runs in zip(y, gains, strict=True):
            if len(of_runs) > 1:
                ax.plot(of_runs, np.full(len(of_runs), place), ".", ms=4, color=NEUTRAL)
    ax.set_yticks(range(len(groups)), list(groups))
    ax.set_ylim(len(groups) - 0.5, -0.5)
    ax.axvline(0, color=COLORS["argmax"], lw=0.8)
    ax.grid(axis="y", visible=False)
    ax.legend(fontsize=9)
    return ax


def rates(x, series, ax=None) -> Axes:
    """Shares with their intervals, side by side at each of a few places.

    Args:
        x: (S,), such as sample sizes; they are drawn evenly spaced.
        series: (name, family) → (S, 3): share, low end, high end; the family gives the colour.
        ax: Axes to draw on.

    Returns:
        The Axes.
    """
    ax = _axes(ax)
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
