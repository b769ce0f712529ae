"""What "Probe your own run" reads from its records, and counts there."""

import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest

import world
from audit.scale import Moved, Scale, margins, preference_loss
from lmdyn import lm
from lmdyn.lm.data import ProbeSet, as_probes
from lmdyn.lm.squeeze import FALL, Alert, squeeze
from lmdyn.lm.tokens import encode

WATCHED = ("chosen", "rejected", "argmax")
BEFORE = 0.25  # nats a response, of any length, that the rule once had instead of nats a token
SIZES, WIDEST = (8, 16, 32), 32  # prompts that raise the alert; the judges are others
JUDGES = {"training": slice(32, 48), "held-out": slice(80, 96)}


def first_alert(steps: Sequence[int], curves: np.ndarray, n_tokens: np.ndarray) -> Alert | None:
    """The first alert of a run, from log-probs (S, N, 3) of y+, y− and the argmax along y+.

    Args:
        n_tokens: (N, 2), of y+ and of y−.
    """
    read = np.moveaxis(curves, -1, 0)
    found = (squeeze(steps[:n], *read[:, :n], n_tokens) for n in range(2, len(steps) + 1))
    return next(filter(None, found), None)


@cache
def _tiny_tokenizer():
    return lm.load("tiny", device="cpu")[1]


def tokens_of(rows: ProbeSet) -> np.ndarray:
    """(N, 2), the tokens of y+ and of y− of rows of the toy world, as the tiny model reads them."""
    encoded = encode(_tiny_tokenizer(), rows)
    return np.array([[len(row.responses[name]) for name in WATCHED[:2]] for row in encoded])


def trl_pairs(n_train: int, n_test: int, seed: int) -> list[dict[str, str]]:
    """Pairs of the toy world, training ones first; a space before each response: TRL joins them."""
    rows = world.probes(n_train=n_train, n_test=n_test, seed=seed)
    return [{"prompt": r["prompt"]} | {key: f" {r[key]}" for key in WATCHED[:2]} for r in rows]


def pattern(steps: Sequence[int], curves: np.ndarray, fall=0.5) -> int | None:
    """The update where y+ has first lost ``fall`` nats, y− has fallen and the argmax has risen."""
    mean = curves.mean(1)
    change = (mean - mean[0]) * (-1, -1, 1)
    called = (change[:, 0] >= fall) & (change[:, 1:] > 0).all(1)
    return int(steps[called.argmax()]) if called.any() else None


class Rate(NamedTuple):
    """How many of how many, and Wilson's 95% interval."""

    hits: int
    n: int
    low: float
    high: float

    @classmethod
    def of(cls, hits: Sequence[object]) -> "Rate":
        """Of hits that are None where there is none."""
        k = sum(hit is not None for hit in hits)
        interval = binomtest(k, len(hits)).proportion_ci(method="wilson")
        return cls(k, len(hits), interval.low, interval.high)

    @property
    def share(self) -> float:
        return self.hits / self.n

    def __str__(self) -> str:
        return f"{self.hits} of {self.n} ({self.low:.0%} to {self.high:.0%})"


class Worlds:
    """The record of TRL's trainers in ten toy worlds: who raises the alert, whom judges call.

    Attributes:
        runs: names; the first of them are SFT.
        alerts: (run, split, prompts) → for each world the update of the first alert, or None.
        judged: (run, split) → the same of the `pattern` on 16 other prompts.
        n_tokens: (worlds, prompts, 2), of y+ and of y−.
    """

    def __init__(self, name="recorded/alert-world"):
        self.about = json.loads(Path(f"{name}.json").read_text(encoding="utf-8"))
        made = self.about["settings"]
        self.runs, self.n = list(made["runs"]), len(made["seeds"])
        starts = {"training": 0, "held-out": made["n_train"]}
        worlds = (trl_pairs(made["n_train"], made["n_test"], seed) for seed in made["seeds"])
        self.n_tokens = np.stack([tokens_of(as_probes(rows)) for rows in worlds])
        with np.load(f"{name}.npz", allow_pickle=False) as file:
            self.steps = {run: file[f"{run} steps"] for run in self.runs}
            self.curves = {run: file[run].astype(float) for run in self.runs}
        self.alerts, self.judged = {}, {}
        for run, curves in self.curves.items():
            for split, start in starts.items():
                for size in SIZES:
                    some = slice(start, start + size)
                    alerts = [
                        first_alert(self.steps[run], of[:, some], n_tokens[some])
                        for of, n_tokens in zip(curves, self.n_tokens, strict=True)
                    ]
                    self.alerts[run, split, size] = [alert and alert.step for alert in alerts]
                self.judged[run, split] = [
                    pattern(self.steps[run], of[:, JUDGES[split]]) for of in curves
                ]

    @property
    def sft(self) -> list[str]:
        return [run for run in self.runs if run.startswith("sft")]

    @property
    def preference(self) -> list[str]:
        return [run for run in self.runs if not run.startswith("sft")]

    def of(self, runs, split, size=WIDEST, called=None) -> list[int | None]:
        """First alerts of these runs; of those alone that the judges call, or do not."""
        return [
            alert
            for run in runs
            for alert, judge in zip(
                self.alerts[run, split, size], self.judged[run, split], strict=True
            )
            if called is None or (judge is not None) == called
        ]


class Written(NamedTuple):
    """A run: its first alert on held-out prompts, the change of y+ there, and what it writes.

    Attributes:
        alert: after how many updates; None without one.
        moved: of y+ by the end, nats.
        before, after: (n,) ones and zeros, whether each answer is as one wants it.
    """

    name: str
    alert: int | None
    moved: float
    before: np.ndarray
    after: np.ndarray

    @property
    def change(self) -> float:
        return float((self.after - self.before).mean())

    @property
    def worse(self) -> bool:
        """By two standard errors over the same questions."""
        return Moved.of(self.after - self.before).verdict == "falls"


@cache
def written_in_world() -> list[Written]:
    """15 ways of tuning, 3 seeds each: which answers to 96 held-out questions are true."""
    about = json.loads(Path("recorded/helps-world.json").read_text(encoding="utf-8"))
    with np.load("recorded/helps-world.npz", allow_pickle=False) as file:
        record = dict(file)
    types, starts, found = record["types"].tolist(), record["starts"].tolist(), []
    test, places = record["split"] == "test", [types.index(name) for name in WATCHED[:2]]
    for number, seed in enumerate(record["seeds"].tolist()):
        rows = world.probes(**about["rows"], seed=seed)
        n_tokens = tokens_of(rows.split("test")[: test.sum()])  # the first ones were probed
        asked = {i: row["prompt"] for i, row in enumerate(rows) if row["split"] == "test"}
        facts = {i: world.truth(*world.read_question(prompt)) for i, prompt in asked.items()}

        def true(said, facts=facts):
            right = (world.read_answer(str(said[i])) == fact for i, fact in facts.items())
            return np.fromiter(right, float)

        before = {start: true(record["start_answers"][i, number]) for i, start in enumerate(starts)}
        for at, arm in enumerate(record["arms"].tolist()):
            curves = np.concatenate(
                [record["logp"][at, number][..., places], record["argmax_logp"][at, number]], -1
            )[:, test].astype(float)
            alert = first_alert(record["steps"][at], curves, n_tokens)
            moved = float((curves[-1] - curves[0]).mean(0)[0])
            start, after = about["arms"][arm]["start"], true(record["answers"][at, number])
            found.append(Written(arm, alert and alert.step, moved, before[start], after))
    return found


def alerts_at_scale(
    record: Scale, per_response: float | None = None
) -> Iterator[tuple[str, np.ndarray, Alert | None]]:
    """The runs to the end of a record: name, curves (S, N, 3) on held-out prompts, first alert.

    Args:
        per_response: the bound in nats a response, whatever its length; nats a token if not given.
    """
    n_tokens = record.n_tokens[record.group == "test"]
    n_tokens = n_tokens[:, [record.types.index(name) for name in WATCHED[:2]]]
    if per_response is not None:
        n_tokens = np.full_like(n_tokens, per_response / FALL)  # all of them alike
    for run, about in record.meta["runs"].items():
        if about["role"] == "whole":
            curves = np.stack([record.values(run, name, "test") for name in WATCHED], -1)
            yield run, curves, first_alert(record.runs[run]["steps"], curves, n_tokens)


def tokens_on_smollm2(begun: np.ndarray) -> np.ndarray:
    """(N, 2), tokens of y+ and y− of the prompts of alert-smollm2, from the record sft-hh.

    They are every second held-out one there, and its last model is the one that DPO begins with.

    Args:
        begun: (N, 2), their log-probs as DPO begins; a ValueError if those of sft-hh are others.
    """
    record = lm.Trajectory.load("recorded/sft-hh")
    places = [record.types.index(name) for name in WATCHED[:2]]
    watched = np.flatnonzero(record.split == "test")[1::2]
    if not np.allclose(record.logp[-1, watched][:, places], begun, rtol=0, atol=0.01):
        raise ValueError("sft-hh does not end with these log-probs: these are other prompts")
    return record.n_tokens[watched][:, places]


@cache
def written_at_scale() -> list[Written]:
    """13 runs of SmolLM2 on 300 pairs: which greedy answers end within 64 tokens."""
    record, found = Scale.load("recorded/scale-smollm2"), []
    for run, curves, alert in alerts_at_scale(record):
        about, moved = record.meta["runs"][run], float((curves[-1] - curves[0]).mean(0)[0])
        before, after = (np.float64(record.runs[of]["said"][:, 2]) for of in (about["start"], run))
        found.append(Written(about["arm"], alert and alert.step, moved, before, after))
    return found


class Stopped(NamedTuple):
    """What a run has at its first alert and at its end, changes since its start, nats.

    Attributes:
        alert: after how many updates.
        kept: of y+ on held-out prompts.
        margin: on held-out prompts.
        loss: the preference loss on further held-out pairs.
        least, best: its least, and after how many updates; 0 where no tuning is best.
    """

    run: str
    alert: int
    kept: tuple[float, float]
    margin: tuple[float, float]
    loss: tuple[float, float]
    least: float
    best: int


def stopped_at_alert(record: Scale) -> list[Stopped]:
    """The runs of a record at scale with an alert on held-out prompts."""
    found = []
    for run, curves, alert in alerts_at_scale(record):
        if alert is None:
            continue
        steps = record.runs[run]["steps"]
        at = [steps.tolist().index(alert.step), -1]
        kept = (curves[..., 0] - curves[0, :, 0]).mean(1)
        margin = margins(record.pair(run, "test")).mean(1)
        loss = preference_loss(record.pair(run, "tune"))
        both = (tuple(of[at].tolist()) for of in (kept, margin, loss))
        least, best = float(loss.min()), int(steps[loss.argmin()])
        found.append(Stopped(run, alert.step, *both, least, best))
    return found


def first_alerts(record: Scale, per_response: float | None = None) -> dict[str, int | None]:
    """Run → the update of its first alert, as in `alerts_at_scale`."""
    found = alerts_at_scale(record, per_response)
    return {run: alert and alert.step for run, _, alert in found}
