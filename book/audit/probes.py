"""What the chapter on probes claims: each function gives one row of its table."""

from collections.abc import Mapping, Sequence

import numpy as np

from audit import found, guarantee, trend

Row = tuple[str, str, str, str]


def promises_kept(kept: np.ndarray) -> Row:
    """Whether each row of the toy world keeps what its response types promise."""
    return (
        "every row of the toy keeps what its types promise",
        "",
        f"{int(kept.sum())} of {len(kept)}",
        guarantee(bool(kept.all())),
    )


def one_pass(together: np.ndarray, alone: np.ndarray) -> Row:
    """Scores, nats, of all responses from one pass, and of each from its own."""
    difference = np.abs(together - alone).max()
    return (
        "all types in one pass score as one at a time",
        "one pass for each",
        f"differ by {difference:.0e} nats at most",
        guarantee(bool(difference <= 1e-9)),
    )


def norms_from_scores(norms: Sequence[float], of_matrices: Sequence[float]) -> Row:
    """‖A‖² and ‖G‖² from ‖π‖² and π_y, and from the matrices themselves."""
    difference = np.abs(np.divide(norms, of_matrices) - 1).max()
    return (
        r"$\lVert A\rVert_F^2$ and $\lVert G\rVert^2$ follow from $\lVert\pi\rVert^2$ and $\pi_y$",
        "used for the proxies",
        f"the matrices' norms differ by {difference:.0e} of them",
        guarantee(bool(np.allclose(norms, of_matrices))),
    )


def sure_and_surprised(A_and_entropy: float, G_and_surprise: float, most_G: Sequence[str]) -> Row:
    """Rank correlations over types, and the two types of the largest ‖G‖."""
    random_most = set(most_G) == {"random_permute", "random_nonhum"}
    return (
        "$A$ is large where the model is sure, $G$ where the response surprises it",
        "$A$: peakiness; $G$: energy",
        f"rank correlation over types: $A$ with entropy {A_and_entropy:.2f}, $G$ with surprise "
        f"{G_and_surprise:.2f}; the random types {'lead' if random_most else 'do not lead'} in $G$",
        trend(bool(A_and_entropy < -0.7), bool(G_and_surprise > 0.7), random_most),
    )


def words_shared(overlap: Mapping[str, float], n: int) -> Row:
    """Type → the share of its words that occur in chosen, over n English prompts."""
    semantic, form = overlap["chosen_gptsemantic"], overlap["chosen_gptformat"]
    return (
        "English rephrases use other words, format twins keep the form",
        "asked of ChatGPT",
        f"they share {semantic:.0%} and {form:.0%} of their words with $y^+$ ({n} prompts)",
        found(bool(semantic < form / 2)),
    )


def missing_space(cost: np.ndarray) -> Row:
    """What the space costs each prompt, nats."""
    return (
        "a missing space costs every rephrase more than a nat",
        "not mentioned; rephrases lack it",
        f"{cost.mean():.1f} nats, at least {cost.min():.1f} (SmolLM2, {len(cost)} prompts)",
        found(bool((cost > 1).all())),
    )


def argmax_of_the_last(faulty: float, right: float) -> Row:
    """log π of y* before training, nats, as the faulty code logs it and as it is."""
    return (
        r"the faulty log of $y^*$ is too low by half or more",
        "−113.5 nats (Pythia-410M); −61.6 after the fix",
        f"{faulty:.1f} nats by the faulty log, {right:.1f} without",
        found(bool(faulty < 1.5 * right)),
    )


def twins_react_weaker(twin: float, rephrase: float) -> Row:
    """Their shares of the gain of y+ in one step on it."""
    return (
        "format twins react as rephrases do, weaker: in one step of the toy",
        "observed while training",
        f"one step: twin {twin:.0%} of the gain of $y^+$, rephrase {rephrase:.0%}",
        trend(bool(0 < twin < rephrase)),
    )


def answers_leak(leak: np.ndarray, control: np.ndarray) -> Row:
    """Shares of its own gain: a learned answer at another prompt, a held-out answer there."""
    return (
        "a learned answer rises for other questions, too",
        r"$y^+_{j\neq u}$ rises clearly",
        f"{leak.mean():.0%} of its own gain; a held-out answer {control.mean():.0%}",
        trend(bool((leak > control).all())),
    )


def own_words_fall(falling: Mapping[str, float]) -> Row:
    """The shares of pairs of prompts where learning y+ lowers the model's own words."""
    initial, selfr = falling["chosen_initial"], falling["chosen_selfr"]
    return (
        "learning $y^+$ lowers the model's own words: own answer and self-rephrase",
        "",
        f"they fall in {initial:.0%} and {selfr:.0%} of the pairs of prompts",
        found(bool(initial > 0.75), bool(selfr > 0.75)),
    )


def lbk_is_a_bound(reached: np.ndarray) -> Row:
    """√LBK over η‖K‖ of each pair."""
    return (
        r"LBK $\le \eta^2\lVert K\rVert^2$",
        "stated",
        f"root of LBK at most {reached.max():.1e} of $\\eta\\lVert K\\rVert_F$",
        guarantee(bool(reached.max() < 1)),
    )


def lbk_follows_kernel(correlations: Sequence[float]) -> Row:
    """Rank correlations of LBK with ‖K‖: all pairs, same prompt, other prompts."""
    _, own, other = correlations
    return (
        r"LBK is a proxy of $\lVert K\rVert$",
        "used as one",
        f"rank correlation {own:.2f} on the same prompt, {other:.2f} on others",
        trend(bool(own > 0.7), bool(other > 0.7)),
    )


def lbk_has_no_sign(signed: float, size: float) -> Row:
    """Rank correlations of LBK with the influence, and with its size."""
    return (
        "LBK alone tells who is moved where",
        "shown with SignDelta beside it",
        f"rank correlation with the influence {signed:.2f}, with its size {size:.2f}",
        found(bool(signed > 0.7)),
    )


def sign_delta_is_influence(signed: float) -> Row:
    """The rank correlation of SignDelta with the influence."""
    return (
        "SignDelta tells who is moved where",
        "used as a proxy",
        f"one step: rank correlation with the influence {signed:.4f}",
        trend(bool(signed > 0.99)),
    )
