"""The figures of a report: those of `lmdyn.plots`, as SVG that follows the page into dark mode."""

import io
import re

import matplotlib.style
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from lmdyn.plots import COLORS, NEUTRAL, STYLE, curves, mass, responses

# Each colour of the figures (the first two are matplotlib's own) → its variable on the page.
VARIABLES = {"#000000": "ink", "#b0b0b0": "soft", NEUTRAL: "soft"}
VARIABLES |= {color: name for name, color in COLORS.items()}
TITLES = {None: "", "train": "train prompts", "test": "held-out prompts"}
DRAWN = {"loss": "loss", "lr": "learning rate", "learning_rate": "learning rate"}
DRAWN |= {"grad_norm": "gradient norm", "reward": "reward", "lmdyn/entropy": "entropy, nats"}
MOST = 240  # points of a logged curve: more makes the page large and shows no more


def changes(trajectory, verdict: dict) -> dict | None:
    """The change of each mean log-prob; dotted: since when, and where a squeeze was first seen."""
    steps, alerts, panels = trajectory.steps, verdict["alerts"], {}
    for split, moved in list(verdict["moved"].items())[-2:]:
        means = {name: trajectory.mean(name, split=split) for name in moved}
        panels[TITLES[split]] = {n: y - y[0] for n, y in means.items() if np.isfinite(y).all()}

    def draw(ax, of):
        ax.axhline(0, color=NEUTRAL, lw=0.8)
        for mark in (alerts[-1].since, alerts[0].step) if alerts else ():
            ax.axvline(mark, color=NEUTRAL, lw=1, ls=":")
        responses(steps, of, ax, names=ax.get_subplotspec().is_last_col())

    height = max(3.4, 1.2 + 0.22 * max(map(len, panels.values())))
    return svg(panels, draw, height, ylabel="change of log π, nats")


def probabilities(steps: np.ndarray, along: dict[str, dict]) -> dict | None:
    """Type → "label", "likeliest" → (S,) probabilities along its tokens."""

    def draw(ax, of):
        own = ("the label", ax.get_title())
        curves(steps, {own: of["label"], ("the likeliest", "argmax"): of["likeliest"]}, ax)
        ax.set(title=f"tokens of {own[1]}")
        ax.set_ylim(0, None, auto=True)  # the next panel may reach higher
        ax.legend(fontsize=9)

    panels = {name: along[name] for name in ("chosen", "rejected") if name in along}
    return svg(panels if len(steps) > 1 else {}, draw, 3.2, ylabel="probability, geometric mean")


def log(logged: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict | None:
    """Name → (updates, values), neighbours averaged where there are many."""

    def draw(ax, of):
        parts = np.array_split(np.arange(len(of[0])), min(len(of[0]), MOST))
        x, y = (np.array([values[part].mean() for part in parts]) for values in of)
        ax.plot(x, y, color=COLORS["chosen"], lw=1.2, marker="o" if len(x) < 3 else None)
        ax.locator_params(nbins=5)
        ax.set_ylim(None if ax.get_title() == "loss" or y.min() < 0 else 0, None)

    return svg({DRAWN[key]: of for key, of in logged.items() if key in DRAWN}, draw, 2.5)


def gains(groups: dict[str, dict[str, float]]) -> dict | None:
    """Type → part of its tokens → what it gained."""
    families, label = ("rejected", "argmax", "random"), "gain of probability, mean over tokens"
    return svg({"": groups}, lambda ax, of: mass(of, families, ax), 1.3 + 0.8 * len(groups), label)


def svg(panels: dict, draw, height: float, xlabel="updates", ylabel=None) -> dict | None:
    """Panels side by side: the viewBox, and the elements, with "{id}" before each id."""
    if not any(panels.values()):
        return None
    with matplotlib.style.context([STYLE, {"svg.fonttype": "none"}]):  # text stays text
        figure, file = Figure((8.6, height)), io.StringIO()
        FigureCanvasSVG(figure)
        axes = figure.subplots(1, len(panels), sharey=ylabel is not None, squeeze=False)[0]
        for ax, (title, content) in zip(axes, panels.items(), strict=True):
            ax.set(title=title, xlabel=xlabel)
            draw(ax, content)
        axes[0].set_ylabel(ylabel)
        figure.savefig(file, format="svg", transparent=True)
    box, body = re.search(r'viewBox="([^"]*)"[^>]*>(.*)</svg>', file.getvalue(), re.S).groups()
    useless = r'<metadata>.*?</metadata>|<style.*?</style>|(?<=>)\s+(?=<)| id="[a-z0-9.]+_\d+"'
    useless += r'|(?<=\.\d\d)\d+(?=[ "\n])'  # beyond a hundredth of a point
    body = re.sub(useless, "", body, flags=re.S)
    body = re.sub(r'( id="|href="#|url\(#)', r"\1{id}", body)
    body = re.sub("|".join(VARIABLES), lambda color: f"var(--{VARIABLES[color[0]]})", body)
    return {"box": box, "body": body}
