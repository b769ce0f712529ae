"""Figures of the chapter "Who squeezes whom"."""

import numpy as np
from matplotlib.colors import SymLogNorm
from matplotlib.patches import Rectangle

import figures
from figures.numbers import SIGNED
from figures.sft import SIZE
from lmdyn import plots

PARTS, FAMILIES = ("pull of $y^+$", "push of $y^-$", "both"), ("chosen", "rejected", "argmax")


def pair_map(net, own, others, n_own, axes):
    """Which pair moves which prompt's response; below, its own pair against all others.

    Prompts are sorted by what the others do to them, and so are, on top, their own pairs; the pairs
    below are sorted by what they do in the mean.

    Args:
        net: (pairs, prompts) pull and push together; the first ``n_own`` prompts are those of the
            first pairs.
        own, others: (prompts,), of the own pair and of the sum of all others.
        n_own: how many of the prompts have a pair of their own.
        axes: two Axes, one above the other.
    """
    above, below = axes
    trained = np.argsort(-others[:n_own])
    columns = np.concatenate([trained, n_own + np.argsort(-others[n_own:])])
    rows = np.concatenate([trained, n_own + np.argsort(-net[n_own:].mean(1))])
    net, own, others = net[np.ix_(rows, columns)], own[columns], others[columns]
    largest, x = np.abs(net).max(), np.arange(len(own))
    norm = SymLogNorm(largest / 10, vmin=-largest, vmax=largest)
    image = above.imshow(net, cmap=SIGNED, norm=norm, aspect="auto", interpolation="nearest")
    ticks = [-largest, -largest / 4, 0.0, largest / 4, largest]
    bar = above.figure.colorbar(image, ax=above, label="nats per unit of η", ticks=ticks)
    bar.ax.minorticks_off()
    bar.ax.set_yticklabels([f"{tick:+.1f}".replace("-", "−") if tick else "0" for tick in ticks])
    for place in range(n_own):
        box = {"fill": False, "lw": 1.1, "ec": plots.COLORS["argmax"]}
        above.add_patch(Rectangle((place - 0.5, place - 0.5), 1, 1, **box))
    above.axhline(n_own - 0.5, color=plots.COLORS["argmax"], lw=1)
    above.set_ylabel("pair that is learned")
    above.set_yticks([(n_own - 1) / 2, (n_own + len(net) - 1) / 2], ["own pairs", "others"])
    above.tick_params(labelbottom=False, length=0)
    below.bar(x[:n_own] - 0.2, own[:n_own], 0.4, color=plots.COLORS["chosen"], label="own pair")
    shift = np.where(x < n_own, 0.2, 0)
    color = plots.COLORS["rejected"]
    below.bar(x + shift, others, 0.4, color=color, label="all other pairs")
    below.axhline(0, color=plots.COLORS["argmax"], lw=0.8)
    below.set_ylabel("nats per unit of η")
    middles = [(n_own - 1) / 2, (n_own + len(own) - 1) / 2]
    below.set_xticks(middles, ["training prompts", "held-out"])
    below.tick_params(axis="x", length=0)
    below.legend(fontsize=SIZE, loc="lower left")
    for ax in axes:
        ax.axvline(n_own - 0.5, color=plots.COLORS["argmax"], lw=1)
        ax.set_xlim(-0.5, len(own) - 0.5)
        ax.grid(False)


def own_and_others(groups, fig, axes):
    """Two panels of pull, push and both: what the own pair does, and what the others do.

    Args:
        groups: name of a group → (runs, own or others, pull and push).
        fig, axes: the figure and two Axes.
    """
    for number, (ax, title) in enumerate(zip(axes, ("its own pair", "the 47 others"), strict=True)):
        shown = {}
        for name, of in groups.items():
            of = of[:, number]
            shown[name] = dict(zip(PARTS, [*of.T, of.sum(1)], strict=True))
        plots.mass(shown, FAMILIES, ax=ax)
        ax.set(title=title, xlabel="nats per unit of η")
        ax.get_legend().remove()
    fig.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=SIZE)


def alone(steps, curves, ax):
    """The change of log π(y+) of pairs that are trained alone: (pairs, S)."""
    moved = curves - curves[:, :1]
    for change in moved:
        low = change[-1] < 0
        color = plots.COLORS["rejected"] if low else plots.COLORS["chosen"]
        ax.plot(steps, change, "--" if low else "-", lw=1.3, alpha=0.8, color=color)
    ax.axhline(0, color=plots.NEUTRAL, lw=0.8)
    ax.set(xlabel="updates on this pair alone", ylabel="Δ log π of $y^+$, nats")
    return ax


def crossed(groups, xlabel, ylabel, ax):
    """`figures.clouds` with both axes of zero."""
    figures.clouds(groups, ax=ax)
    ax.axhline(0, color=plots.NEUTRAL, lw=0.8)
    ax.axvline(0, color=plots.NEUTRAL, lw=0.8)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.locator_params(axis="x", nbins=5)
    ax.legend(fontsize=SIZE)
    return ax


def adapters(whole, of_adapters, axes):
    """Influences over an adapter's weights against those over all weights, one panel each.

    Args:
        whole: (worlds, pairs, prompts).
        of_adapters: title → the same over an adapter's weights.
        axes: an Axes for each.
    """
    x, *others = (
        of / np.abs(of).max((1, 2), keepdims=True) for of in (whole, *of_adapters.values())
    )
    for title, y, ax in zip(of_adapters, others, axes, strict=True):
        crossed({title: (x.ravel(), y.ravel())}, "all weights", "the adapter's", ax).set_title(
            title
        )
        ax.get_legend().remove()
    for ax in axes[1:]:
        ax.set_ylabel("")


def rankings(ranking, names, columns, axes):
    """Rank correlations of predictions, of what is handed over and of the fall of y+.

    Args:
        ranking: "handed", "fall" → (names, columns).
        axes: two Axes.
    """
    titles = {"handed": "handed over", "fall": "the fall of $y^+$"}
    tables = {title: ranking[name] for name, title in titles.items()}
    return figures.tables(tables, names, columns, "rank correlation", "{:+.2f}", 1, axes)
