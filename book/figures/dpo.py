"""The figures of the chapter "What DPO does"."""

import matplotlib.pyplot as plt
import numpy as np

from lmdyn import plots

WIDTH = 7.2  # inches, as wide as a page


def _legend(fig, ax, ncols=3):
    fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=ncols, fontsize=9)


def changes(x, panels, xlabel="update", scales=(), height=3.8, ncols=3):
    """Panels of curves, as change since the first probing, one legend below.

    Args:
        x: the horizontal axis of all panels, or title → that of a panel.
        panels: title → type → (runs, probings) or (probings,).
        scales: the vertical limits of each panel; by default all share one scale.
        ncols: of the legend.
    """
    fig, axes = plt.subplots(1, len(panels), figsize=(WIDTH, height), sharey=not scales)
    seen = {}
    for ax, (title, series) in zip(axes, panels.items(), strict=True):
        moved = {name: np.atleast_2d(of) - np.atleast_2d(of)[:, :1] for name, of in series.items()}
        at = x[title] if isinstance(x, dict) else x
        plots.responses(at, moved, ax=ax, names=False)
        ax.set(title=title, xlabel=xlabel)
        seen |= {label: line for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    for ax, limits in zip(axes, scales, strict=False):
        ax.set_ylim(limits)
    axes[0].set_ylabel("Δ log π, nats")
    fig.legend(list(seen.values()), list(seen), loc="outside lower center", ncols=ncols, fontsize=9)
    return axes


def forces(pull, push, names):
    """What a pull and a push do to each response type: (runs, types) each, a dot for each run."""
    _, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.2), sharey=True)
    for ax, of, title in zip(axes, (pull, push), ("pull of $y^+$", "push of $y^-$"), strict=True):
        ax.set_xscale("symlog", linthresh=1)  # before the line of zero, which fixes the limits
        for place, name in enumerate(names):
            color = plots.look(name)[0]
            ax.plot(of[:, place], [place] * len(of), "o", ms=6, alpha=0.7, color=color)
        ax.axvline(0, color=plots.NEUTRAL, lw=1)
        ax.set(title=title, xlabel="nats per unit of learning rate")
    labels = [plots.look(name)[2] for name in names]
    axes[0].set(yticks=range(len(names)), yticklabels=labels, ylim=(len(names) - 0.5, -0.5))
    ticks = [-100, -10, -1, 0, 1]
    axes[1].set(xticks=ticks, xticklabels=[f"{t:d}".replace("-", "−") for t in ticks])
    axes[0].set(xticks=[-1, 0, 1], xticklabels=["−1", "0", "1"])
    return axes


def at_scale(curves, per_epoch):
    """Mean and two standard errors of a change, for each learning rate: trained, held out.

    Args:
        curves: learning rate → (steps, (S, N) of trained prompts, (S, N) of held-out ones).
        per_epoch: updates.
    """
    blue, (_, axes) = plots.COLORS["chosen"], plt.subplots(1, 2, figsize=(WIDTH, 3.4))
    for (lr, (steps, *groups)), style in zip(curves.items(), (":", "--", "-"), strict=True):
        for ax, values in zip(axes, groups, strict=True):
            change = values - values[:1]
            mean, error = change.mean(1), change.std(1, ddof=1) / np.sqrt(change.shape[1])
            x = steps / per_epoch
            ax.plot(x, mean, style, color=blue, label=f"{lr:g}")
            ax.fill_between(x, mean - 2 * error, mean + 2 * error, alpha=0.15, lw=0, color=blue)
    for ax, what in zip(axes, ("trained", "held-out"), strict=True):
        ax.axhline(0, color=plots.NEUTRAL, lw=0.8)
        ax.set(title=f"{what} prompts", xlabel="epoch of DPO")
    axes[0].set_ylabel("$y^+$: Δ log π, nats")
    axes[1].legend(title="learning rate", fontsize=9, title_fontsize=9)
    return axes
