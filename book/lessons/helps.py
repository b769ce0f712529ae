"""The record of the chapter "What helps", and how ways to tune are compared at the same margin."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from audit.scale import Moved, Scale, margins
from lmdyn import lm


def since(values: np.ndarray) -> np.ndarray:
    """The change since the first probing."""
    return values - values[..., :1]


def end(values: np.ndarray) -> np.ndarray:
    """The change from the first probing to the last: (seeds,)."""
    return values[:, -1] - values[:, 0]


def at_margin(margins, values, level) -> np.ndarray:
    """Where each curve stands when its margin first reaches a level, between two probings."""
    found = []
    for h, v, goal in zip(margins, values, level, strict=True):
        after = max(int(np.argmax(h >= goal)), 1)
        weight = (goal - h[after - 1]) / (h[after] - h[after - 1])
        found.append(v[after - 1] + weight * (v[after] - v[after - 1]))
    return np.array(found)


@dataclass(frozen=True)
class Record:
    """``recorded/helps-world``: the arms, their curves, masses and answers, three seeds each."""

    arrays: dict[str, np.ndarray]
    about: dict

    @classmethod
    def load(cls, name: str = "recorded/helps-world") -> "Record":
        about = json.loads(Path(f"{name}.json").read_text(encoding="utf-8"))
        return cls(dict(np.load(f"{name}.npz")), about)

    @property
    def every(self) -> list[str]:
        """All arms; the last goes on for longer."""
        return self.arrays["arms"].tolist()

    def of(self, key: str, arm: str) -> np.ndarray:
        return self.arrays[key][self.every.index(arm)]

    def curve(self, arm, name="chosen", split="train", stat="logp") -> np.ndarray:
        """(seeds, probings): the mean over the prompts of a split, nats."""
        values = self.of(stat, arm)[..., self.arrays["types"].tolist().index(name)]
        return values[..., self.arrays["split"] == split].mean(-1, dtype=float)

    def margin(self, arm, split="train") -> np.ndarray:
        """(seeds, probings): log π(y+) − log π(y−), nats."""
        return self.curve(arm, "chosen", split) - self.curve(arm, "rejected", split)

    def moved(self, arm, name="chosen", split="train", stat="logp") -> np.ndarray:
        """(seeds,): from the first probing to the last."""
        return end(self.curve(arm, name, split, stat))

    def against(self, arm, other="dpo", name="chosen", split="train"):
        """The largest margin that both reach, and how much more of a response the arm keeps there.

        (seeds,) each, nats, each arm since its own start.
        """
        h = {each: since(self.margin(each, split)) for each in (arm, other)}
        level = np.minimum(h[arm].max(1), h[other].max(1))
        kept = {e: at_margin(h[e], since(self.curve(e, name, split)), level) for e in h}
        return level, kept[arm] - kept[other]


def frontier(gain: dict[str, np.ndarray], kept: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """arm → (seeds,): whether no other arm is as good in both and better in one."""

    def beats(a, b):
        at_least = (gain[a] >= gain[b]) & (kept[a] >= kept[b])
        return at_least & ((gain[a] > gain[b]) | (kept[a] > kept[b]))

    return {a: ~np.any([beats(b, a) for b in gain if b != a], axis=0) for a in gain}


def curves_of(run: lm.Trajectory, split: str = "train", name: str = "chosen"):
    """(1, probings) each: the margin and a response, since the start."""
    plus, minus, mine = (run.mean(n, split=split) for n in ("chosen", "rejected", name))
    return since((plus - minus)[None]), since(mine[None])


def kept_beside(run, other, split: str = "train", name: str = "chosen") -> tuple[float, float]:
    """The largest margin that two runs reach, and how much more of a response the first keeps."""
    both = [curves_of(each, split, name) for each in (run, other)]
    level = [min(h.max() for h, _ in both)]
    mine, its = (at_margin(h, values, level)[0] for h, values in both)
    return level[0], mine - its


def held_margin(scale: Scale, run: str, level: float) -> np.ndarray:
    """(n,): the margin of held-out prompts where that of trained ones, their mean, is at a level.

    A ValueError where it never is.
    """
    if (at := scale.reaches(run, level, "train")) is None:
        raise ValueError(f"{run!r} does not reach a margin of {level:g} nats on trained prompts")
    plus, minus = (scale.changes(run, name, "test", at) for name in ("chosen", "rejected"))
    return plus - minus


def beyond_at_stop(scale: Scale, arms, first: str = "dpo") -> dict[str, np.ndarray]:
    """arm → (2, n): held-out margin and y+ at its best stop, less those of the first at its own."""
    found = {}
    for arm in (first, *arms):
        run, at = scale.stop(arm)
        pair = scale.pair(run, "test")
        found[arm] = np.stack([margins(pair)[at], scale.changes(run, "chosen", "test", at)])
    return {arm: found[arm] - found[first] for arm in arms}


def by_rate(runs: Iterable[tuple[Scale, str]], update: int) -> dict[float, tuple]:
    """Learning rate → (least loss, margin, y+) of runs of an arm, each from its record.

    The loss is of the pairs that choose, at the best probing after the first; margin and y+ are of
    those held out, as far as they have moved by an update.
    """
    found = {}
    for record, run in runs:
        at = record.probing(run, update)
        moved = margins(record.pair(run, "test"))[at], record.changes(run, "chosen", "test", at)
        found[record.meta["runs"][run]["lr"]] = record.least_loss(run), *map(Moved.of, moved)
    return dict(sorted(found.items()))


def written(scale: Scale, run: str) -> dict[str, tuple[float, float, Moved]]:
    """Of greedy answers before tuning and after it, paired by prompt: (mean, mean, change)."""
    told = [np.float64(scale.runs[of]["said"]) for of in (scale.meta["runs"][run]["start"], run)]
    return {
        what: (before.mean(), after.mean(), Moved.of(after - before))
        for what, before, after in zip(
            ("repeats", "words", "ended"), *np.transpose(told, (0, 2, 1)), strict=True
        )
    }


def change(run: lm.Trajectory, name: str) -> tuple[float, float]:
    """Mean and standard error over the trained prompts of the change of a type, nats."""
    values = run.values(name, split="train").astype(float)
    moved = values[-1] - values[0]
    moved = moved[~np.isnan(moved)]
    return moved.mean(), moved.std(ddof=1) / np.sqrt(len(moved))
