"""The claims of chapter 3: what of K stays put while a network learns digits."""

from collections.abc import Mapping, Sequence

import numpy as np

from audit import guarantee, spread, trend

Row = tuple[str, str, str, str]
STABLE = 0.9  # rank correlation from one epoch to the next, in every network
FAIR = 0.7  # rank correlation of a fair proxy
LAZY = 0.1  # of its size, the most that a lazy kernel changes in an epoch


def settles(moved) -> bool:
    """K changes less and less, from the second epoch on, in every network (network, epoch)."""
    return bool((np.diff(np.asarray(moved), axis=1)[:, 1:] < 0).all())


def lazy(moved) -> bool:
    return bool((np.asarray(moved)[:, -1] < LAZY).all())


def proxy(largest: float, rho: Sequence[float]) -> list[Row]:
    """‖AKG‖ / (‖A‖ ‖K‖ ‖G‖) at most, and the rank correlations of influence with ‖K‖."""
    return [
        (
            r"$\lVert K\rVert_F$ bounds the influence",
            "bounds it",
            f"at most {largest:.2f} of the bound",
            guarantee(largest <= 1 + 1e-4),  # up to float32 rounding
        ),
        (
            r"$\lVert K\rVert_F$ is a fair proxy for influence",
            "used as its proxy",
            f"rank correlation {spread(rho)}",
            trend(min(rho) > FAIR),
        ),
    ]


def settling(moved) -> Row:
    """Relative change of K (network, epoch)."""
    moved = np.asarray(moved)
    return (
        "$K$ changes fast at first, then settles",
        "per-epoch change is large, then falls",
        f"{spread(moved[:, 0], 1)} of its size in the first epoch, {spread(moved[:, -1])} in the "
        "last",
        trend(settles(moved)),
    )


def order(lowest: Mapping[str, float]) -> Row:
    """The lowest rank correlation from epoch to epoch after the second."""
    return (
        r"the order of $\lVert K_{ou}\rVert_F$ is stable after a messy start",
        "stable after the first epochs",
        f"rank correlation, epoch to epoch, at least {lowest['kernel']:.2f} after epoch 2 (with "
        f"similarity: {lowest['similarity']:.2f})",
        trend(lowest["kernel"] >= STABLE, lowest["similarity"] >= STABLE),
    )


def classes(ranks: Mapping[tuple[int, int], Sequence[int]]) -> list[Row]:
    """The rank of 45 of four pairs of classes in each network, the most similar first."""

    def listed(*some):
        each = (f"{a}–{b}: {', '.join(map(str, ranks[a, b]))}" for a, b in some)
        return "rank of 45, " + "; ".join(each)

    return [
        (
            "similar classes pair up",
            "4–9, 5–8",
            listed((4, 9), (5, 8)),
            trend(*(max(ranks[pair]) <= 15 for pair in ((4, 9), (5, 8)))),
        ),
        (
            "dissimilar classes stay apart",
            "6–7, 2–5",
            listed((6, 7), (2, 5)),
            trend(*(min(ranks[pair]) > 30 for pair in ((6, 7), (2, 5)))),
        ),
    ]


def mutual(equal: bool) -> Row:
    return (
        r"$\lVert K_{ou}\rVert_F$ and the influence on the own label are mutual",
        "",
        "equal up to rounding" if equal else "not equal",
        guarantee(equal),
    )


def asymmetry(factor: Sequence[float], shares) -> Row:
    """In the end: the factor between directions, the shares (network, cause) of G, G and A."""
    shares = np.asarray(shares)
    of_g, of_a = shares[:, :2].sum(1), shares[:, 2]
    return (
        "influence on all labels is not mutual, because of $A$ and $G$",
        "not exactly symmetric",
        f"factor {spread(factor, 1)}; share of $G$ {spread(1 - of_a)}, of $A$ {spread(of_a)}",
        trend(bool((of_g > 0.1).all()), bool((of_a > 0.1).all())),
    )


def integral(all_pairs, different) -> Row:
    """Correlation of sum and area (network, epoch): all pairs of classes, different classes."""
    ends = [np.asarray(r)[:, [0, -1]].T for r in (all_pairs, different)]
    told = [
        f"{spread(first)} for the first epoch, {spread(last, 3)} for the run"
        for first, last in ends
    ]
    return (
        "the accumulated influence tracks the time integral",
        "tracks",
        f"correlation {told[0]}; different classes only: {told[1]}",
        trend(*(bool(r.min() >= STABLE) for of in ends for r in of)),
    )


def standing(growth: Sequence[float], moved, lowest: Mapping[str, float]) -> Row:
    """Growth of K after epoch 2, its relative change, and the lowest rank correlations."""
    return (
        "relative influence is stable, though $K$ is not lazy",
        "standing assumption",
        f"from epoch 2 on $K$ grows {spread(growth, 1)} times; rank correlation of influence at "
        f"least {lowest['influence']:.2f}, of own labels {lowest['own label']:.2f}",
        trend(not lazy(moved) and lowest["influence"] >= STABLE, lowest["own label"] >= STABLE),
    )
