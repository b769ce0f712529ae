"""The figures' style, and those that chapters and the report of a run share.

A figure draws what it is given and computes nothing; it takes the Axes ``ax`` to draw on (those of
a new figure if absent) and returns them.
"""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

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


# The settings of every figure, for matplotlib's rcParams.
STYLE = {
    "figure.figsize": (6.4, 3.6),
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",  # a white card in dark mode
    "font.size": 10.5,
    "axes.titlesize": 11,
    "axes.labelsize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "image.cmap": "cividis",  # safe for colour-blind readers
    "svg.hashsalt": "lmdyn",  # the same figure gives the same file
}


def use_style() -> None:
    """Set ``STYLE`` for the figures that follow, and vector output in a notebook."""
    plt.rcParams.update(STYLE)
    try:
        from matplotlib_inline.backend_inline import set_matplotlib_formats
    except ImportError:  # outside a notebook
        return
    set_matplotlib_formats("svg", metadata={"Date": None})


def axes(ax: Axes | None = None) -> Axes:
    """The Axes to draw on: those of a new figure where none are given."""
    return plt.subplots()[1] if ax is None else ax


def look(name: str) -> tuple[str, object, str]:
    """Colour, line style and name in figures of a response type, those of argmax if unknown.

    The first type of a family has the family's own line style, the others have the rest in turn.
    """
    family, label = NAMES.get(name, ("argmax", name))
    members = [other for other, (its, _) in NAMES.items() if its == family]
    place = members.index(name) if name in members else 0
    styles = sorted(_VARIANTS, key=lambda style: style != LINESTYLES[family])  # its own first
    return COLORS[family], styles[place], label


def curves(x, series, ax=None) -> Axes:
    """Lines over a common axis, each told apart by colour and style.

    Args:
        x: (S,).
        series: name → (S,) values, or (R, S): the mean of R runs as a line, each thin beside it. A
            name may be (name, family), to look like a response family, else they come in turn.
    """
    ax = axes(ax)
    for number, (name, values) in enumerate(series.items()):
        name, family = name if isinstance(name, tuple) else (name, [*COLORS][number % 5])
        values = np.atleast_2d(values)
        ax.plot(x, values.mean(0), LINESTYLES[family], color=COLORS[family], label=name)
        if len(values) > 1:  # above all means
            ax.plot(x, values.T, lw=0.7, alpha=0.45, color=COLORS[family], zorder=2.1)
    return ax


def responses(x, series, ax=None, names=True) -> Axes:
    """The log-prob of each response type over training, each named at the right end.

    Args:
        x, series: as in `curves`, by type.
        names: write the names; leave them to another panel if not.
    """
    ax = axes(ax)
    ends = {}
    for name, values in series.items():
        values = np.atleast_2d(np.asarray(values, dtype=float))
        color, style, label = look(name)
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
        color, _, label = look(name)
        at = {"xytext": (5, 0), "textcoords": "offset points", "va": "center", "fontsize": 8.5}
        ax.annotate(label, (x, height), color=color, annotation_clip=False, **at)
    ax.set_ylim(min(low, heights.min() - gap), max(high, heights.max() + gap))


def mass(groups, families, ax=None) -> Axes:
    """Where probability went: for each group of tokens, what each part has gained or lost.

    Args:
        groups: name of a group → {part: gain}, or {part: (runs,) gains}: their mean as a bar, each
            run a dot. The same parts, in the same order, in each.
        families: the response family whose colour each part takes.
    """
    ax = axes(ax)
    height = 0.8 / len(families)
    parts = next(iter(groups.values()))
    for number, (part, family) in enumerate(zip(parts, families, strict=True)):
        gains = [np.atleast_1d(of[part]) for of in groups.values()]
        y = np.arange(len(groups)) - 0.4 + (number + 0.5) * height
        ax.barh(y, list(map(np.mean, gains)), height, color=COLORS[family], alpha=0.8, label=part)
        for place, of_runs in zip(y, gains, strict=True):
            if len(of_runs) > 1:
                ax.plot(of_runs, np.full(len(of_runs), place), ".", ms=4, color=NEUTRAL)
    ax.set(yticks=range(len(groups)), yticklabels=groups, ylim=(len(groups) - 0.5, -0.5))
    ax.axvline(0, color=COLORS["argmax"], lw=0.8)
    ax.grid(axis="y", visible=False)
    ax.legend(fontsize=9)
    return ax
