"""The figures of the chapter "What helps"."""

import matplotlib.pyplot as plt
import numpy as np

from lmdyn import plots

WIDTH = 7.2  # inches, as wide as a page
# Ways to tune that both models have: colour family and line style.
LOOKS = {
    "dpo": ("argmax", "-"),
    "ipo": ("other", "-."),
    "rpo": ("chosen", "-"),
    "dpop": ("chosen", "--"),
    "spare valleys": ("random", "-"),
    "half sft": ("rejected", "--"),
    "extend": ("rejected", "-"),
}


def paths(panels, xlims=()):
    """Each way's path: what it gained to the right, what became of y+ upwards.

    Args:
        panels: title → way → (margin, change of y+), (probings,) each.
        xlims: the horizontal limits of each panel.
    """
    fig, axes = plt.subplots(1, len(panels), figsize=(WIDTH, 3.9))
    for ax, (title, ways) in zip(axes, panels.items(), strict=True):
        ax.axhline(0, color=plots.NEUTRAL, lw=0.8, zorder=0)
        for name, (margin, kept) in ways.items():
            family, style = LOOKS[name]
            color = plots.COLORS[family]
            ax.plot(margin, kept, color=color, linestyle=style, marker=".", ms=5, label=name)
        ax.set(title=title, xlabel="margin gained, trained prompts, nats")
    for ax, limits in zip(axes, xlims, strict=False):
        ax.set_xlim(limits)
    axes[0].set_ylabel("$y^+$ held out: Δ log π, nats")
    fig.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9
    )
    return axes


def kept(panels):
    """How much more than DPO each way has kept at the same margin: a dot for each run.

    Args:
        panels: title → way → (runs,) nats; the same ways, in the same order, in each.
    """
    _, axes = plt.subplots(1, len(panels), figsize=(WIDTH, 4.2), sharey=True)
    for ax, (title, ways) in zip(axes, panels.items(), strict=True):
        ax.axvline(0, color=plots.NEUTRAL, lw=1)
        for place, values in enumerate(ways.values()):
            sure = np.abs(np.sign(values).sum()) == len(values)
            color = (plots.GAIN if values[0] > 0 else plots.LOSS) if sure else plots.NEUTRAL
            marker = "o" if not sure else "^" if values[0] > 0 else "v"
            ax.plot(values, [place] * len(values), marker, ms=6, alpha=0.8, color=color)
        ax.set(title=title, xlabel="$y^+$ kept beyond DPO, nats")
    names = list(next(iter(panels.values())))
    axes[0].set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))
    return axes
