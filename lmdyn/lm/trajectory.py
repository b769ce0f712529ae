"""What a run recorded: the statistics of every probe on the way, and a log of the updates."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from lmdyn.checks import check_known
from lmdyn.lm.data import ProbeSet
from lmdyn.lm.processes import as_forward, together
from lmdyn.lm.records import DAMAGED, replacing, write_json
from lmdyn.lm.score import STATS, Statistics, known_mean, score

_OVER_TIME = ("steps", "examples_seen", *STATS)
_ARRAYS = (*_OVER_TIME, "types", "split", "vocab_size", "n_tokens")


@dataclass(frozen=True, eq=False, kw_only=True)
class Trajectory(Statistics):
    """The learning dynamics of one run: N prompts with R response types, scored S times.

    Its statistics are those of `Scores`, (S, N, R) each, in float32, NaN where a row lacks a type.

    Attributes:
        types, vocab_size, n_tokens: as in `Scores`.
        split: (N,) "train" or "test" for each prompt, "" where the data do not tell.
        steps: (S,) updates made before each probing.
        examples_seen: (S,) rows learned by then, repetitions counted.
        log: what each of U updates logged, name → (U,): means over its rows of ``loss`` and, nats,
            of ``logp_<type>`` of each response that it reads; ``lr``; ``grad_norm``, unclipped.
        meta: the settings of the run, seed, versions, hardware, date and command.
    """

    split: np.ndarray
    steps: np.ndarray
    examples_seen: np.ndarray
    log: dict[str, np.ndarray] = field(default_factory=dict)
    meta: dict = field(default_factory=dict)

    def __repr__(self) -> str:
        s, n, r = self.logp.shape
        return f"Trajectory({s} probings of {n} prompts × {r} types, {self.updates} updates)"

    @property
    def updates(self) -> int:
        return len(next(iter(self.log.values()), ()))

    def values(self, name: str, stat: str = "logp", split: str | None = None) -> np.ndarray:
        """(S, N), a statistic of one response type, NaN where a prompt lacks it.

        Args:
            name: a response type, or "argmax", the paper's y*: ``argmax_logp`` along ``chosen``.
            stat: which statistic, also ``jacobian_norm_sq`` and ``residual_norm_sq``.
            split: "train" or "test" for these prompts alone.
        """
        found = self.column(name, stat)
        if split is not None:
            check_known("split of these prompts", split, sorted({*self.split.tolist()} - {""}))
        return found if split is None else found[..., self.split == split]

    def mean(self, name: str | None = None, stat: str = "logp", split: str | None = None):
        """(S,), the mean of `values`; without a name a dict, the types that a prompt has → (S,).

        It begins as that of all prompts, and changes as that of those `complete` keeps. For
        ``logp`` the dict also has "argmax", if there is ``chosen``.
        """
        if name is not None:
            curve = known_mean(self.complete().values(name, stat, split))
            return curve + (known_mean(self.values(name, stat, split)[:1]) - curve[:1])
        argmax = ["argmax"] if stat == "logp" and "chosen" in self.types else []
        found = {key: self.mean(key, stat, split) for key in (*self.types, *argmax)}
        return {key: curve for key, curve in found.items() if not np.isnan(curve).all()}

    def complete(self) -> "Trajectory":
        """Without the prompts that a probing left out for its budget, if others were always in."""
        kept = ~np.isnan(self.logp).all(2).any(0)  # (N,)
        if kept.all() or not kept.any():
            return self
        rows = {name: getattr(self, name)[kept] for name in ("n_tokens", "split")}
        return replace(self, **rows, **{name: getattr(self, name)[:, kept] for name in STATS})

    def summary(self, split: str | None = None) -> str:
        """A table of the mean log-prob of each type: first, last, and its `turn` between."""
        if not self.logp.size:
            return f"{self.updates} updates, no probes"
        means, seen, runs = self.mean(split=split), self.examples_seen, (self, self.complete())
        n, few = (run.values(self.types[0], split=split).shape[1] for run in runs)
        told = f"{n} prompts" + (f", their change that of {few}," if few < n else "")
        absent = ", ".join(name for name in self.types if name not in means)
        told = f"mean log-prob (nats) of {told} after {seen[0]} → {seen[-1]} examples"
        lines = [told + f"; none has {absent}" * bool(absent)]
        lines.append(f"{'type':<20}{'first':>10}{'last':>10}{'change':>10}   turn")
        for name, curve in means.items():
            (first, last), turn = curve[[0, -1]], self.turn(curve)
            lines.append(f"{name:<20}{first:>10.2f}{last:>10.2f}{last - first:>+10.2f}   {turn}")
        return "\n".join(map(str.rstrip, lines))

    def turn(self, curve: np.ndarray) -> str:
        """Where a curve (S,) peaks above both its ends, or has a trough below both; else ""."""
        rise, fall = curve.max() - max(curve[[0, -1]]), min(curve[[0, -1]]) - curve.min()
        word, at = ("peak", curve.argmax()) if rise >= fall else ("trough", curve.argmin())
        return f"{word} {curve[at]:.2f} at {self.examples_seen[at]}" if max(rise, fall) > 0 else ""

    def save(self, path: str | Path) -> None:
        """Write NAME.npz, the arrays, and NAME.json, ``meta``, each whole or not at all.

        ``path`` is NAME, with or without ".npz". The same arrays give the same bytes.
        """
        npz, meta = _names(path)
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        arrays |= {f"log_{name}": values for name, values in self.log.items()}
        with replacing(npz) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)
        write_json(meta, self.meta)

    @classmethod
    def load(cls, path: str | Path) -> "Trajectory":
        """Read what `save` wrote; ValueError for other files."""
        npz, meta = _names(path)
        try:
            with npz.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                arrays = {name: file[name] for name in _ARRAYS}
                log = {name[4:]: file[name] for name in file if name.startswith("log_")}
            told = dict(json.loads(meta.read_text(encoding="utf-8")))
        except DAMAGED as error:
            raise ValueError(f"{npz} or {meta.name} cannot be read: {error!r:.200}") from None
        plain = {"types": tuple(arrays["types"].tolist()), "vocab_size": int(arrays["vocab_size"])}
        return cls(**arrays | plain, log=log, meta=told)

    @classmethod
    def join(cls, parts: Sequence["Trajectory"]) -> "Trajectory":
        """Runs that went on one from the other, of the same probes, as one trajectory.

        The first probing of each later part, which repeats the last one before, is left out; what
        a part has not logged is NaN there. ``meta`` is the first part's, with "joined", the updates
        at which a later part began. ValueError for a part that does not begin where the last ended.
        """
        if not parts:
            raise ValueError("there is nothing to join: pass at least one trajectory")
        whole = parts[0]
        for i, part in enumerate(parts[1:], 1):
            ends = whole.logp[-1:], part.logp[:1]  # not bit for bit: some devices sum in any order
            same = np.array_equal(whole.n_tokens, part.n_tokens, equal_nan=True)
            same &= whole.types == part.types
            if not (same and np.allclose(*ends, rtol=0, atol=1e-2, equal_nan=True)):
                told = f"parts[{i}] does not go on from parts[{i - 1}]: the log-probs of its first"
                raise ValueError(f"{told} probing differ from the last ones before")
            later = {name: getattr(part, name)[1:] for name in _OVER_TIME}
            ended = max(whole.updates, *whole.steps[-1:].tolist())  # a callback logs no updates
            later["steps"] = later["steps"] + ended
            later["examples_seen"] = later["examples_seen"] + whole.examples_seen[-1:]
            arrays = {name: np.append(getattr(whole, name), x, 0) for name, x in later.items()}
            meta = {"seconds": sum(run.meta.get("seconds", 0.0) for run in (whole, part))}
            meta["joined"] = [*whole.meta.get("joined", []), ended]
            a, b = (np.full(run.updates, np.nan, np.float32) for run in (whole, part))
            logs = [(k, whole.log.get(k, a), part.log.get(k, b)) for k in whole.log | part.log]
            log = {name: np.append(*both) for name, *both in logs}
            whole = replace(whole, log=log, meta=whole.meta | meta, **arrays)
        return whole


def _names(path: str | Path) -> tuple[Path, Path]:
    name = str(path).removesuffix(".npz")
    return Path(f"{name}.npz"), Path(f"{name}.json")


class Recorder:
    """Scores probes while a model trains, if there are any, and collects a `Trajectory`."""

    def __init__(self, probes: ProbeSet | None = None):
        rows, types = ((), ()) if probes is None else (probes.rows, probes.types)
        nothing = np.zeros((0, len(rows), len(types)), np.float32)
        self.probes, self._log = probes, {}
        self._done = Trajectory(
            types=types,
            vocab_size=0,
            n_tokens=np.full_like(nothing, np.nan, shape=nothing.shape[1:]),
            split=np.array([row.get("split", "") for row in rows], dtype="U5"),
            **dict.fromkeys(("steps", "examples_seen"), np.zeros(0, int)),
            **dict.fromkeys(STATS, nothing),
        )

    def probe(
        self, model, tokenizer, step: int, examples: int, share: bool = True, rows=None
    ) -> dict[str, np.ndarray]:
        """Score the probes after ``step`` updates on ``examples`` rows; ``share`` as in `together`.

        All of them, as it must be the first time, or those of these numbers, with NaN for the rest.

        Returns, (N,) over the tokens of each ``rejected``, "top", the mean probability of the
        likeliest token, and "valley", the share with π_y < ‖π‖², among others.
        """

        def work(some: np.ndarray) -> dict[str, np.ndarray]:
            given = model, tokenizer, self.probes[some.tolist()]
            scores = as_forward(model, score, *given, per_token=True, progress=False)
            pushed = [row.get("rejected") for row in scores.tokens]
            top = [np.exp(t.argmax_logp).mean() if t else np.nan for t in pushed]
            valley = [(t.prob_sq > t.label_prob).mean() if t else np.nan for t in pushed]
            found = {name: getattr(scores, name) for name in (*STATS, "n_tokens")}
            found["V"] = np.full(len(some), float(scores.vocab_size))
            return found | {"top": np.array(top), "valley": np.array(valley)}

        has = np.array([not row.keys().isdisjoint(self.probes.types) for row in self.probes])
        rows = np.flatnonzero(has) if rows is None else rows[has[rows]]
        found = together(model, rows, work, len(self.probes), share)
        new = found | {"steps": step, "examples_seen": examples}
        old = {name: getattr(self._done, name) for name in _OVER_TIME}
        self._done = replace(
            self._done,
            vocab_size=int(np.nanmax(found["V"])),
            n_tokens=self._done.n_tokens if len(old["steps"]) else np.float32(found["n_tokens"]),
            **{name: np.append(x, [new[name]], 0).astype(x.dtype) for name, x in old.items()},
        )
        return found

    def probed(self, step: int) -> bool:
        """Whether nothing is left to score after ``step`` updates."""
        return self.probes is None or step in self._done.steps

    def update(self, **values: float) -> None:
        """Add the log of one update."""
        for name, value in values.items():
            self._log.setdefault(name, []).append(np.float32(value))

    def restore(self, trajectory: Trajectory, step: int) -> None:
        """Go on from the first ``step`` updates of a trajectory."""
        moments = {k: getattr(trajectory, k)[trajectory.steps <= step] for k in _OVER_TIME}
        self._done = replace(trajectory, **moments)
        self._log = {name: [*values[:step]] for name, values in trajectory.log.items()}

    def trajectory(self, meta: dict) -> Trajectory:
        return replace(self._done, log={k: np.array(v) for k, v in self._log.items()}, meta=meta)
