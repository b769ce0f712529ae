"""Figures of token sequences and of response types."""

import numpy as np
from matplotlib.axes import Axes

from lmdyn.plots import COLORS, NEUTRAL, axes, look


def next_tokens(tokens, n_prompt, at, ax=None) -> Axes:
    """Teacher forcing: the tokens that are read below, and above each the one to predict there.

    Args:
        tokens: T names, of a prompt and its response.
        n_prompt: how many are the prompt's; nothing of the prompt is scored.
        at: the place that fans out to all it has read.
        ax: Axes to draw on.

    Returns:
        The Axes.
    """
    ax = axes(ax)
    word = {"rotation": 90, "ha": "center", "fontsize": 9}
    for place, token in enumerate(tokens[:-1]):
        color = NEUTRAL if place < n_prompt else COLORS["chosen"]
        ax.text(place, -0.08, token, va="top", color=color, **word)
        if place <= at:
            ax.plot([place, at], [0, 1], lw=0.7, color=NEUTRAL, zorder=1)
        if place >= n_prompt - 1:
            ax.plot([place, place], [0, 1], color=COLORS["chosen"], lw=1.2)
            weight = "bold" if place == at else "normal"
            ax.text(place, 1.08, tokens[place + 1], color=COLORS["chosen"], weight=weight, **word)
    ax.plot(range(len(tokens) - 1), np.zeros(len(tokens) - 1), "o", ms=4, color=COLORS["argmax"])
    ax.set(xlim=(-0.8, len(tokens) - 1.2), ylim=(-0.9, 1.9))
    ax.set_yticks([0, 1], ["read", "to predict"])
    ax.set_xticks([])
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    ax.grid(False)
    return ax


def who_sees_whom(sees, block, names, ax=None) -> Axes:
    """An attention mask: which tokens (columns) each token (row) may look at.

    Args:
        sees: (T, T) booleans.
        block: (T,) which part of the sequence each token belongs to: 0, 1, …, in order.
        names: a name for each part.
        ax: Axes to draw on.

    Returns:
        The Axes.
    """
    ax = axes(ax)
    block = np.asarray(block)
    ax.imshow(np.where(np.asarray(sees), 1.0, np.nan), cmap="binary", vmin=0, vmax=1.6)
    starts = np.searchsorted(block, range(len(names)))
    for edge in starts[1:] - 0.5:
        ax.axhline(edge, color=COLORS["argmax"], lw=0.6)
        ax.axvline(edge, color=COLORS["argmax"], lw=0.6)
    middles = [np.flatnonzero(block == i).mean() for i in range(len(names))]
    ax.set_xticks(middles, names, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(middles, names)
    ax.tick_params(length=0)
    ax.set(xlabel="is seen", ylabel="sees")
    ax.spines[:].set_visible(True)
    ax.grid(False)
    return ax


def token_bars(values, tokens, label, ax=None) -> Axes:
    """The terms of a score, token by token, of responses that line up.

    Args:
        values: type → (T,) a number for each token; the first type filled, others as outlines.
        tokens: T names.
        label: what is shown, with its unit.
        ax: Axes to draw on.

    Returns:
        The Axes.
    """
    ax = axes(ax)
    x, width = np.arange(len(tokens)), 0.8 / len(values)
    for i, (name, terms) in enumerate(values.items()):
        color, _, shown = look(name)
        shift = (i - (len(values) - 1) / 2) * width
        fill = {"color": color} if i == 0 else {"facecolor": "white", "edgecolor": color}
        ax.bar(x + shift, terms, width, label=shown, **fill)
    ax.set_xticks(x, tokens, rotation=90, fontsize=9)
    ax.grid(axis="x", visible=False)
    ax.axhline(0, color=COLORS["argmax"], lw=0.8)
    ax.set_ylabel(label)
    return ax


def by_type(values, label, ax=None) -> Axes:
    """A number for each response type: the mean as a dot, the middle half of the prompts as a bar.

    Args:
        values: type → (N,) one value a prompt; NaN where a row lacks the type.
        label: what is shown, with its unit.
        ax: Axes to draw on.

    Returns:
        The Axes.
    """
    ax = axes(ax)
    names = []
    for place, (name, of_prompts) in enumerate(values.items()):
        color, _, shown = look(name)
        of_prompts = np.asarray(of_prompts, dtype=float)
        of_prompts = of_prompts[~np.isnan(of_prompts)]
        ax.hlines(place, *np.quantile(of_prompts, (0.25, 0.75)), color=color, lw=4, alpha=0.35)
        ax.plot(of_prompts.mean(), place, "o", ms=5.5, color=color)
        names.append(shown)
    ax.set_yticks(range(len(names)), names)
    ax.set(xlabel=label, ylim=(len(names) - 0.5, -0.5))
    return ax
