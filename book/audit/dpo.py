"""What the chapter "What DPO does" claims, and its table "Does chosen fall?".

Where a claim reads both models, the toy world's conditions come run by run, those of SmolLM2
record by record.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

import audit
from audit import found, guarantee, trend
from audit.scale import since_start_and_peak
from show import Table


def spread(values, digits: int = 1, sign: bool = True) -> str:
    """`audit.spread`, with signs: here most are changes in nats."""
    return audit.spread(values, digits, sign)


def count(conditions) -> str:
    """How many hold, as text."""
    return f"{int(np.sum(conditions))} of {np.size(conditions)}"


def both(world: str, smollm2: str) -> str:
    """What was found in either model, as text."""
    return f"toy world: {world}; SmolLM2: {smollm2}"


def _parts(*of_models) -> list[bool]:
    return [bool(part) for part in np.concatenate([np.ravel(of) for of in of_models])]


class Watched(NamedTuple):
    """A line of "Does chosen fall?": log π(y+) in a way to tune, (S, N) for each seed."""

    what: str  # the model and the rows
    epochs: int
    lr: float
    trained: Sequence[np.ndarray]
    held_out: Sequence[np.ndarray]


def does_chosen_fall(lines: Iterable[Watched]) -> Table:
    """One table, one rule: a fall counts from two standard errors on, since the peak.

    What has turned but is not surely below its start is said to turn; less sure is "not sure".
    """
    rows = []
    for what, epochs, lr, *groups in lines:
        cells = []
        for of_seeds in groups:
            start, peak = since_start_and_peak(of_seeds)
            sure = "**falls**" if start.verdict == "falls" else "**turns**"
            said = sure if peak.verdict == "falls" else "not sure" if peak.mean < 0 else "no fall"
            cells.append(f"{said}: {peak}<br><small>since the start {start}</small>")
        n = len(groups[0])
        seeds = f"{n} seed{'s' if n > 1 else ''}"
        rows.append((f"{what}<br><small>{epochs} epochs at {lr:g}, {seeds}</small>", *cells))
    return Table(rows, ("model and rows", "trained prompts", "held-out prompts"))


def step_is_a_difference(gap: float):
    return (
        "a DPO step is SFT on $y^+$ minus SFT on $y^-$, with one weight",
        "the residual of DPO",
        f"relative difference {gap:.0e}",
        guarantee(gap < 1e-5),
    )


def chosen_rises_then_falls(brief, ends, of_records, at_scale):
    """``brief``: runs with a rise and a larger fall; ``at_scale``: since the peak, `Moved`."""
    sure = [moved.verdict == "falls" for moved in at_scale]
    text = both(
        f"a rise and a larger fall in {count(brief)} runs, {spread(ends)} nats after long SFT",
        f"48 pairs, {count(of_records)} records; 300 pairs, a fall from the peak in "
        f"{count(sure)} runs",
    )
    paper = "−152.0 → −146.3, peak −140.2; −132.3 → −139.0, peak −124.6"
    return "$y^+$ rises briefly, then falls", paper, text, trend(*_parts(brief, of_records, sure))


def near_falls(world, of_records):
    text = both(f"{count(world)} cases", f"{count(of_records)} cases")
    return (
        "$y^-$ falls and drags what is near it down",
        "falls",
        text,
        trend(*_parts(world, of_records)),
    )


def far_falls(world, of_records):
    text = both(f"{count(world)} cases", f"{count(of_records)} cases")
    claim = "rephrases of $y^+$, other answers and random text fall"
    return claim, "fall", text, trend(*_parts(world, of_records))


def held_out_falls(ends, of_records):
    """``of_records``: mean and standard error of the change."""
    text = ", ".join(f"{mean:+.1f} ± {error:.1f}" for mean, error in of_records)
    sure = [mean < -2 * error for mean, error in of_records]
    return (
        "on held-out prompts the right answer falls, too",
        "",
        both(f"{spread(ends)} nats", f"{text} nats"),
        found(*_parts(np.asarray(ends) < 0, sure)),
    )


def argmax_rises(up, ends, of_records):
    text = both(
        f"{count(up)} runs; after long SFT {spread(ends)} nats", f"{count(of_records)} records"
    )
    return "the argmax rises", "−61.6 → −41.2", text, trend(*_parts(up, of_records))


def argmax_rises_all_the_way(steady, of_records):
    text = both(f"{count(steady)} runs", f"{count(of_records)} records")
    return "it rises all the way", "all the way", text, trend(*_parts(steady, of_records))


def argmax_rises_faster(faster, faster_scaled, speeds, sft_speed: float):
    """Than y+ in SFT; ``faster_scaled``: per unit of learning rate; ``speeds``: SmolLM2's."""
    slower, scaled = (~np.ravel(of) for of in (faster, faster_scaled))
    text = both(
        f"slower in {count(slower)} runs; per unit of learning rate in {count(scaled)}",
        f"{spread(speeds, 3)} nats an update at most, against {sft_speed:+.3f}",
    )
    return (
        "it rises faster than $y^+$ does in SFT",
        "+20.4 against +59.6, with the metric repaired",
        text,
        trend(*_parts(faster, np.asarray(speeds) > sft_speed)),
    )


def longer_sft_is_worse(far, rejected, of_records):
    text = both(
        f"$y^+$, its rephrases, others: worse in {count(far)} cases; $y^-$ in {count(rejected)}",
        f"worse for {count(of_records)} types",
    )
    return "longer SFT before DPO makes it worse", "worse", text, trend(*_parts(far, of_records))


def on_policy_does_not_squeeze(calm, own, given, of_records):
    """``calm``: what moves less on-policy; ``own``, ``given``: the change of y+."""
    text = both(
        f"less movement in {count(calm)} cases; $y^+$ {spread(own)} nats, off-policy "
        f"{spread(given)}",
        f"less movement in {count(of_records)} types",
    )
    return "on-policy $y^-$ does not squeeze", "no squeeze", text, trend(*_parts(calm, of_records))


def own_token_lies_on_the_line(off: float, own, given):
    """``off``: the mean's distance; ``own``, ``given``: that of samples, in standard errors."""
    return (
        "the average own token lies on the squeeze line",
        "",
        f"to {off:.0e}; samples are {spread(own)} standard errors off, the given $y^-$ "
        f"{spread(given)}",
        guarantee(off < 1e-12),
    )


def valleys_tell_off_policy(own, given):
    """Shares of tokens in valleys; to tell them apart takes a fifth more in every run."""
    own, given = np.asarray(own), np.asarray(given)
    return (
        "a larger share of tokens in valleys shows that $y^-$ is off-policy (by a fifth)",
        "",
        f"{spread(100 * own, 0, False)} % on-policy, {spread(100 * given, 0, False)} % off-policy",
        found(*(given > 1.2 * own)),
    )


def own_pair_lifts(means, shares):
    """``means``: of the own pair's effect on its y+, by run; ``shares``: of pairs that lift it."""
    return (
        "on average the own pair lifts its $y^+$, before DPO and after it",
        "",
        f"above zero in {count(np.asarray(means) > 0)} cases; pair by pair in "
        f"{spread(100 * np.asarray(shares), 0, False)} %",
        found(*_parts(np.asarray(means) > 0)),
    )


def account_adds_up(worst: float, tokens: int):
    return (
        "label, rival and rest: the account adds up",
        "",
        f"at {tokens} tokens, to {worst:.0e}",
        guarantee(worst < 1e-9),
    )


def line_tells_who_gains(valley, hill):
    """Shares of tokens, (runs, 2): the rival gains, the rest gains."""
    valley, hill = np.asarray(valley), np.asarray(hill)
    holds = (valley[:, 0] > 0.5) & (valley[:, 1] < 0.5) & (hill[:, 1] > 0.5)
    return (
        "for one step, the squeeze line says who gains at the tokens of $y^-$",
        "",
        f"the rest gains at {spread(100 * valley[:, 1], 0, False)} % of valleys, at "
        f"{spread(100 * hill[:, 1], 0, False)} % of hills",
        found(*_parts(holds)),
    )


def goes_to_the_rival(world, of_records):
    """The rival's share of what the label has not, on hills: before and after, (runs, 2)."""
    world, of_records = np.asarray(world), np.asarray(of_records)
    text = both(
        f"on hills the rival's share of the others {spread(world[:, 0], 2, False)} → "
        f"{spread(world[:, 1], 2, False)}",
        "on hills " + ", ".join(f"{before:.2f} → {after:.2f}" for before, after in of_records),
    )
    grows = [of[:, 1] > of[:, 0] for of in (world, of_records)]
    return (
        "over a run, what $y^-$ loses goes to its rival",
        "squeezing",
        text,
        trend(*_parts(*grows)),
    )
