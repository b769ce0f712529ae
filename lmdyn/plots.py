"""One function per kind of figure, used by every chapter. Draws what it is given, computes nothing.

Call `use_style` once per notebook. Every function takes ``ax=None`` (a new figure if absent) and
returns the Axes it drew on, so that a reader can add to it.
"""

import matplotlib.pyplot as plt
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
SEQUENTIAL, DIVERGING = "cividis", "RdBu"  # both are safe for colour-blind readers


def use_style() -> None:
    """Set the book's figure style: vector output, readable sizes, a white card in dark mode."""
    plt.rcParams.update(
        {
            "figure.figsize": (6.4, 3.6),
            "figure.constrained_layout.use": True,
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            "font.size": 10.5,
            "axes.titlesize": 11,
            "axes.labelsize": 10.5,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.25,
            "legend.frameon": False,
            "lines.linewidth": 1.8,
            "image.cmap": SEQUENTIAL,
            "svg.hashsalt": "lmdyn",  # the same figure gives the same file
        }
    )
    try:
        from matplotlib_inline.backend_inline import set_matplotlib_formats
    except ImportError:  # outside a notebook
        return
    set_matplotlib_formats("svg", metadata={"Date": None})


def _axes(ax: Axes | None) -> Axes:
    return plt.subplots()[1] if ax is None else ax
