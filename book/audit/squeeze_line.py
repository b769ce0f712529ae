"""The claims of chapter 4: what a negative step does to every label of a prediction."""

from collections.abc import Mapping

from audit import found, guarantee, slip, trend

Row = tuple[str, str, str, str]


def to_the_letter(holds: bool, exceptions: bool, verdict=trend) -> str:
    """The verdict on a statement whose proved part holds, and which may fail beyond that part."""
    return verdict(holds, holds and not exceptions)


def lemma(error: float) -> Row:
    return (
        "Lemma 1: every $\\alpha_i$ in closed form",
        "lemma",
        f"within {error:.0e} nats",
        guarantee(error < 1e-9),
    )


def claims_1_to_3(n: int, worst_y: float, worst_rival: float, slope_error: float) -> list[Row]:
    """Of n cases: the largest log α of y, the smallest of i*, the error of Claim 3; nats."""
    return [
        (
            "Claim 1: $\\alpha_y < 1$",
            "guarantee",
            f"largest $\\log\\alpha_y$ of {n}: {worst_y:.0e}",
            guarantee(worst_y < 0),
        ),
        (
            "Claim 2: $\\alpha_{i^*} > 1$",
            "guarantee",
            f"smallest $\\log\\alpha_{{i^*}}$ of {n}: {worst_rival:.0e}",
            guarantee(worst_rival > 0),
        ),
        (
            "Claim 3: the rich get richer",
            "trend",
            f"an identity, within {slope_error:.0e} nats",
            guarantee(slope_error < 1e-9),
        ),
    ]


def shapes(even_spread: float, all_gain: bool, of) -> list[Row]:
    """Claim 3A (how far uniform others differ, and whether all gain), B and C (`Shapes`)."""
    return [
        (
            "3A: uniform others gain alike",
            "stated",
            f"they differ by {even_spread:.0e} nats",
            guarantee(all_gain and even_spread < 1e-12),
        ),
        (
            "3B: flat, most gain a little",
            "stated",
            f"{of.if_common:.0%} gain if $y$ is as likely as they, {of.if_rare:.0%} if rare",
            to_the_letter(of.if_common > 0.5 and of.flat_failures == 0, of.if_rare < 0.6),
        ),
        (
            "3C: peaky, only $i^*$ gains",
            "stated",
            f"{of.peaky - of.peaky_failures} of {of.peaky} if $p_{{i^*}} > 1/\\sqrt{{3}}$",
            guarantee(of.peaky_failures == 0),
        ),
    ]


def claim_4(of: Mapping[str, int], n: int) -> list[Row]:
    """Exceptions to each part, in n cases, and where i* grows by the larger factor."""
    harder = of["fall harder"] + of["third label"]
    return [
        (
            "Claim 4: in a valley the others are pushed harder",
            "stated",
            f"{harder} exceptions",
            guarantee(harder == 0),
        ),
        (
            "Claim 4: in a valley $i^*$ takes more",
            "stated",
            f"a larger share: {of['larger share']} exceptions; a larger factor: only "
            f"{of['larger factor']} of {n}",
            to_the_letter(of["larger share"] == 0, of["larger factor"] < n),
        ),
    ]


def claim_5(of: Mapping[str, int], n: int) -> Row:
    """Exceptions to each part if steps are doubled, and cases where a gainer turns."""
    exceptions = sum(count for part, count in of.items() if part != "turned")
    return (
        "Claim 5: a larger step amplifies all of it",
        "stated",
        f"$y$, $i^*$ and the fallen: {exceptions} exceptions; some gainer turns in "
        f"{of['turned']} of {n}",
        to_the_letter(exceptions == 0, of["turned"] > 0),
    )


def line(wrong: int, labels: int) -> Row:
    """Ours: labels on the wrong side of the exact line."""
    return (
        "A label gains if and only if it is above the squeeze line",
        "",
        f"{wrong} of {labels} labels on the wrong side",
        guarantee(wrong == 0),
    )


def regimes(valley: list[int], peak: list[int], large: list[int], n_labels: int) -> list[Row]:
    """The labels that gain: y in a valley, y the peak, and a valley among a thousand labels."""
    return [
        (
            f"Valley squeezes, peak does not ($V = {n_labels}$)",
            "simulated",
            f"{len(valley)} gains in the valley, {len(peak)} at the peak",
            trend(len(valley) == 1 and len(peak) == n_labels - 1),
        ),
        (
            "The same at $V = 1000$",
            "simulated",
            f"{len(large)} gains in the valley",
            trend(large == [0]),
        ),
    ]


def collision(value: float, n_labels: int) -> Row:
    """‖π‖² of the uniform distribution."""
    return (
        "Uniform $\\pi$: $\\lVert\\pi\\rVert^2$",
        "$1/\\sqrt{V}$",
        f"{value:.3f} at $V = {n_labels}$, which is $1/V$",
        slip(abs(value - 1 / n_labels) < 1e-9),
    )


def collapse(n_starts: int, least: float) -> Row:
    """The least p of i* after many steps."""
    return (
        "Many negative steps end at $i^*$",
        "observed: the argmax rises",
        f"$p_{{i^*}}$ is at least {least:.6f} from {n_starts} starts",
        guarantee(least > 0.999),
    )


def chosen(chosen_low: float, apart: float, together: float) -> Row:
    """Ours, with weights set by hand: the least gain in one context; changes by DPO in two, that
    do not and that do share, nats."""
    return (
        "DPO can lower the chosen label (a toy, weights set by hand)",
        "",
        f"one context: never; two that share: {together:+.2f} nats, that do not: {apart:+.2f}",
        found(together < 0 < apart and chosen_low > 0),
    )


def optimizers(alone: Mapping[str, bool], in_batch: Mapping[str, bool]) -> Row:
    """Ours: which optimisers squeeze, on a single example and in a batch."""
    names = [", ".join(name for name, yes in of.items() if yes) for of in (in_batch, alone)]
    return (
        "The squeeze survives other optimisers",
        "",
        f"in a batch: {names[0]}; alone: {names[1]}",
        to_the_letter(all(in_batch.values()), not all(alone.values()), found),
    )
