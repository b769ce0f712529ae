"""What the chapter on sentences claims: each function gives one row of its table."""

from collections.abc import Mapping, Sequence

import numpy as np

from audit import found, guarantee

Row = tuple[str, str, str, str]
MOST = 0.75  # the share of cases that a "usually" asks for


def causal(before: float, after: float) -> Row:
    """The largest move of logits left of a changed token, and the smallest from there on."""
    return (
        "a change of one token moves no logits before it",
        "causal mask",
        f"moved by {before:g} before, by at least {after:.2g} from there on",
        guarantee(before == 0 < after),
    )


def chain(error: float) -> Row:
    """How far the sum over tokens is from `lm.score`, nats."""
    return (
        r"$\log\pi(y\mid x)$ is the sum of its tokens' terms",
        "the same",
        f"differs from `lm.score` by {error:.1g} nats",
        guarantee(error < 1e-6),
    )


def blocks(error: float) -> Row:
    """The largest difference of a block of K from brute force, over its largest entry."""
    return (
        r"the blocks $K_{m,l}$ of `token_kernel` are $J_m J_l^\top$",
        "",
        f"brute force differs by {error:.1g} of the largest entry",
        guarantee(error < 1e-4),
    )


def equation(error: float, slopes: Mapping[str, float]) -> Row:
    """The relative difference of the summed blocks, and the slope of what the step leaves out."""
    said = ", ".join(f"{slope:.2f} ({name})" for name, slope in slopes.items())
    return (
        "equation 5 holds to first order",
        "the same",
        f"the blocks, summed, differ from `predict_change` by {error:.1g}; slopes {said}",
        guarantee(error < 1e-4 and all(abs(slope - 2) < 0.1 for slope in slopes.values())),
    )


def symmetric(own: np.ndarray) -> Row:
    """The influences of a sentence's tokens on each other."""
    asymmetry = np.abs(own - own.T).max() / np.abs(own).max()
    return (
        "the influences of a sentence on itself are symmetric, their sum not negative",
        "",
        f"asymmetry {asymmetry:.1g}, sum {own.sum():+.0f}",
        guarantee(bool(asymmetry < 1e-5 and own.sum() >= 0)),
    )


def later_tokens_push(table: np.ndarray, swapped: np.ndarray) -> Row:
    """Influences between two sentences (m, l), and those with learned and watched swapped."""
    difference = np.abs(swapped - table.T).max() / np.abs(table).max()
    shares = [np.abs(np.triu(t, 1)).sum() / np.abs(t).sum() for t in (table, swapped)]
    return (
        "the table is transposed if learned and watched swap: $l > m$ counts, too",
        "",
        f"differs by {difference:.1g}; "
        f"$l > m$ holds {shares[0]:.0%} and {shares[1]:.0%} of all influence",
        guarantee(bool(difference < 1e-5 and sum(shares) > 0)),
    )


def kernel_reads(ratio: float, n: int) -> Row:
    """The mean norm of blocks where the same word was read, over the others'; n blocks in all."""
    return (
        r"$\lVert K_{m,l}\rVert_F$ is larger where the same word was just read",
        "",
        f"{ratio:.1f} times, over {n} blocks",
        found(ratio > 1),
    )


def word_lifts_itself(after_same: np.ndarray, after_other: np.ndarray) -> Row:
    """Influences where the same word is learned, after the same word and after another."""
    rises = [(values > 0).mean() for values in (after_same, after_other)]
    means = after_same.mean(), after_other.mean()
    return (
        "a learned word lifts the same word, most after the same word",
        "",
        f"{rises[0]:.0%} and {rises[1]:.0%} rise; on average by {means[0]:+.0f} after the same "
        f"word, {means[1]:+.0f} after another",
        found(*(bool(share > MOST) for share in rises), bool(means[0] > means[1])),
    )


def rivals_fall(values: np.ndarray) -> Row:
    """Influences on other words where all that was read is the same."""
    return (
        "it lowers its rival at every fork",
        "",
        f"{(values <= 0).mean():.0%} of {len(values)} fall, on average by {values.mean():+.0f}",
        found(bool((values > 0).mean() < 1 - MOST), bool(values.mean() < 0)),
    )


def line_tells(line: Sequence[float], moves: Sequence[float]) -> Row:
    """‖π‖² − π_i − π_y at forks, and how the rivals move."""
    right = int((np.sign(line) == np.sign(moves)).sum())
    return (
        r"the rival $i$ rises where $\pi_i + \pi_y < \lVert\pi\rVert^2$, else it falls",
        "",
        f"right about {right} of {len(moves)}",
        found(right > 0.9 * len(moves)),
    )


def others_fall(values: np.ndarray) -> Row:
    """Influences on other words where the last word read is the same."""
    return (
        "it lowers another word wherever the last word before is the same",
        "",
        f"{(values <= 0).mean():.0%} of {len(values)} fall, on average by {values.mean():+.1f}",
        found(bool((values > 0).mean() < 1 - MOST), bool(values.mean() < 0)),
    )


def false_answer_rises(whole: np.ndarray, at_fork: np.ndarray) -> Row:
    """How false answers in the words of true ones move: as a whole, at the word that differs."""
    rise, fall = (whole > 0).mean(), (at_fork < 0).mean()
    return (
        "a false answer in the same words rises as a whole and falls at the fork",
        "",
        f"of {len(whole)}, {rise:.0%} rise as a whole, {fall:.0%} fall at the fork",
        found(bool(rise > MOST), bool(fall > MOST)),
    )


def toy_predicted(correlation: float, error: float) -> Row:
    """Predicted and measured over the whole vocabulary: correlation and relative error."""
    return (
        "the whole vocabulary is predicted, tiny model",
        "",
        f"correlation {correlation:.4f}, error {error:.1%}",
        found(bool(correlation >= 0.999), bool(error <= 0.05)),
    )


def smollm_predicted(real: Mapping[float, tuple[float, float]]) -> Row:
    """Step size → correlation and relative error, at 1e-5 and 1e-6."""
    (r, error), (small_r, small_error) = real[1e-5], real[1e-6]
    parts = r >= 0.999, small_r >= 0.999, error <= 0.05, small_error <= 0.006
    return (
        r"and on SmolLM2, one question: correlation 0.999, error 5 % at $\eta = 10^{-5}$, 0.6 % at "
        r"$10^{-6}$",
        "only a bound on $K$",
        f"{r:.4f}, {error:.2%}; {small_r:.4f}, {small_error:.2%}",
        found(*map(bool, parts)),
    )
