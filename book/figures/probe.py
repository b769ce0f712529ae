"""Figures of "Probe your own run"."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from lmdyn.plots import COLORS, NEUTRAL, axes


def alert_line(step: int | None, ax: Axes) -> Axes:
    """A dotted line where the first alert came, if there was one."""
    if step is not None:
        ax.axvline(step, color=NEUTRAL, ls=":", lw=1.4, zorder=1)
    return ax


def written(runs: Sequence, family: str, ax=None) -> Axes:
    """What a run writes after against how far y+ moved: filled with an alert, open without one.

    Args:
        runs: each with ``moved`` (nats), ``change`` (a share) and ``alert`` (an update, or None).
        family: the response family whose colour they take.
        ax: Axes to draw on.
    """
    ax = axes(ax)
    ax.axhline(0, color=NEUTRAL, lw=0.8, zorder=1)
    for heard, name in ((True, "alert"), (False, "no alert")):
        of = [run for run in runs if (run.alert is not None) == heard]
        x, y = [run.moved for run in of], [run.change for run in of]
        face = COLORS[family] if heard else "white"
        ax.plot(x, y, "o", ms=5.5, mec=COLORS[family], mfc=face, mew=1.2, label=name)
    ax.set(xlabel="Δ log π of $y^+$, nats")
    return ax
