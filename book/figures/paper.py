"""The figure of "The paper and this book": how many claims have which verdict."""

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from lmdyn.plots import COLORS, NEUTRAL, axes

# verdict → its colour, and that of the number in it; "not found" is hatched besides.
LOOKS = {
    "guarantee, holds": (COLORS["chosen"], "white"),
    "reproduced": ("#56a0d3", "black"),
    "found": ("#b3d6ee", "black"),
    "partly": ("#d5d9df", "black"),
    "not reproduced": (COLORS["rejected"], "black"),
    "not found": ("#f3cf9f", "black"),
    "violated": (COLORS["other"], "white"),
    "not testable here": ("white", "black"),
}


def verdicts(counts: Mapping[str, Mapping[str, int]], ax=None) -> Axes:
    """For each topic a bar of its claims, one part for each verdict, with their number in it.

    Args:
        counts: topic → verdict → number of claims.
        ax: Axes to draw on.
    """
    ax = axes(ax)
    known = [v for v in LOOKS if any(of.get(v) for of in counts.values())]
    for verdict in known:
        color, ink = LOOKS[verdict]
        widths = [of.get(verdict, 0) for of in counts.values()]
        before = known[: known.index(verdict)]
        starts = [sum(of.get(v, 0) for v in before) for of in counts.values()]
        look = {"color": color, "ec": NEUTRAL, "lw": 0.7, "label": verdict}
        look["hatch"] = "//" if verdict == "not found" else None
        bars = ax.barh(range(len(counts)), widths, 0.72, starts, **look)
        numbers = [str(width) if width else "" for width in widths]
        ax.bar_label(bars, numbers, label_type="center", color=ink, fontsize=9.5)
    ax.set(yticks=range(len(counts)), yticklabels=counts, ylim=(len(counts) - 0.4, -0.6))
    ax.set(xlabel="claims")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(axis="y", visible=False)
    return ax
