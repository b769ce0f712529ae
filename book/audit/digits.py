"""The claims of chapter 2: what learning a 4 does to other digits."""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from audit import guarantee, trend

NAMED = ("4–9", "3–5", "5–8")  # the pairs that the paper calls confusable


def rows(
    fit: tuple[float, float, float],
    nats: Mapping[int, Tensor],
    points: Mapping[int, Tensor],
    dissimilar: int,
    ranks: Sequence[tuple[int, int]],
    peak: tuple[int, int],
    pulls: Tensor,
    ranking: Sequence[str],
) -> list[tuple[str, ...]]:
    """All claims of the chapter, in the order of their table."""
    return [
        first_order(*fit),
        nines_rise(nats[9]),
        less_than_nines(nats, dissimilar),
        hardly_any_change(nats, points, dissimilar),
        nines_first(ranks),
        adds_up(*peak, pulls),
        confused_pairs(ranking),
    ]


def first_order(correlation: float, error: float, ratio: float) -> tuple[str, ...]:
    """Predicted against measured: all labels of all pairs; the ratio of errors at η and η/10."""
    return (
        "the change of one step is $-\\eta A K G$, to first order",
        "Proposition 1",
        f"correlation {correlation:.3f}; relative error {error:.1%}, and {ratio:.1f} "
        "times smaller at a tenth of $\\eta$",
        guarantee(8 < ratio < 12.5),
    )


def nines_rise(change: Tensor) -> tuple[str, ...]:
    """``change``: of log π of label 4 on the 9s, one for each pair of images."""
    share = (change > 0).float().mean().item()
    return (
        "learning a 4 raises label 4 on the 9s",
        "it rises",
        f"in {share:.0%} of {change.numel()} pairs, by {change.mean():+.3f} nats on average",
        trend(bool(change.mean() > 0), share > 0.5),
    )


def less_than_nines(nats: Mapping[int, Tensor], dissimilar: int) -> tuple[str, ...]:
    """``nats``: class → changes of log π of label 4."""
    size = {c: change.abs().mean().item() for c, change in nats.items()}
    return (
        "and moves a dissimilar digit less than a 9",
        "a smaller change",
        f"mean size {size[dissimilar]:.3f} nats on the {dissimilar}s, {size[9]:.3f} on the 9s",
        trend(size[dissimilar] < size[9]),
    )


def hardly_any_change(
    nats: Mapping[int, Tensor], points: Mapping[int, Tensor], dissimilar: int
) -> tuple[str, ...]:
    """Less than on a 9 and less than on another 4, in nats and in points of probability."""
    size = {c: change.abs().mean().item() for c, change in nats.items()}
    moved = {c: change.abs().mean().item() for c, change in points.items()}
    return (
        "a dissimilar digit hardly changes: less than a 9, and less than another 4",
        "hardly any change",
        f"mean size on {dissimilar}s, 9s and other 4s: in points of probability "
        + ", ".join(f"{moved[c]:.3f}" for c in (dissimilar, 9, 4))
        + "; in nats "
        + ", ".join(f"{size[c]:.3f}" for c in (dissimilar, 9, 4)),
        trend(*(of[dissimilar] < of[c] for of in (moved, size) for c in (9, 4))),
    )


def nines_first(ranks: Sequence[tuple[int, int]]) -> tuple[str, ...]:
    """Of each network, the rank of class 9 in effect and in ‖K‖ with the 4s."""
    return (
        "of all other classes, the 9s move most",
        "4 and 9 are similar",
        f"rank of the 9s in {len(ranks)} networks: {', '.join(str(r) for r, _ in ranks)}; "
        f"rank of their $K$: {', '.join(str(r) for _, r in ranks)}",
        trend(*(effect == 1 and kernel == 1 for effect, kernel in ranks)),
    )


def adds_up(peak: int, last: int, pulls: Tensor) -> tuple[str, ...]:
    """When label 4 is likeliest on the 9s; what learning 4s, 9s and the rest did to it, in nats."""
    return (
        "the influence adds up, and learning the 9s undoes it",
        "the 9s rise, then fall",
        f"mean probability of label 4 on the 9s is largest after {peak} of {last} updates; in all "
        f"{pulls[0]:+.0f} nats from the 4s, {pulls[1]:+.0f} from the 9s",
        trend(0 < peak < last, bool(pulls[0] > 0 > pulls[1])),
    )


def confused_pairs(ranking: Sequence[str]) -> tuple[str, ...]:
    """``ranking``: all pairs of classes, the most confused first."""
    if set(ranking[: len(NAMED)]) == set(NAMED):
        verdict = "reproduced"
    else:
        verdict = "partly" if by_chance(ranking) < 0.01 else "not reproduced"
    return (
        f"the most confused pairs are {', '.join(NAMED)}",
        "the three",
        f"{', '.join(ranking[: len(NAMED)])}; the paper's three have ranks "
        f"{', '.join(str(ranking.index(pair) + 1) for pair in NAMED)} of {len(ranking)}",
        verdict,
    )


def by_chance(ranking: Sequence[str]) -> float:
    """How likely the paper's pairs would rank so high among as many pairs in random order."""
    last, named = max(ranking.index(pair) + 1 for pair in NAMED), len(NAMED)
    return math.comb(len(ranking) - named, last - named) / math.comb(len(ranking), last)
