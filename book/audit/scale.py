"""What the record at scale says: which arm stops where, and what has moved by how much.

Changes are means over the same prompts before and after, with the standard error of the mean.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

BETA = 0.1  # of DPO, per nat
ERRORS = 2.0  # standard errors that a change needs to count


def margins(pair: np.ndarray) -> np.ndarray:
    """(S, N), h = Δ+ − Δ− since the first of S probings, nats, of log π of y+ and y− (S, N, 2)."""
    moved = pair - pair[:1]
    return moved[..., 0] - moved[..., 1]


def preference_loss(pair: np.ndarray) -> np.ndarray:
    """(S,), the mean of −log σ(βh): what DPO lowers, here on pairs that it has not seen.

    Unlike the mean margin it does not grow without limit with pairs that were right already.
    """
    return np.logaddexp(0, -BETA * margins(np.float64(pair))).mean(1)


def best_stop(of_runs: Sequence[np.ndarray]) -> tuple[int, int]:
    """(run, probing), the least `preference_loss` after the first probing of one of the runs."""
    losses = [preference_loss(pair)[1:] for pair in of_runs]
    which = min(range(len(losses)), key=lambda i: losses[i].min())
    return which, 1 + int(losses[which].argmin())


class Moved(NamedTuple):
    """A mean change over prompts, nats, its standard error, and the share of prompts that rose."""

    mean: float
    error: float
    rose: float

    @classmethod
    def of(cls, changes: np.ndarray) -> "Moved":
        known = np.float64(changes[~np.isnan(changes)])
        error = known.std(ddof=1) / np.sqrt(len(known))
        return cls(float(known.mean()), float(error), float((known > 0).mean()))

    @property
    def verdict(self) -> str:
        """ "rises" or "falls", by `ERRORS` standard errors, else "neither"."""
        sure = abs(self.mean) > ERRORS * self.error
        return "neither" if not sure else "rises" if self.mean > 0 else "falls"

    def __str__(self) -> str:
        return f"{self.mean:+.2f} ± {self.error:.2f}".replace("-", "−")


@dataclass(frozen=True)
class Scale:
    """The record: log-probs of N prompts with R types at the S probings of each run.

    Attributes:
        group: (N,) "train", "test" (held out) or "tune" (held out, to choose what to stop at).
        runs: name → "steps" (S,), "logp" (S, N, R), "argmax" (S, N), and "said", one line for each
            greedy answer at the end: repeated 3-grams, words, whether it ended.
        meta: of the JSON file.
    """

    types: list[str]
    group: np.ndarray
    runs: dict[str, dict[str, np.ndarray]]
    meta: dict

    @classmethod
    def load(cls, path: str | Path) -> "Scale":
        """Read NAME.npz and NAME.json."""
        runs, plain = {}, {}
        with np.load(Path(path).with_suffix(".npz"), allow_pickle=False) as file:
            for key, values in file.items():
                name, _, what = key.rpartition("|")
                (runs.setdefault(name, {}) if name else plain)[what] = values
        meta = json.loads(Path(path).with_suffix(".json").read_text(encoding="utf-8"))
        return cls(plain["types"].tolist(), plain["group"], runs, meta)

    def sweep(self, arm: str, seed: int = 0) -> list[str]:
        """The whole runs of an arm, one for each learning rate; a ValueError if there is none."""
        told, epochs = self.meta["runs"], self.meta["size"]["epochs"]
        usual = {told[name]["precision"] for name in self.runs if told[name]["arm"] == "start sft"}
        found = [
            name
            for name in self.runs
            if (told[name]["arm"], told[name]["seed"]) == (arm, seed)
            and told[name]["epochs"] == epochs
            and "max_steps" not in told[name]
            and (arm == "on-policy" or told[name]["precision"] in usual)
        ]
        if not found:
            known = sorted({told[name]["arm"] for name in self.runs})
            raise ValueError(f"no whole run of {arm!r} with seed {seed}; the arms are {known}")
        return found

    def values(self, run: str, name: str, group: str) -> np.ndarray:
        """(S, n), log π of a type, or of "argmax", of the prompts of a group that were probed."""
        of, mine = self.runs[run], self.group == group
        found = of["argmax"] if name == "argmax" else of["logp"][..., self.types.index(name)]
        return found[:, mine & ~np.isnan(found[0])]

    def pair(self, run: str, group: str) -> np.ndarray:
        """(S, n, 2), log π of y+ and y−."""
        return np.stack([self.values(run, name, group) for name in ("chosen", "rejected")], -1)

    def stop(self, arm: str, seed: int = 0) -> tuple[str, int]:
        """The run of an arm and the probing at which the held-out pairs for tuning say to stop."""
        names = self.sweep(arm, seed)
        which, at = best_stop([self.pair(name, "tune") for name in names])
        return names[which], at

    def moved(self, run: str, name: str, group: str, at: float, since: int = 0) -> Moved:
        """How a type has moved between two probings; ``at`` may lie between two."""
        curve = self.values(run, name, group)
        return Moved.of(_at(curve, at) - curve[since])

    def fall(self, run: str, group: str = "train", name: str = "chosen") -> tuple[Moved, Moved]:
        """From the first probing to the last, and from the highest mean on the way to the last."""
        curve = self.values(run, name, group)
        peak = int(curve.mean(1).argmax())
        return tuple(self.moved(run, name, group, len(curve) - 1, since) for since in (0, peak))

    def reaches(self, run: str, margin: float, group: str = "test") -> float | None:
        """The probing, between two if need be, at which the mean margin is first reached."""
        means = margins(self.pair(run, group)).mean(1)
        later = np.flatnonzero(means >= margin)
        if not len(later):
            return None
        i = int(later[0])
        return float(i and i - (means[i] - margin) / (means[i] - means[i - 1]))

    def accuracy(self, run: str, at: int, group: str = "test") -> float:
        """The share of pairs whose margin has grown since the first probing."""
        return float((margins(self.pair(run, group))[at] > 0).mean())


def _at(curve: np.ndarray, at: float) -> np.ndarray:
    i = min(int(at), len(curve) - 1)
    later = curve[min(i + 1, len(curve) - 1)]
    return curve[i] + (at - i) * (later - curve[i])
