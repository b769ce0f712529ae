"""Figures of the chapter on probes: what each response type shares with the learned answer."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from lmdyn.plots import NEUTRAL, axes, look


def shared_traits(
    traits: Mapping[str, Sequence[str]], among: Sequence[str], ax: Axes | None = None
) -> Axes:
    """A grid of dots: filled where a response type (row) has a trait (column).

    Args:
        traits: type → the traits that it has.
        among: all traits, in the order of the columns.
        ax: Axes to draw on.

    Returns:
        The Axes.

    Raises:
        ValueError: a trait that is not among them.
    """
    ax = axes(ax)
    names = []
    for row, (name, its) in enumerate(traits.items()):
        color, _, shown = look(name)
        names.append(shown)
        columns = [among.index(trait) for trait in its]
        rest = [column for column in range(len(among)) if column not in columns]
        ax.plot(columns, [row] * len(columns), "o", ms=8, color=color, mew=0)
        ax.plot(rest, [row] * len(rest), "o", ms=2, color=NEUTRAL, alpha=0.5, mew=0)
    ax.set_yticks(range(len(names)), names)
    ax.set_xticks(range(len(among)), among, rotation=40, ha="left", rotation_mode="anchor")
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.set(xlim=(-0.6, len(among) - 0.4), ylim=(len(names) - 0.5, -0.5))
    ax.spines[:].set_visible(False)
    ax.grid(False)
    return ax
