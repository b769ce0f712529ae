"""The figures of a report: the book's, as SVG that follows the page into dark mode."""

import io
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lmdyn.lm.trajectory import Trajectory

try:
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
except ImportError:
    raise ImportError("a report draws with matplotlib: pip install matplotlib") from None

from lmdyn import plots

INK = "#1c2430"
# Each colour of the figures and the variable of the page that takes its place.
VARIABLES = {INK: "ink", plots.NEUTRAL: "soft"} | {c: name for name, c in plots.COLORS.items()}
_STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "lmdyn",
    "figure.constrained_layout.use": True,
    "font.size": 10.5,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.facecolor": "none",
    "grid.color": plots.NEUTRAL,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK
    ),
}


def log_probs(
    trajectory: Trajectory, splits: Sequence[str | None], marks: Sequence[int], points: int
) -> tuple[str, str]:
    """The change of each type's mean log-prob since the first probing; a panel for each split."""
    which = _some(len(trajectory.steps), points)
    panels = {
        split: {
            name: (curve - curve[0])[which]
            for name, curve in trajectory.mean(split=split).items()
            if not np.isnan(curve).any()
        }
        for split in splits
    }
    names = {None: "", "train": "train prompts", "test": "held-out prompts"}

    def draw(figure: Figure) -> None:
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for ax, (split, series) in zip(axes, panels.items(), strict=True):
            ax.axhline(0, color=plots.NEUTRAL, lw=0.8)
            for mark in marks:
                ax.axvline(mark, color=plots.NEUTRAL, lw=1, ls=":")
            plots.responses(trajectory.steps[which], series, ax, names=ax is axes[-1])
            ax.set(xlabel="updates", title=names[split])
        axes[0].set_ylabel("change of log π, nats")

    types = max(len(series) for series in panels.values())
    return svg(draw, (8.6, max(3.4, 1.2 + 0.22 * types)))


def masses(steps: np.ndarray, panels: Mapping[str, Mapping], points: int) -> tuple[str, str]:
    """Probabilities along the tokens of a response type; a panel for each type."""
    which = _some(len(steps), points)

    def draw(figure: Figure) -> None:
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for ax, (name, series) in zip(axes, panels.items(), strict=True):
            plots.curves(steps[which], {key: y[which] for key, y in series.items()}, ax)
            ax.set(xlabel="updates", title=f"tokens of {name}")
            ax.legend(fontsize=9)
        axes[0].set(ylabel="probability, geometric mean", ylim=(0, None))

    return svg(draw, (8.6, 3.2))


def log(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], points: int) -> tuple[str, str]:
    """What the training logged; a panel for each, neighbours averaged where there are many."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots(1, len(curves), squeeze=False)[0]
        for ax, (name, (x, y)) in zip(axes, curves.items(), strict=True):
            bins = np.array_split(np.arange(len(x)), min(len(x), points))
            x, y = (np.array([values[part].mean() for part in bins]) for values in (x, y))
            ax.plot(x, y, color=plots.GAIN, lw=1.2, marker="o" if len(x) < 3 else None)
            ax.set(title=name, xlabel="updates")
            ax.locator_params(nbins=5)
            if name != "loss":
                ax.set_ylim(0, None)

    return svg(draw, (8.6, 2.5))


def moved(groups: Mapping[str, Mapping[str, float]]) -> tuple[str, str]:
    """Where probability went, by token part, as `lmdyn.plots.mass` draws it."""

    def draw(figure: Figure) -> None:
        ax = plots.mass(groups, ("rejected", "argmax", "random"), figure.subplots())
        ax.set_xlabel("gain of probability, mean over tokens")

    return svg(draw, (8.6, 1.3 + 0.8 * len(groups)))


def svg(draw: Callable[[Figure], None], size: tuple[float, float]) -> tuple[str, str]:
    """What ``draw`` puts on a figure: its viewBox, and its elements, with "{id}" before each id."""
    with mpl.rc_context(_STYLE):
        figure = Figure(size, facecolor="none")
        FigureCanvasSVG(figure)
        draw(figure)
        file = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", facecolor="none", metadata=nothing)
    text = file.getvalue()
    box = re.search(r'viewBox="([^"]*)"', text)[1]
    body = text[text.index(">", text.index("<svg")) + 1 : text.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.S)
    body = re.sub(r'( id="|href="#|url\(#)', r"\1{id}", body)
    for color, name in VARIABLES.items():
        body = body.replace(color, f"var(--{name})")
    return box, re.sub(r">\s+<", "><", body.strip())


def _some(n: int, most: int) -> np.ndarray:
    """At most so many of n indices, the first and the last among them."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int))
