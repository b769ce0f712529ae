"""Pairwise win rates: a judge compares two models' answers to the same prompts.

In the toy world the truth judges (`TruthJudge`); for English, a language model behind an
OpenAI-compatible address (`EndpointJudge`), or anything else that is a `Judge`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import ClassVar

from tqdm import tqdm

from lmdyn.lm import world
from lmdyn.lm._endpoint_judge import INSTRUCTION, EndpointJudge
from lmdyn.lm._judgements import Judgements
from lmdyn.lm._verdict import (
    VERDICTS,
    Judge,
    JudgeError,
    JudgeNonsense,
    JudgeRefused,
    JudgeTimeout,
    JudgeUnreachable,
    Verdict,
)

__all__ = [
    "INSTRUCTION",
    "Comparison",
    "EndpointJudge",
    "Judge",
    "JudgeError",
    "JudgeNonsense",
    "JudgeRefused",
    "JudgeTimeout",
    "JudgeUnreachable",
    "TruthJudge",
    "compare",
]


@dataclass(frozen=True, repr=False)
class Comparison:
    """How often a judge prefers the answers a to the answers b.

    An answer wins if it is preferred in both orders; all else is a tie (Zheng et al. 2023,
    arXiv:2306.05685). Asked once, a judge that likes the first place would decide pairs by it.

    Attributes:
        preferred: for each of N prompts, "a", "b" or "tie" twice: with a shown first, and with b
            shown first. None for a pair without a verdict.

    Example:
        >>> result = Comparison((("a", "a"), ("a", "b"), ("tie", "tie"), ("b", "b"), ("a", "a")))
        >>> result.outcomes
        ('a', 'tie', 'tie', 'b', 'a')
        >>> result
        Comparison(a wins 2, ties 2, loses 1 of 5: win rate 0.600, 95% interval 0.231 to 0.882)
    """

    preferred: tuple[tuple[str, str] | None, ...]

    @property
    def outcomes(self) -> tuple[str | None, ...]:
        """For each prompt who won, "a" or "b", else "tie"; None without a verdict."""
        return tuple(pair and (pair[0] if pair[0] == pair[1] else "tie") for pair in self.preferred)

    @property
    def wins(self) -> int:
        """Pairs that a won."""
        return self.outcomes.count("a")

    @property
    def ties(self) -> int:
        """Pairs that nobody won."""
        return self.outcomes.count("tie")

    @property
    def losses(self) -> int:
        """Pairs that b won."""
        return self.outcomes.count("b")

    @property
    def n(self) -> int:
        """Pairs with a verdict."""
        return self.wins + self.ties + self.losses

    @property
    def win_rate(self) -> float:
        """(wins + ties / 2) / n; at 0.5 neither is better."""
        return (self.wins + self.ties / 2) / self.n

    @property
    def consistency(self) -> float:
        """The share of pairs with the same outcome in both orders, equal answers included."""
        return sum(pair[0] == pair[1] for pair in self.preferred if pair) / self.n

    @property
    def first_share(self) -> float:
        """Of the verdicts that are no ties, the share for the answer shown first; NaN if none.

        A judge with no liking for either place has 0.5.
        """
        judged = [pair for pair in self.preferred if pair]
        shown = "ab" * len(judged)
        verdicts = zip((who for pair in judged for who in pair), shown, strict=True)
        decided = [who == first for who, first in verdicts if who != "tie"]
        return sum(decided) / len(decided) if decided else float("nan")

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Wilson's score interval of the win rate, over prompts.

        (m + z²/2n ± z √(m(1 − m)/n + z²/4n²)) / (1 + z²/n), at the win rate m. It does not
        collapse where every pair has the same outcome. Ties leave less variance than the m(1 − m)
        of a coin, so with ties it is wider than it need be.

        Args:
            level: how often such intervals hold the true rate.

        Returns:
            (low, high).
        """
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1, got {level}")
        n, m = self.n, self.win_rate
        z = NormalDist().inv_cdf((1 + level) / 2)
        middle = m + z**2 / (2 * n)
        half = z * (m * (1 - m) / n + z**2 / (4 * n**2)) ** 0.5
        scale = 1 + z**2 / n
        return (middle - half) / scale, (middle + half) / scale

    def __repr__(self) -> str:
        low, high = self.interval()
        return (
            f"Comparison(a wins {self.wins}, ties {self.ties}, loses {self.losses} of {self.n}: "
            f"win rate {self.win_rate:.3f}, 95% interval {low:.3f} to {high:.3f})"
        )


class TruthJudge:
    """In the toy world the truth judges: what states the true fact beats what does not.

    Two true answers are a tie, and so are two that are not true, whether false, evasive or beside
    the question.

    Example:
        >>> row = world.probes()[0]
        >>> TruthJudge()(row["prompt"], row["rejected"], row["chosen"])
        'second'
    """

    description: ClassVar[Mapping] = {"judge": "the truth of the toy world"}

    def __call__(self, prompt: str, first: str, second: str) -> Verdict:
        """Compare two answers to a question of the world.

        Raises:
            ValueError: the prompt is no question of the world.
        """
        true = world.is_true(prompt, first), world.is_true(prompt, second)
        return {(True, False): "first", (False, True): "second"}.get(true, "tie")


def compare(
    judge: Judge,
    prompts: Sequence[str],
    a: Sequence[str],
    b: Sequence[str],
    *,
    out: str | Path | None = None,
    skip_nonsense: bool = False,
    progress: bool | None = None,
) -> Comparison:
    """Have two models' answers to the same prompts judged, each pair in both orders.

    Equal answers are a tie, without asking.

    Args:
        judge: which says "first", "second" or "tie" of two answers.
        prompts: N texts.
        a: N answers, of the one model.
        b: N answers, of the other.
        out: a file that keeps each judgement as it comes, one JSON line each: after a crash, an
            interruption or an error the same call asks only what is missing.
        skip_nonsense: leave out a pair for which the judge has no verdict (`JudgeNonsense`), for
            instance because the model refuses the topic. Otherwise it stops the comparison.
        progress: show a bar; by default on a terminal only.

    Returns:
        The win rate of a, with ties, interval and position bias.

    Raises:
        ValueError: no prompts, other numbers of answers, an entry that is no text; ``out`` is of
            another judge, other prompts or other answers, or holds a line that is no judgement.
        JudgeError: the judge answers nonsense, does not answer in time, declines, or cannot be
            reached. The message says at which pair and how many judgements are finished.

    Example:
        >>> rows = world.probes()
        >>> chosen, rejected = ([row[key] for row in rows] for key in ("chosen", "rejected"))
        >>> compare(TruthJudge(), [row["prompt"] for row in rows], chosen, rejected)
        Comparison(a wins 72, ties 0, loses 0 of 72: win rate 1.000, 95% interval 0.949 to 1.000)
    """
    texts = {"prompts": prompts, "a": a, "b": b}
    _check_texts(texts)
    kept = Judgements(out, judge, texts)
    different = [row for row in range(len(prompts)) if a[row] != b[row]]
    todo = [
        (row, shown) for row in different for shown in "ab" if (row, shown) not in kept.verdicts
    ]
    hidden = None if progress is None else not progress
    skipped = set()
    for row, shown in tqdm(todo, desc="judging", unit="verdict", delay=2, disable=hidden):
        if row in skipped:
            continue
        answers = (a[row], b[row]) if shown == "a" else (b[row], a[row])
        try:
            verdict = judge(prompts[row], *answers)
            if verdict not in VERDICTS:
                raise JudgeNonsense(f"the judge returned {verdict!r}, not first, second or tie")
        except JudgeError as error:
            if not (skip_nonsense and isinstance(error, JudgeNonsense)):
                error.finished = len(kept.verdicts)
                error.args = (_located(error, row, 2 * len(different), out),)
                raise
            skipped.add(row)
        else:
            kept.add(row, shown, verdict)
    if len(skipped) == len(prompts):
        raise JudgeNonsense("the judge has a verdict on none of the pairs: try another judge")
    preferred = [("tie", "tie")] * len(prompts)
    for row in different:
        preferred[row] = None if row in skipped else kept.preferred(row)
    return Comparison(tuple(preferred))


def _located(error: JudgeError, row: int, wanted: int, out: str | Path | None) -> str:
    """The error's message, with where it happened and what is finished."""
    then = "pass out to keep them" if out is None else f"{out} has them: the same call goes on"
    return f"prompts[{row}]: {error}. {error.finished} of {wanted} judgements are finished; {then}"


def _check_texts(texts: Mapping[str, Sequence[str]]) -> None:
    n = len(texts["prompts"])
    for name, values in texts.items():
        if isinstance(values, str) or not len(values):
            raise ValueError(f"{name} must be a list of at least one text")
        if len(values) != n:
            raise ValueError(
                f"there must be one answer to each prompt, got {n} prompts and "
                f"{len(values)} answers {name}"
            )
        for i, text in enumerate(values):
            if not isinstance(text, str):
                raise ValueError(f"{name}[{i}] must be a text, got {type(text).__name__}")
