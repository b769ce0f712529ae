"""Figures of the chapter "What SFT does"."""

import numpy as np

import figures
from lmdyn import plots

SIZE = 9  # points, the smallest text of a figure


def changes(x, panels, axes):
    """The change of each type's log-prob since the start, one panel for each set of them.

    Args:
        x: (S,) epochs.
        panels: title → type → log-probs, (S,) or (runs, S).
        axes: an Axes for each.
    """
    moved = [{n: curve - curve[..., :1] for n, curve in of.items()} for of in panels.values()]
    ends = np.concatenate([np.ravel(curve) for of in moved for curve in of.values()])
    shared = len(axes) > 1 and axes[0].get_shared_y_axes().joined(*axes[:2])
    axes[0].set_ylabel("change of log π, nats")
    for ax, title in zip(axes, panels, strict=True):  # names are placed for the final heights
        ax.set(title=title, xlabel="epoch")
        if shared:
            ax.set_ylim(1.08 * ends.min(), 1.08 * ends.max())
    for ax, of in zip(axes, moved, strict=True):
        plots.responses(x, of, ax=ax)
        ax.axhline(0, color=plots.NEUTRAL, lw=0.6, zorder=1)


def facts(parts, axes):
    """How the fact and the wording of a response move: at the start, half-way, at the end.

    Args:
        parts: type → (runs, 3, 2) log-prob of the fact and of the wording.
        axes: an Axes for each type.
    """
    for ax, (name, values) in zip(axes, parts.items(), strict=True):
        moved = np.moveaxis(values - values[:, :1], -1, 0)
        shown = zip((("fact", "chosen"), ("wording", "random")), moved, strict=True)
        plots.curves(range(3), dict(shown), ax=ax)
        ax.axhline(0, color=plots.NEUTRAL, lw=0.6, zorder=1)
        ax.set(title=plots.NAMES[name][1], xticks=range(3))
        ax.set_xticklabels(["start", "half-way", "end"])
    axes[0].set_ylabel("change of log π, nats")
    axes[0].legend()


def pulls(before, after, types, when, axes):
    """Who pulls on what: two tables of three sources, (3, types) each."""
    tables = []
    for found in (before, after):
        shown = found.T.round() + 0.0  # no −0
        shown[[name != "irr_train" for name in types], 1] = np.nan
        tables.append(shown)
    return figures.tables(
        dict(zip(when, tables, strict=True)),
        [plots.NAMES[name][1] for name in types],
        ("its own row", "the answer's row", "all other rows"),
        "nats per unit of learning rate",
        "{:+.0f}",
        40,
        axes,
    )


def answers(bars, rates, axes):
    """What answers are made of, as stacked bars; and rates before and after.

    Args:
        bars: name → part → share.
        rates: (name, family) → (runs, 2).
        axes: two Axes.
    """
    left, right = axes
    figures.shares(bars, ("chosen", "other", "rejected", "random"), ax=left)
    left.set_xlabel("share of the answers")
    left.legend(ncols=2, loc="lower center", bbox_to_anchor=(0.35, 1), fontsize=SIZE)
    plots.curves([0, 1], rates, ax=right)
    right.set(ylabel="share that borrows a value", ylim=(0, None), xlim=(-0.15, 1.15))
    right.set_xticks([0, 1], ["before", "after"])
    right.legend(fontsize=SIZE)
