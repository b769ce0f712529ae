"""The figures of a report: those of `lmdyn.plots`, as SVG that follows the page into dark mode."""

import io
import re
from collections.abc import Callable, Mapping

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from lmdyn.plots import COLORS, NEUTRAL, STYLE, curves, mass, responses

INK = "#1c2430"
# Each colour of the figures and the variable of the page that takes its place.
VARIABLES = {INK: "ink", NEUTRAL: "soft"} | {color: name for name, color in COLORS.items()}
OF_PAGE = STYLE | {
    "svg.fonttype": "none",  # text stays text
    "grid.color": NEUTRAL,
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none"),
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), INK),
}
MOST = 240  # points of a curve: more makes the page large and shows no more


def log_probs(steps: np.ndarray, panels: Mapping[str, Mapping], marks: list[int]) -> dict | None:
    """Title → type → (S,) change of the mean log-prob; dotted lines at the marks."""

    def draw(ax, series):
        ax.axhline(0, color=NEUTRAL, lw=0.8)
        for mark in marks:
            ax.axvline(mark, color=NEUTRAL, lw=1, ls=":")
        responses(steps, series, ax, names=ax.get_subplotspec().is_last_col())

    height = max(3.4, 1.2 + 0.22 * max(map(len, panels.values()), default=0))
    return svg(panels, draw, height, ylabel="change of log π, nats")


def probabilities(steps: np.ndarray, along: Mapping[str, Mapping]) -> dict | None:
    """Type → "label", "likeliest" → (S,) probabilities along its tokens."""

    def draw(ax, series):
        name = ax.get_title()
        lines = {("the label", name): series["label"]}
        curves(steps, lines | {("the likeliest", "argmax"): series["likeliest"]}, ax)
        ax.set_title(f"tokens of {name}")
        ax.set_ylim(0, None, auto=True)  # the next panel may reach higher
        ax.legend(fontsize=9)

    return svg(along, draw, 3.2, ylabel="probability, geometric mean")


def log(panels: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> dict | None:
    """Title → (updates, values), neighbours averaged where there are many."""

    def draw(ax, of):
        parts = np.array_split(np.arange(len(of[0])), min(len(of[0]), MOST))
        x, y = (np.array([values[part].mean() for part in parts]) for values in of)
        ax.plot(x, y, color=COLORS["chosen"], lw=1.2, marker="o" if len(x) < 3 else None)
        ax.locator_params(nbins=5)
        if ax.get_title() != "loss":
            ax.set_ylim(0, None)

    return svg(panels, draw, 2.5)


def gains(groups: Mapping[str, Mapping[str, float]]) -> dict | None:
    """Type → part of its tokens → what it gained."""

    def draw(ax, of):
        mass(of, ("rejected", "argmax", "random"), ax)

    label = "gain of probability, mean over tokens"
    return svg({"": groups}, draw, 1.3 + 0.8 * len(groups), label)


def svg(
    panels: Mapping, draw: Callable, height: float, xlabel="updates", ylabel=None
) -> dict | None:
    """Panels side by side: the viewBox, and the elements, with "{id}" before each id.

    None for panels of nothing.
    """
    if not any(panels.values()):
        return None
    with mpl.rc_context(OF_PAGE):
        figure = Figure((8.6, height))
        FigureCanvasSVG(figure)
        axes = figure.subplots(1, len(panels), sharey=ylabel is not None, squeeze=False)[0]
        for ax, (title, content) in zip(axes, panels.items(), strict=True):
            ax.set(title=title, xlabel=xlabel)
            draw(ax, content)
        axes[0].set_ylabel(ylabel)
        file = io.StringIO()
        figure.savefig(file, format="svg")
    box, body = re.search(r'viewBox="([^"]*)"[^>]*>(.*)</svg>', file.getvalue(), re.S).groups()
    useless = r'<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->| id="[a-z0-9.]+_\d+"'
    body = re.sub(useless, "", body, flags=re.S)
    body = re.sub(r'( id="|href="#|url\(#)', r"\1{id}", body)
    for color, name in VARIABLES.items():
        body = body.replace(color, f"var(--{name})")
    return {"box": box, "body": Markup(re.sub(r">\s+<", "><", body))}
