"""The figures' style, and those that chapters and the report of a run share.

A figure takes the Axes ``ax`` to draw on, those of a new figure if absent, and returns them.
"""

from collections.abc import Iterable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

# Each response family has its colour and line style everywhere, so that no meaning hangs on colour
# alone. The families and their hues are those of the paper's reference code.
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
SORTED = {"correct": ("chosen", "right answer"), "wrong": ("rejected", "wrong answer")}
_VARIANTS = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
STYLE = Path(__file__).with_name("style.mplstyle")  # the settings of every figure


def use_style() -> None:
    """Set ``STYLE`` for the figures that follow, and vector output in a notebook."""
    plt.style.use(STYLE)
    try:
        from matplotlib_inline.backend_inline import set_matplotlib_formats
    except ImportError:  # outside a notebook
        return
    set_matplotlib_formats("svg", metadata={"Date": None})


def axes(ax: Axes | None = None) -> Axes:
    """The Axes to draw on."""
    return plt.subplots()[1] if ax is None else ax


def look(name: str, among: Iterable[str] = ()) -> tuple[str, object, str]:
    """Colour, line style and name in figures of a response type; argmax's family if unknown.

    The first type of a family has the family's own line style, the others have the rest in turn;
    the unknown in the order in which they are ``among`` the types of the figure.
    """
    family, label = (NAMES | SORTED).get(name, ("argmax", name))
    members = [other for other, (its, _) in NAMES.items() if its == family]
    if name not in members:
        members += [other for other in (*among, name) if other not in NAMES]
    styles = sorted(_VARIANTS, key=lambda style: style != LINESTYLES[family])  # its own first
    return COLORS[family], styles[members.index(name) % len(styles)], label


def curves(x, series, ax=None) -> Axes:
    """Lines over a common axis ``x`` (S,).

    Args:
        series: name → (S,) values, or (R, S): the mean of R runs as a line, each thin beside it. A
            name may be (name, family), to look like that family, else families come in turn.
    """
    ax = axes(ax)
    for number, (name, values) in enumerate(series.items()):
        name, family = name if isinstance(name, tuple) else (name, [*COLORS][number % 5])
        _line(ax, x, values, COLORS[family], LINESTYLES[family], name)
    return ax


def responses(x, series, ax=None, names=True) -> Axes:
    """`curves` of the log-prob of each response type, with their ``names`` at the right end."""
    ax = axes(ax)
    ends = {name: _line(ax, x, values, *look(name, series)) for name, values in series.items()}
    if not names:
        return ax
    ax.figure.canvas.draw()  # the axis has its final height only then
    low, high = ax.get_ylim()
    gap = 12 * (high - low) * ax.figure.dpi / (72 * ax.get_window_extent().height)
    order = sorted(ends, key=ends.get)
    steps = gap * np.arange(len(order))
    free = np.array([ends[name] for name in order]) - steps
    # Where names would overlap, they move apart: to halfway between the heights that only push
    # them up, and those that only push them down.
    up, down = np.maximum.accumulate(free), np.minimum.accumulate(free[::-1])[::-1]
    heights = steps + (up + down) / 2
    for name, height in zip(order, heights, strict=True):
        color, _, label = look(name)
        at = {"xytext": (3, 0), "textcoords": "offset points", "va": "center", "fontsize": 9}
        at |= {"xycoords": ax.get_yaxis_transform(), "annotation_clip": False}
        ax.annotate(label, (1, height), color=color, **at)
    ax.set_ylim(min(low, heights.min() - gap), max(high, heights.max() + gap))
    return ax


def _line(ax: Axes, x, values, color: str, style, label: str) -> float:
    """Draw a line, or the mean of runs and each of them; its last value."""
    runs = np.atleast_2d(np.asarray(values, dtype=float))
    ax.plot(x, runs.mean(0), linestyle=style, color=color, label=label)
    if len(runs) > 1:  # above all means
        ax.plot(x, runs.T, lw=0.7, alpha=0.45, color=color, zorder=2.1)
    return runs.mean(0)[-1]


def mass(groups, families, ax=None) -> Axes:
    """Where probability went: for each group of tokens, what each part has gained or lost.

    Args:
        groups: group → part → its gain, or those of R runs: the mean as a bar, each run a dot.
        families: the response family whose colour each part takes.
    """
    ax, height, parts = axes(ax), 0.8 / len(families), next(iter(groups.values()))
    for number, (part, family) in enumerate(zip(parts, families, strict=True)):
        gains = [np.atleast_1d(of[part]) for of in groups.values()]
        y = np.arange(len(groups)) - 0.4 + (number + 0.5) * height
        ax.barh(y, list(map(np.mean, gains)), height, color=COLORS[family], alpha=0.8, label=part)
        for place, of_runs in zip(y, gains, strict=True):
            if len(of_runs) > 1:
                dots = {"ms": 3, "mfc": "white", "mec": COLORS["argmax"], "mew": 0.7}
                ax.plot(of_runs, np.full(len(of_runs), place), "o", **dots)
    ax.set(yticks=range(len(groups)), yticklabels=groups, ylim=(len(groups) - 0.5, -0.5))
    ax.axvline(0, color=COLORS["argmax"], lw=0.8)
    ax.grid(axis="y", visible=False)
    ax.legend(fontsize=9)
    return ax
