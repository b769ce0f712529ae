"""What the record at scale says: which arm stops where, and what has moved by how much."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kept import unpacked
from show import minus

BETA = 0.1  # of DPO, per nat


def margins(pair: np.ndarray) -> np.ndarray:
    """(S, N), h = Δ+ − Δ− since the first of S probings, nats, of log π of y+ and y− (S, N, 2)."""
    moved = pair - pair[:1]
    return moved[..., 0] - moved[..., 1]


def preference_loss(pair: np.ndarray) -> np.ndarray:
    """(S,), the mean of −log σ(βh), which pairs that are right already cannot lower much."""
    return np.logaddexp(0, -BETA * margins(np.float64(pair))).mean(1)


def best_stop(of_runs: Sequence[np.ndarray]) -> tuple[int, int]:
    """(run, probing), the least `preference_loss` after the first probing of one of the runs."""
    losses = [preference_loss(pair)[1:] for pair in of_runs]
    which = min(range(len(losses)), key=lambda i: losses[i].min())
    return which, 1 + int(losses[which].argmin())


class Moved(NamedTuple):
    """A change, nats: its mean over the same prompts, and the standard error of that."""

    mean: float
    error: float

    @classmethod
    def of(cls, changes: np.ndarray) -> "Moved":
        return cls(float(changes.mean()), float(changes.std(ddof=1) / np.sqrt(len(changes))))

    @property
    def verdict(self) -> str:
        sure = abs(self.mean) > 2 * self.error
        return "neither" if not sure else "rises" if self.mean > 0 else "falls"

    def __str__(self) -> str:
        return minus(f"{self.mean:+.2f} ± {self.error:.2f}")


def since_start_and_peak(of_seeds: Sequence[np.ndarray]) -> tuple[Moved, Moved]:
    """How far curves end from where they begin, and from the peak of their mean.

    Args:
        of_seeds: (S, N) for each seed, the same N prompts if there are fewer than three seeds. The
            error is over three seeds or more, over the prompts if there are fewer.
    """
    ends = [curves[-1] - curves[[0, int(curves.mean(1).argmax())]] for curves in of_seeds]
    found = [end.mean(1) for end in ends] if len(ends) >= 3 else np.mean(ends, axis=0).T
    return tuple(Moved.of(column) for column in np.transpose(found))


class Paired(NamedTuple):
    """A mean difference over the same prompts, nats, and the interval that holds it, 95%."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(
        cls, differences: np.ndarray, draws: int = 4000, seed: int = 0, n_at_once: int = 1
    ) -> "Paired":
        """From (N,) differences: the bootstrap's percentiles over the prompts.

        Further out with ``n_at_once``: such intervals hold for so many means at once (Bonferroni).
        """
        rng, n, tail = np.random.default_rng(seed), len(differences), 2.5 / n_at_once
        means = differences[rng.integers(0, n, (draws, n))].mean(1)
        return cls(float(differences.mean()), *np.percentile(means, [tail, 100 - tail]).tolist())

    @property
    def verdict(self) -> str:
        return "more" if self.low > 0 else "less" if self.high < 0 else "no difference"

    def __str__(self) -> str:
        return minus(f"{self.mean:+.1f} ({self.low:+.1f} to {self.high:+.1f})")


@dataclass(frozen=True)
class Scale:
    """The record: log-probs of N prompts with R types at the S probings of each run.

    Attributes:
        group: (N,) "train", "test" (held out) or "tune" (held out, to choose where to stop).
        runs: name → "steps" (S,), "logp" (S, N, R), "argmax" (S, N), and "said", a line for each
            greedy answer at the end: its share of repeated 3-grams, words, whether it ended.
        n_tokens: (N, R), of each response; NaN where a prompt lacks the type.
    """

    types: list[str]
    group: np.ndarray
    runs: dict[str, dict[str, np.ndarray]]
    meta: dict
    n_tokens: np.ndarray | None = None

    @classmethod
    def load(cls, name: str | Path) -> "Scale":
        """Read NAME.npz and NAME.json."""
        runs, plain = {}, {}
        with np.load(f"{name}.npz", allow_pickle=False) as file:
            for key, values in file.items():
                run, _, what = key.rpartition("|")
                (runs.setdefault(run, {}) if run else plain)[what] = values
        missing = np.where(np.isnan(plain["n_tokens"]), np.nan, 0)
        for run in runs.values():
            run |= {"logp": unpacked(run["logp"]) + missing, "argmax": unpacked(run["argmax"])}
        told = json.loads(Path(f"{name}.json").read_text(encoding="utf-8"))
        return cls(plain["types"].tolist(), plain["group"], runs, told, plain["n_tokens"])

    def sweep(self, arm: str, seed: int = 0, role: str = "whole") -> list[str]:
        """The runs of an arm to the end of its epochs, one for each learning rate."""
        told, keys = self.meta["runs"], ("arm", "seed", "role")
        return [r for r in self.runs if [told[r][k] for k in keys] == [arm, seed, role]]

    def at_rate(self, arm: str, lr: float, seed: int = 0) -> str:
        """The run of an arm at a learning rate; a ValueError if there is none."""
        found = [run for run in self.sweep(arm, seed) if self.meta["runs"][run]["lr"] == lr]
        if not found:
            raise ValueError(f"the record has no run of {arm!r} at the learning rate {lr:g}")
        return found[0]

    def stop(self, arm: str, seed: int = 0) -> tuple[str, int]:
        """The run of an arm and the probing where the pairs held out for that say to stop."""
        runs = self.sweep(arm, seed)
        which, at = best_stop([self.pair(run, "tune") for run in runs])
        return runs[which], at

    def least_loss(self, run: str) -> float:
        """Of the pairs that choose where to stop, at the best probing after the first."""
        return float(preference_loss(self.pair(run, "tune"))[1:].min())

    def probing(self, run: str, update: int) -> int:
        """Which probing came after an update; a ValueError if none did."""
        return self.runs[run]["steps"].tolist().index(update)

    def values(self, run: str, name: str, group: str) -> np.ndarray:
        """(S, n), log π of a type, or of "argmax", of the prompts of a group that have it."""
        of, mine = self.runs[run], self.group == group
        found = of["argmax"] if name == "argmax" else of["logp"][..., self.types.index(name)]
        return np.float64(found[:, mine & ~np.isnan(found[0])])

    def pair(self, run: str, group: str) -> np.ndarray:
        """(S, n, 2), log π of y+ and y−."""
        return np.stack([self.values(run, name, group) for name in ("chosen", "rejected")], -1)

    def changes(self, run: str, name: str, group: str, at: float, since: int = 0) -> np.ndarray:
        """(n,), of a type between two probings; ``at`` may lie between two."""
        curve = self.values(run, name, group)
        i = min(int(at), len(curve) - 2)
        return curve[i] + (at - i) * (curve[i + 1] - curve[i]) - curve[since]

    def reaches(self, run: str, margin: float, group: str = "test") -> float | None:
        """The probing, between two if need be, where the mean margin is there; None if nowhere."""
        means = margins(self.pair(run, group)).mean(1)
        if (i := int((means >= margin).argmax())) == 0:
            return None
        return i - (means[i] - margin) / (means[i] - means[i - 1])


def falls(record: Scale, runs: Iterable[str], name: str = "chosen") -> list[tuple]:
    """Does it fall? Rows (run, group, mean at first, moved by the end, moved since its peak).

    Of groups with two prompts or more, which have an error.
    """
    rows = []
    for run, group in product(runs, ("train", "test")):
        curves = record.values(run, name, group)
        if curves.shape[1] > 1:
            rows.append((run, group, float(curves[0].mean()), *since_start_and_peak([curves])))
    return rows


def verdicts(record: Scale) -> list[str]:
    """A line for each run and group: how far y+ has moved, and whether surely."""
    words = {"train": "trained", "test": "held out"}
    return [
        f"{run}, {words[group]}: chosen {end} nats: {end.verdict}; "
        f"{since_peak} since its peak: {since_peak.verdict}"
        for run, group, _, end, since_peak in falls(record, record.runs)
    ]


def at_margin(
    record: Scale,
    arms: Sequence[str],
    margin: float,
    name: str = "chosen",
    group: str = "test",
    lr: float | None = None,
) -> list[tuple]:
    """Arms that reach a margin, there: (arm, run, moved on train, on test, test − first arm's).

    Args:
        group: whose mean margin it is.
        lr: the learning rate of the runs to compare; by default that of each arm's `Scale.stop`.
    """
    rows, first = [], None
    for arm in arms:
        run = record.stop(arm)[0] if lr is None else record.at_rate(arm, lr)
        if (at := record.reaches(run, margin, group)) is not None:
            train, test = (record.changes(run, name, of, at) for of in ("train", "test"))
            first = test if first is None else first
            rows.append((arm, run, Moved.of(train), Moved.of(test), Paired.of(test - first)))
    return rows


def at_stop(record: Scale, arms: Sequence[str], seed: int = 0, name="chosen") -> list[tuple]:
    """Arms where each does best, beside the first: (arm, run, updates, loss, margin, moved on
    train, on test, margin − first arm's, test − first arm's)."""
    rows, first = [], None
    for arm in arms:
        run, at = record.stop(arm, seed)
        pair, steps = record.pair(run, "test"), record.runs[run]["steps"]
        train, test = (record.changes(run, name, group, at) for group in ("train", "test"))
        found = margins(pair)[at], test
        first = found if first is None else first
        beside = [Paired.of(mine - its) for mine, its in zip(found, first, strict=True)]
        loss, moved = float(preference_loss(pair)[at]), map(Moved.of, (found[0], train, test))
        rows.append((arm, run, int(steps[at]), loss, *moved, *beside))
    return rows


def kept_where_gained(
    run: tuple[Scale, str], other: tuple[Scale, str], update: int, name: str = "chosen"
) -> Paired:
    """How far a type has moved, held out, less how far in another where its margin was the same.

    Args:
        run: a run and its record, probed after ``update``; ``other`` the same, wherever it stands.
            A ValueError if that has never gained the mean margin of trained pairs that ``run`` has.
    """
    (record, mine), (beside, its) = run, other
    at = record.probing(mine, update)
    gained = margins(record.pair(mine, "train"))[at].mean()
    if (level := beside.reaches(its, gained, "train")) is None:
        raise ValueError(f"{its!r} never has the margin of {gained:.1f} nats of {mine!r}")
    here, there = record.changes(mine, name, "test", at), beside.changes(its, name, "test", level)
    return Paired.of(here - there)


def at_update(
    runs: Sequence[tuple[Scale, str]], update: int, name: str, group: str
) -> tuple[Moved, Moved, Paired]:
    """How far a type has moved in two runs by an update, and the second's less the first's.

    The runs may be of two records, of which one watches the first of the other's prompts. A
    ValueError if they are of different rows, or one was not probed there.
    """
    if len({record.meta["rows"] for record, _ in runs}) > 1:
        raise ValueError("the records are of different rows")
    moved = [record.changes(run, name, group, record.probing(run, update)) for record, run in runs]
    first, second = (of[: min(map(len, moved))] for of in moved)
    return Moved.of(first), Moved.of(second), Paired.of(second - first)
