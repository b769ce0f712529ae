"""What the chapter on RL claims, of samples, of steps and of the runs in its record."""

import json
from pathlib import Path

import numpy as np

from audit import found, guarantee

TRAIN, TEST = 0, 1
PASSES = 8  # of the runs that go over a round several times


def told(values, form: str = "+.2f") -> str:
    """Seed by seed, as text."""
    return ", ".join(f"{value:{form}}" for value in values)


def moved(values: np.ndarray) -> np.ndarray:
    """(seeds,), from the first moment to the last of (seeds, moments)."""
    return values[:, -1] - values[:, 0]


class Runs:
    """The record of ways to learn which answers are true: (arms, seeds, probings, …)."""

    def __init__(self, record: dict[str, np.ndarray], about: dict):
        self.record, self.about, self.steps = record, about, record["steps"]
        self.arms, self.types, self.seeds = (
            record[key].tolist() for key in ("arms", "types", "seeds")
        )

    @classmethod
    def load(cls, name: str) -> "Runs":
        with np.load(f"{name}.npz") as file:
            record = dict(file)
        return cls(record, json.loads(Path(f"{name}.json").read_text(encoding="utf-8")))

    def curve(self, arm: str, name: str = "chosen", stat: str = "logp") -> np.ndarray:
        """(seeds, probings): the mean over training prompts."""
        values = self.record[stat][self.arms.index(arm)][..., self.types.index(name)]
        return values[..., self.record["split"] == "train"].mean(-1, dtype=float)

    def true(self, arm: str, split: int = TRAIN) -> np.ndarray:
        """(seeds, samplings): the share of sampled answers that are true."""
        return self.record["true"][self.arms.index(arm)][..., split]


# Of samples, before the first update.


def coefficient(off: float) -> tuple:
    claim = "right after sampling GRPO is SFT with weight Â/n"
    return claim, f"c differs from −Â/n by {off:.0e}", guarantee(off < 1e-6)


def of_samples(mean: dict, valley: dict, error: np.ndarray) -> list[tuple]:
    """Mean squeeze lines and shares of tokens in valleys, kind of answer → (seeds,)."""
    wrong, bound = mean["wrong samples"], 3 * error
    return [
        (
            "on policy the squeeze line is 0 on average",
            f"{told(mean['all samples'], '+.3f')}; three standard errors: {bound.max():.3f}",
            found(*(np.abs(mean["all samples"]) < bound)),
        ),
        (
            "most tokens of sampled wrong answers lie on hills",
            f"in valleys: {told(valley['wrong samples'], '.2f')}",
            found(*(valley["wrong samples"] < 0.5)),
        ),
        (
            "rejected answers begin deeper in valleys than sampled wrong ones",
            f"mean line {told(mean['rejected'], '+.3f')} against {told(wrong, '+.3f')}",
            found(*(mean["rejected"] > wrong + bound)),
        ),
        (
            "answers sampled too hot do",
            f"mean line {told(mean['too hot'], '+.3f')}",
            found(*(mean["too hot"] > wrong + bound)),
        ),
    ]


# Of runs.


def negatives(runs: Runs, early: int) -> list[tuple]:
    """On-policy negatives against borrowed ones; ``early`` probings in, the latter squeeze."""
    on, off, error = "negative only", "off-policy negative", noise(runs)
    peak, chosen = (
        runs.curve(off, **which)[:, early] - runs.curve(off, **which)[:, 0]
        for which in ({"stat": "argmax_logp"}, {"name": "chosen"})
    )
    gain, gold, end = moved(runs.true(on)), moved(runs.curve(on)), runs.true(off)[:, -1]
    return [
        (
            "off-policy negatives first squeeze: early on only the argmax gains",
            f"argmax {told(peak)}; $y^+$ {told(chosen)} nats",
            found(*(peak > 0), *(chosen < 0)),
        ),
        (
            "on-policy negatives alone make true answers commoner, by two standard errors",
            f"training questions {told(gain)}; mean {gain.mean():+.2f} ± {error:.2f}",
            found(*(gain > 0), gain.mean() > 2 * error),
        ),
        (
            "and leave the gold wording where it was (within 1 nat)",
            f"{told(gold, '+.1f')} nats",
            found(*(np.abs(gold) < 1)),
        ),
        (
            "off-policy negatives of the same size destroy: a tenth true at most",
            f"true in the end {told(end, '.2f')}",
            found(*(end <= 0.1)),
        ),
    ]


def stale(runs: Runs) -> list[tuple]:
    """Wrong answers that an earlier model said, punished as if they were fresh, or with ρ."""
    ends, error = runs.true("stale negative")[:, -1], noise(runs)
    gain = moved(runs.true("stale, with its ratio"))
    return [
        (
            "stale negatives, taken as fresh, destroy too: a tenth true at most",
            f"true in the end {told(ends, '.2f')}",
            found(*(ends <= 0.1)),
        ),
        (
            "with the ratio to what sampled them true answers get no rarer, by two standard errors",
            f"{told(gain)}; mean {gain.mean():+.2f} ± {error:.2f}",
            found(gain.mean() > -2 * error),
        ),
    ]


def settings(runs: Runs) -> list[tuple]:
    """Of the norm, of passes with and without the clip, and of KL, each against GRPO without."""
    error = noise(runs)

    def gap(arm: str, other: str) -> np.ndarray:
        return runs.true(arm)[:, -1] - runs.true(other)[:, -1]

    norm, clip = gap("constant norm", "both"), gap("eight passes", "eight passes, no clip")
    out = runs.record["clipped"][runs.arms.index("eight passes")]
    rounds = out.reshape(len(out), -1, PASSES)
    lost = [moved(runs.curve(arm)) for arm in ("eight passes", "eight passes, no clip")]
    near = [np.abs(moved(runs.curve(arm))) for arm in ("KL", "both")]
    flat = [np.abs(moved(runs.curve(arm, stat="entropy"))) for arm in ("KL", "both")]
    return [
        (
            "the length norm matters: true answers differ, by two standard errors",
            f"constant norm against 1/n: {told(norm)}; mean {norm.mean():+.2f} ± {error:.2f}",
            found(abs(norm.mean()) > 2 * error),
        ),
        (
            "the clip stops no token in the first of eight passes, and some in the last",
            f"{rounds[..., 0].mean():.1%}, then {rounds[..., -1].mean():.1%} of tokens",
            found(*(rounds[..., 0] == 0).all(1), *(rounds[..., -1] > 0).all(1)),
        ),
        (
            "with eight passes the clip saves true answers, by two standard errors",
            f"with against without: {told(clip)}; mean {clip.mean():+.2f} ± {error:.2f}",
            found(clip.mean() > 2 * error),
        ),
        (
            "but it saves $y^+$",
            f"{told(lost[0], '+.1f')} against {told(lost[1], '+.1f')} nats without",
            found(*(lost[0] > lost[1])),
        ),
        (
            "KL holds $y^+$ and its entropy nearer to the start",
            f"$y^+$ moves {told(near[0], '.1f')} against {told(near[1], '.1f')} nats; entropy "
            f"{told(flat[0], '.2f')} against {told(flat[1], '.2f')}",
            found(*(near[0] < near[1]), *(flat[0] < flat[1])),
        ),
    ]


def grpo(runs: Runs) -> list[tuple]:
    gain, gold = moved(runs.true("both")), moved(runs.curve("both"))
    held, error = moved(runs.true("both", TEST)), noise(runs)
    dpo, up, down = (
        moved(runs.true("dpo")),
        *(moved(runs.curve(arm)) for arm in ("positive only", "negative only")),
    )
    drop = moved(runs.curve("both", stat="entropy"))
    return [
        (
            "GRPO makes true answers commoner and the gold wording rarer",
            f"true {told(gain)}; $y^+$ {told(gold, '+.1f')} nats",
            found(*(gain > 0), *(gold < 0)),
        ),
        (
            "what GRPO teaches carries over to held-out questions, by two standard errors",
            f"true {told(held)}; ± {error:.2f} in the mean",
            found(held.mean() > 2 * error),
        ),
        (
            "DPO on the same questions makes true answers rarer, by two standard errors",
            f"true {told(dpo)}; mean {dpo.mean():+.2f} ± {error:.2f}; $y^+$ "
            f"{told(moved(runs.curve('dpo')), '+.1f')} nats",
            found(dpo.mean() < -2 * error),
        ),
        (
            "rewarding alone costs the gold wording more than punishing alone",
            f"{told(up, '+.1f')} against {told(down, '+.1f')}",
            found(*(up < down)),
        ),
        ("GRPO lowers entropy along $y^+$", f"{told(drop)} nats", found(*(drop < 0))),
    ]


def noise(runs: Runs, samples: int = 64) -> float:
    """The standard error, at most, of a mean difference of two shares of so many samples."""
    return float(np.sqrt(2 * 0.25 / (samples * len(runs.seeds))))


# Of steps.


def entropy_falls(total: dict) -> list[tuple]:
    """Mean measured changes of entropy by the first step and its halves, nats: → (seeds,)."""
    both, up, down = (1e3 * total[name] for name in ("both", "positive", "negative"))
    return [
        (
            "a first step of GRPO lowers the entropy of what is sampled, in each seed",
            f"{told(both)} thousandths of a nat; a reward at random moves it as much",
            found(*(both < 0)),
        ),
        (
            "and it is the rewarded answers that do it",
            f"positive half {told(up)}, negative half {told(down)}",
            found(*(up < down)),
        ),
    ]


def predictions(line_agrees: bool, off: float, correlation: float) -> list[tuple]:
    """``off``: the largest share of a change of entropy that the first order misses."""
    return [
        (
            "the entropy line tells the sign of a small step",
            "30 of 30 labels" if line_agrees else "not for all labels",
            guarantee(line_agrees),
        ),
        (
            "the first order predicts a step’s change of entropy (within 10 percent)",
            f"off by {100 * off:.1f} percent at most",
            found(off < 0.1),
        ),
        (
            "influence predicts what other questions suffer (correlation ≥ 0.95)",
            f"{correlation:.3f}, first seed",
            found(correlation >= 0.95),
        ),
    ]


# Of the record on a real model, one run.


def learns_sums(reward: np.ndarray, answers: np.ndarray, n: tuple[int, int]) -> list[tuple]:
    """Reward at each update; greedy answers (2, 2, …): before and after, by split, right first."""
    first, last = reward[:10], reward[-10:]
    error = np.sqrt((first.var(ddof=1) + last.var(ddof=1)) / 10)
    gain = last.mean() - first.mean()
    before, after = answers[:, 1, 0]
    spread = np.sqrt((before * (1 - before) + after * (1 - after)) / n[1])
    return [
        (
            "SmolLM2: the reward rises (first against last ten updates)",
            f"{first.mean():.2f} to {last.mean():.2f} ± {error:.2f}",
            found(gain > 2 * error),
        ),
        (
            "and greedy answers to held-out sums are right more often",
            f"{before:.0%} to {after:.0%} ± {100 * spread:.0f} points, {n[1]} sums",
            found(after - before > 2 * spread),
        ),
    ]


def frozen_answers(right: np.ndarray, wrong: np.ndarray, sampled: np.ndarray) -> list[tuple]:
    """Changes of log π of held-out answers of the start, nats; entropy of samples, by update."""
    rows = []
    for name, moved_, sign in (("right", right, 1), ("wrong", wrong, -1)):
        error = moved_.std(ddof=1) / np.sqrt(len(moved_))
        word = "likelier" if sign > 0 else "less likely"
        rows.append(
            (
                f"frozen {name} answers of the start get {word} (held out)",
                f"{moved_.mean():+.1f} ± {error:.1f} nats, {len(moved_)} answers",
                found(sign * moved_.mean() > 2 * error),
            )
        )
    ends = sampled[:10].mean(), sampled[-10:].mean()
    rows.append(
        (
            "the entropy of what it samples falls",
            f"{ends[0]:.2f} to {ends[1]:.2f} nats a token",
            found(ends[1] < ends[0]),
        )
    )
    return rows
