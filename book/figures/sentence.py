"""Figures of the chapter on sentences: a fork of two answers, and the squeeze line at forks."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from lmdyn.plots import COLORS, GAIN, LOSS, NEUTRAL, axes


def fork_tree(
    prompt: str,
    shared: Sequence[str],
    branches: Mapping[str, Sequence[str]],
    changes: Mapping[str, Sequence[float]],
    zones: Sequence[str] = (),
    ax: Axes | None = None,
) -> Axes:
    """Two answers that begin alike: what each token gains, as a number and the size of a dot.

    Args:
        prompt: a name for it, at the root.
        shared: the tokens before the fork.
        branches: the name of each of two answers → its tokens from the fork on, upper branch first.
        changes: the same names → a number for each token of the answer, those before the fork too.
            The upper branch gives the numbers before the fork.
        zones: up to three texts: above the shared tokens, the fork and what follows it.
        ax: Axes to draw on.

    Returns:
        The Axes.
    """
    ax = axes(ax)
    upper = next(iter(branches))
    largest = max(np.abs(values).max() for values in changes.values())
    root = 1.3 * len(prompt) + 2
    at, x = [], root
    for token in shared:
        width = max(len(token) + 1.8, 4)
        at.append(x + width / 2)
        x += width
    fork, end = x + 0.4, x
    ax.text(0, 0, prompt, va="center", color=NEUTRAL)
    ax.plot([root - 1.2, *at], np.zeros(len(at) + 1), color=NEUTRAL, lw=1, zorder=1)
    for place, token, change in zip(at, shared, changes[upper], strict=False):
        _node(ax, place, 0, token, change, largest, COLORS["argmax"])
    widths = [max(*map(len, pair), 4) + 3 for pair in zip(*branches.values(), strict=False)]
    widths[0] += 2
    for (name, tokens), height in zip(branches.items(), (1, -1), strict=True):
        color = COLORS["chosen"] if height > 0 else COLORS["rejected"]
        places = fork + np.cumsum([0, *widths[:-1]]) + np.array(widths) / 2
        bend = [at[-1], fork - 0.6, fork + 1, *places], [0, 0, *[height] * (len(places) + 1)]
        ax.plot(*bend, color=color, lw=1, zorder=1)
        for place, token, change in zip(places, tokens, changes[name][len(shared) :], strict=True):
            _node(ax, place, height, token, change, largest, color)
        ax.text(places[-1] + widths[-1] / 2, height * 2, name, ha="right", va="center", color=color)
        end = max(end, places[-1] + widths[-1] / 2)
    middles = [(root + fork) / 2, fork + widths[0] / 2, (fork + widths[0] + end) / 2]
    for text, middle in zip(zones, middles, strict=False):
        ax.text(middle, 3.35, text, ha="center", va="top", fontsize=9, color=NEUTRAL)
    for edge in (fork, fork + widths[0])[: max(len(zones) - 1, 0)]:
        ax.plot([edge, edge], [-1.65, 3.35], ":", lw=1, color=NEUTRAL, zorder=0)
    ax.set(xlim=(-0.5, end + 0.5), ylim=(-2.3, 3.4))
    ax.axis("off")
    return ax


def _node(ax: Axes, x: float, y: float, token: str, change: float, largest: float, ink: str):
    color = NEUTRAL if abs(change) < largest / 100 else GAIN if change > 0 else LOSS
    size = 3 + 11 * np.sqrt(abs(change) / largest)
    ax.plot(x, y, "o", ms=size, color=color, mec="white", mew=0.6)
    ax.text(x, y + 0.3, token, ha="center", va="bottom", color=ink, fontsize=9.5)
    said = f"{change:+.1f}".replace("-", "−") if abs(change) >= 0.05 else "0"
    ax.text(x, y - 0.3, said, ha="center", va="top", color=color, fontsize=9)


def signs(line: Sequence[float], moves: Sequence[float], ax: Axes | None = None) -> Axes:
    """How rivals move, against what the squeeze line says of them: right where the signs agree.

    Args:
        line: (N,) ‖π‖² − π_i − π_y.
        moves: (N,) nats per unit η.
        ax: Axes to draw on.

    Returns:
        The Axes.
    """
    ax = axes(ax)
    line, moves = np.asarray(line), np.asarray(moves)
    ax.set_yscale("symlog", linthresh=1)  # before the lines of zero, which fix the limits
    for up, marker, color, name in ((True, "^", GAIN, "rises"), (False, "v", LOSS, "falls")):
        of = (moves > 0) == up
        ax.plot(line[of], moves[of], marker, color=color, ms=6, mew=0, label=name)
    ax.axhline(0, color=NEUTRAL, lw=0.8, zorder=1)
    ax.axvline(0, color=NEUTRAL, lw=1.2, ls="--", zorder=1)
    return ax
