"""The claims of the chapter "Who squeezes whom"."""

from collections.abc import Mapping, Sequence

import numpy as np

from audit import found, guarantee, trend
from audit.sft import Change, spread


def split_is_exact(gap: float, agree: float, off: float):
    return (
        "the effect of a step is the sum of a pull and a push",
        "Eq. 5 for two sequences",
        f"to {max(gap, agree):.0e}; against a measured step, error {off:.1%}",
        guarantee(gap < 1e-5 and agree < 1e-3),
    )


def brief_rise(falling: np.ndarray):
    """(worlds, 2): does the mean of y+ fall in epoch 1, in epoch 2."""
    first, second = falling.sum(0)
    return (
        "$y^+$ rises briefly, then falls",
        "observed",
        f"toy: falls in epoch 1 in {first} of {len(falling)} worlds, in epoch 2 in {second}",
        trend(*falling[:, 1]),
    )


def own_pair_lowers(own_net: np.ndarray, falls: np.ndarray, real_falls: np.ndarray, real: Change):
    """The own pair's net force at each world and moment; falls of y+ in steps on a pair alone.

    ``real``: the net force in SmolLM2, over the prompts, nats per unit of learning rate.
    """
    return (
        "a step on its own pair makes $y^+$ fall",
        "",
        f"toy: its net force is above zero in {(own_net > 0).mean():.0%} of worlds and moments; "
        f"$y^+$ falls in {(falls > 0).sum()} of {falls.size} steps on a pair alone, SmolLM2 as "
        f"shipped {(real_falls > 0).sum()} of {real_falls.size}; its net force there, after SFT "
        f"and two epochs of DPO: {real} nats per unit of $\\eta$",
        found(
            *(of.mean() > 0.5 for of in (own_net < 0, falls > 0, real_falls > 0)),
            real.down,
        ),
    )


def alone_lifts(rise: np.ndarray):
    """(pairs,) from the start of y+ to its peak, nats, in training on the pair alone."""
    return (
        "trained on alone, a pair first lifts its $y^+$",
        "",
        f"toy: in {(rise > 0).sum()} of {rise.size} pairs, by {spread(rise, 1)} nats",
        found(*(rise > 0)),
    )


def alone_lowers(end: np.ndarray, updates: int):
    """(pairs,) from the start of y+ to its end, nats."""
    return (
        "trained on alone and long, it lowers $y^+$ below its start",
        "",
        f"toy: after {updates} updates in {(end < 0).sum()} of {end.size} pairs",
        found(*(end < 0)),
    )


def others_lower(others_net: np.ndarray, real: tuple[Change, Change]):
    """(worlds,) pull and push of the other pairs, after one epoch; in SmolLM2, after two.

    ``real``: over its trained and over its held-out prompts.
    """
    return (
        "the other pairs' pushes outweigh their pulls",
        "",
        f"toy: after one epoch in {(others_net < 0).sum()} of {len(others_net)} worlds; "
        f"SmolLM2, after two: trained {real[0]}, held out {real[1]} nats per unit of $\\eta$",
        found(*(others_net < 0), *(of.down for of in real)),
    )


def so_under_adamw(own: np.ndarray, others: np.ndarray, real: Sequence[Change]):
    """(runs,) what the own pair and the others add to AdamW's next step, nats; both in SmolLM2.

    ``real`` ends with what all pairs do to held-out prompts there.
    """
    return (
        "so it is in AdamW's own step",
        "",
        f"toy, three runs: own pair {spread(1e3 * own, 1, True)}, others "
        f"{spread(1e3 * others, 1, True)} thousandths of a nat; "
        f"SmolLM2 {real[0]} and {real[1]}, held out {real[2]}",
        found(*(own > 0), *(others < 0), real[0].up, *(of.down for of in real[1:])),
    )


def adapters_agree(agreed: Mapping[int, np.ndarray]):
    """Rank of the adapter → (worlds,) rank correlations with the influences over all weights."""
    told = "; ".join(f"rank {r}: {spread(of)}" for r, of in agreed.items())
    return (
        "LoRA's $K$ orders influences roughly as that of all weights (≥ 0.5, largest rank)",
        "",
        f"toy, three worlds, where DPO starts: {told}",
        found(*(agreed[max(agreed)] >= 0.5)),
    )


def held_out_falls(falls: np.ndarray):
    """(worlds, 2): does the mean of held-out y+ fall in each epoch."""
    first, second = falls.sum(0)
    return (
        "held-out $y^+$, with no pair of its own, falls from the start",
        "",
        f"toy: in {first} and {second} of {len(falls)} worlds",
        found(*falls.ravel()),
    )


def held_out_falls_in_smollm2(held_out: Sequence[Change], trained: Sequence[Change]):
    """The change of y+ in each run, on held-out and on trained prompts."""
    told = (", ".join(map(str, of)) for of in (held_out, trained))
    return (
        "and in SmolLM2 on 48 pairs, where trained $y^+$ does not",
        "",
        "held-out {}, trained {} nats; two runs of four epochs".format(*told),
        found(
            *(of.down for of in held_out),
            *(not of.down for of in trained),
        ),
    )


def forecast_ranks(by_all: np.ndarray, by_own: np.ndarray, real: Mapping[str, float], own: float):
    """(worlds,) rank correlations with the change of y+ in epoch 2; in SmolLM2, by its prompts.

    ``own``: in SmolLM2, of the own pair alone, trained prompts.
    """
    return (
        "the sum over all pairs ranks which $y^+$ fall next (≥ 0.3)",
        "",
        f"toy, training prompts: {spread(by_all, sign=True)}; own pair "
        f"{spread(by_own, sign=True)}; "
        f"SmolLM2 {', '.join(f'{word} {of:+.2f}' for word, of in real.items())}, own pair "
        f"{own:+.2f}",
        found(*(by_all >= 0.3), *(of >= 0.3 for of in real.values())),
    )


def valleys_push(tokens: np.ndarray, push: np.ndarray, real: tuple[float, float, float]):
    """(runs,) the share of rejected tokens in a valley, of the push; in SmolLM2, and by AdamW.

    Few: less than a quarter.
    """
    return (
        "the few tokens in a valley do most of the pushing",
        "",
        f"toy, three runs: {spread(tokens)} of the tokens, {spread(push)} of the push; SmolLM2 "
        f"{real[0]:.2f} of the tokens, {real[1]:.2f} of the push (by AdamW {real[2]:.2f})",
        found(*((tokens < 0.25) & (push > 0.5)), real[0] < 0.25 and real[1] > 0.5),
    )


def longer_sft_deepens(short: np.ndarray, long: np.ndarray):
    """(runs,) the share of tokens of y− in a valley."""
    return (
        "longer SFT puts more of $y^-$ in a valley",
        "worse after longer SFT",
        f"toy: {spread(short)} → {spread(long)}",
        trend(*(long > short)),
    )


def ranks(claim: str, of: Sequence[float], paper: str = ""):
    """Rank correlations of a prediction, the last that of SmolLM2: all runs, and it, ≥ 0.5."""
    *tiny, real = of
    return (
        f"{claim} (≥ 0.5)",
        paper,
        f"toy {spread(tiny, sign=True)}; SmolLM2 {real:+.2f}",
        found(bool((np.array(tiny) >= 0.5).all()), bool(real >= 0.5)),
    )


RANKED = {
    ("handed", "squeeze line"): "the squeeze line ranks what a pair hands to the rivals",
    ("fall", "first order"): "the first order ranks the fall of a pair's own $y^+$",
    ("fall", "CHES"): "CHES does",
    ("fall", "CHES per token"): "CHES per token does",
}


def all_ranks(ranking: Mapping[str, Mapping[str, Sequence[float]]]):
    """What → prediction → rank correlations: the rows of `RANKED`."""
    theirs = "Razin et al., for other models and measures"
    return [
        ranks(claim, ranking[what][name], theirs if "CHES" in name else "")
        for (what, name), claim in RANKED.items()
    ]


def worst_quarter(gain: np.ndarray, margin: np.ndarray):
    """(worlds,) against 12 left out at random, nats: held-out y+, and the margin."""
    return (
        "leaving out the worst quarter spares held-out $y^+$",
        "",
        f"toy: against 12 at random {spread(gain, 1, True)} nats, margin {spread(margin, 1, True)}",
        found(*(gain > 0)),
    )
