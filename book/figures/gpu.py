"""Figures of chapter 13: runs on a GPU and without one."""

import matplotlib.pyplot as plt
import numpy as np

from lmdyn import plots
from lmdyn.plots import COLORS, NAMES, NEUTRAL

WAYS = {"DPO after SFT": COLORS["rejected"], "DPO after extend": COLORS["chosen"]}


def curves(panels, xlabel="update", ylabel="Δ log π, nats") -> np.ndarray:
    """The change of each type since the start, panels side by side on one scale.

    Args:
        panels: title → (x (S,), {type: curve (S,)}, where DPO begins or None).
    """
    _, axes = plt.subplots(1, len(panels), figsize=(7.2, 3.1), sharey=True, squeeze=False)
    low = min(min(curve.min() for curve in of.values()) for _, of, _ in panels.values())
    high = max(max(curve.max() for curve in of.values()) for _, of, _ in panels.values())
    axes[0, 0].set_ylim(low - 0.08 * (high - low), high + 0.08 * (high - low))
    for ax, (title, (_, _, begin)) in zip(axes[0], panels.items(), strict=True):
        ax.axhline(0, color=NEUTRAL, lw=0.7, zorder=0)
        ax.set(title=title, xlabel=xlabel)
        if begin is not None:
            ax.axvline(begin, ls=":", lw=1, color=NEUTRAL, zorder=0)
    axes[0, 0].set_ylabel(ylabel)
    for ax, (x, of, _) in zip(axes[0], panels.values(), strict=True):  # for the final heights
        plots.responses(x, of, ax=ax)
    return axes[0]


def at_margin(panels) -> np.ndarray:
    """What has moved by how much, after SFT and after extend, where both have one margin.

    Args:
        panels: title → way of `WAYS` → row → a change that has ``mean`` and ``error``.
    """
    fig, axes = plt.subplots(1, len(panels), figsize=(7.2, 2.9), sharey=True, squeeze=False)
    for ax, (title, ways) in zip(axes[0], panels.items(), strict=True):
        ax.axvline(0, color=NEUTRAL, lw=0.8, zorder=0)
        for number, (way, color) in enumerate(WAYS.items()):
            moved = ways[way]
            y = np.arange(len(moved)) + 0.36 * (number - 0.5)
            error = {"xerr": [2 * m.error for m in moved.values()], "error_kw": {"lw": 1}}
            ax.barh(y, [m.mean for m in moved.values()], 0.34, color=color, label=way, **error)
        rows = [name(row) for row in next(iter(ways.values()))]
        ax.set(title=title, xlabel="Δ log π, nats", yticks=range(len(rows)), yticklabels=rows)
    axes[0, 0].invert_yaxis()
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9.5)
    return axes[0]


def name(row: str) -> str:
    """The name of a type in figures; after a comma may stand whose prompts."""
    kind, *where = row.split(", ")
    return "\n".join([NAMES[kind][1], *where])


def measured(memory, seconds) -> np.ndarray:
    """What runs took on a GPU.

    Args:
        memory: run → (planned, measured), GB.
        seconds: run → (float32, bfloat16), seconds an update.
    """
    _, axes = plt.subplots(1, 2, figsize=(7.2, 2.9), sharey=True)
    labels = ("planned", "measured"), ("float32", "bfloat16")
    colors = (NEUTRAL, COLORS["chosen"]), (COLORS["chosen"], COLORS["random"])
    of_seconds = {run: [1e3 * s for s in pair] for run, pair in seconds.items()}
    for ax, of, its_labels, its_colors in zip(
        axes, (memory, of_seconds), labels, colors, strict=True
    ):
        for number in range(2):
            y = np.arange(len(of)) + 0.36 * (number - 0.5)
            values = [pair[number] for pair in of.values()]
            ax.barh(y, values, 0.34, color=its_colors[number], label=its_labels[number])
        ax.set(yticks=range(len(of)), yticklabels=list(of))
        ax.margins(x=0.05)
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, fontsize=9.5)
    axes[0].set_xlabel("peak memory, float32, GB")
    axes[1].set_xlabel("time of an update, ms")
    axes[0].invert_yaxis()
    return axes
