"""What a run recorded: the statistics of every probe on the way, and a log of the updates."""

import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from lmdyn.checks import check_known
from lmdyn.lm.data import ProbeSet
from lmdyn.lm.processes import as_forward, together
from lmdyn.lm.records import replacing, write_json
from lmdyn.lm.score import STATS, Statistics, known_mean, score

_OVER_TIME = ("steps", "examples_seen", *STATS)
_FIXED = ("types", "split", "vocab_size", "n_tokens")
_ARRAYS = (*_OVER_TIME, *_FIXED)


@dataclass(frozen=True, eq=False, kw_only=True)
class Trajectory(Statistics):
    """The learning dynamics of one run: N prompts with R response types, scored S times.

    Its statistics are those of `Scores`, (S, N, R) each, NaN where a row lacks a type, and float32
    in memory as in the file: saved and loaded, it is the same to the last bit.

    Attributes:
        types, vocab_size, n_tokens: as in `Scores`.
        split: (N,) "train" or "test" for each prompt, "" where the data do not tell.
        steps: (S,) updates made before each probing; the first is 0, before training.
        examples_seen: (S,) rows learned by then, repetitions counted.
        log: what each of U updates logged, name → (U,): the means over its rows of ``loss`` and
            of ``logp_<type>``, nats, for each response that the loss reads; ``lr``; ``grad_norm``,
            before clipping.
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
        """U, the updates that were made."""
        return len(next(iter(self.log.values()), ()))

    def values(self, name: str, stat: str = "logp", split: str | None = None) -> np.ndarray:
        """(S, N), a statistic of one response type; NaN where a prompt lacks the type.

        Args:
            name: a response type, or "argmax", the paper's y*: ``argmax_logp`` along ``chosen``.
            stat: which statistic, also ``jacobian_norm_sq`` and ``residual_norm_sq``.
            split: take the prompts of "train" or "test" alone.
        """
        return self.column(name, stat)[..., self._rows(split)]

    def mean(self, name: str | None = None, stat: str = "logp", split: str | None = None):
        """(S,), the mean of `values` over the prompts that have the type.

        Without a name, a dict of all types → (S,), followed, for ``logp``, by "argmax" if
        ``chosen`` is among them.
        """
        if name is not None:
            return known_mean(self.values(name, stat, split))
        argmax = ["argmax"] if stat == "logp" and "chosen" in self.types else []
        return {key: self.mean(key, stat, split) for key in (*self.types, *argmax)}

    def complete(self) -> "Trajectory":
        """Without the prompts that a probing left out for its budget, if some were probed always.

        A mean over other prompts is another mean.
        """
        kept = ~np.isnan(self.logp).all(2).any(0)  # (N,)
        if kept.all() or not kept.any():
            return self
        rows = {name: getattr(self, name)[kept] for name in ("n_tokens", "split")}
        return replace(self, **rows, **{name: getattr(self, name)[:, kept] for name in STATS})

    def summary(self, split: str | None = None) -> str:
        """A table of the mean log-prob of each type: first, last, and its turn between.

        A turn is a peak above both ends, or a trough below both; the larger one if there are two.
        """
        if not self.logp.size:
            return f"{self.updates} updates, no probes"
        prompts, seen = int(self._rows(split).sum()), self.examples_seen
        lines = [
            f"mean log-prob (nats) of {prompts} prompts after {seen[0]} → {seen[-1]} examples",
            f"{'type':<20}{'first':>10}{'last':>10}{'change':>10}   turn",
        ]
        for name, curve in self.mean(split=split).items():
            first, last = curve[0], curve[-1]
            line = f"{name:<20}{first:>10.2f}{last:>10.2f}{last - first:>+10.2f}   "
            lines.append((line + self.turn(curve)).rstrip())
        return "\n".join(lines)

    def turn(self, curve: np.ndarray) -> str:
        """Where a curve (S,) peaks above both its ends, or has a trough below both; else ""."""
        rise, fall = curve.max() - max(curve[[0, -1]]), min(curve[[0, -1]]) - curve.min()
        word, at = ("peak", curve.argmax()) if rise >= fall else ("trough", curve.argmin())
        told = f"{word} {curve[at]:.2f} at {self.examples_seen[at]}"
        return told if max(rise, fall) > 0 else ""

    def save(self, path: str | Path) -> None:
        """Write NAME.npz, the arrays, and NAME.json, ``meta``, each whole or not at all.

        The same arrays give the same bytes. ``path`` is NAME, with or without ".npz".
        """
        npz, meta = _names(path)
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        arrays |= {f"log_{name}": values for name, values in self.log.items()}
        with replacing(npz) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)
        write_json(meta, self.meta)

    @classmethod
    def load(cls, path: str | Path) -> "Trajectory":
        """Read what `save` wrote; FileNotFoundError if a file is missing, ValueError for others."""
        npz, meta = _names(path)
        try:
            with np.load(npz, allow_pickle=False) as file:
                arrays = dict(file)
            told = dict(json.loads(meta.read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            where = f"there is no {error.filename}: a trajectory is NAME.npz + NAME.json"
            raise FileNotFoundError(where) from None
        except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            said = str(error).partition("\n")[0] or type(error).__name__
            raise ValueError(f"{npz} or {meta.name} cannot be read ({said})") from None
        if missing := [name for name in _ARRAYS if name not in arrays]:
            raise ValueError(f"{npz} is no trajectory: it has no {', '.join(missing)}")
        log = {name[4:]: values for name, values in arrays.items() if name.startswith("log_")}
        arrays = {name: arrays[name] for name in _ARRAYS}
        arrays["types"] = tuple(arrays["types"].tolist())
        arrays["vocab_size"] = int(arrays["vocab_size"])
        return cls(**arrays, log=log, meta=told)

    @classmethod
    def join(cls, parts: Sequence["Trajectory"]) -> "Trajectory":
        """Runs that went on one from the other, of the same probes, as one trajectory.

        The first probing of each later part, which repeats the last one before, is left out.
        ``meta`` is the first part's, with "joined", the updates at which a later part began.
        ValueError for no part, other probes, or one that does not begin where the last one ended.
        """
        if not parts:
            raise ValueError("there is nothing to join: pass at least one trajectory")
        whole = parts[0]
        for i, part in enumerate(parts[1:], 1):
            ends = whole.logp[-1:], part.logp[:1]  # not bit for bit: some devices sum in any order
            if not (
                whole.types == part.types
                and np.array_equal(whole.n_tokens, part.n_tokens, equal_nan=True)
                and np.allclose(*ends, rtol=0, atol=1e-2, equal_nan=True)
            ):
                raise ValueError(
                    f"parts[{i}] does not go on from parts[{i - 1}]: the log-probs of its first "
                    "probing differ from the last ones before"
                )
            began, later = whole.updates, {name: getattr(part, name)[1:] for name in _OVER_TIME}
            later["steps"] = later["steps"] + began
            later["examples_seen"] = later["examples_seen"] + whole.examples_seen[-1:]
            meta = {"seconds": sum(run.meta.get("seconds", 0.0) for run in (whole, part))}
            meta["joined"] = [*whole.meta.get("joined", []), began]
            whole = replace(
                whole,
                log={name: np.append(x, part.log[name]) for name, x in whole.log.items()},
                meta=whole.meta | meta,
                **{name: np.concatenate([getattr(whole, name), x]) for name, x in later.items()},
            )
        return whole

    def _rows(self, split: str | None) -> np.ndarray:
        if split is None:
            return np.ones(len(self.split), dtype=bool)
        check_known("split of these prompts", split, sorted({*self.split.tolist()} - {""}))
        return self.split == split


def _names(path: str | Path) -> tuple[Path, Path]:
    name = str(path).removesuffix(".npz")
    return Path(f"{name}.npz"), Path(f"{name}.json")


class Recorder:
    """Scores probes while a model trains, if there are any, and collects a `Trajectory`."""

    def __init__(self, probes: ProbeSet | None = None):
        rows, types = ((), ()) if probes is None else (probes.rows, probes.types)
        self.probes, self._log = probes, {}
        self._over_time = {name: [] for name in _OVER_TIME}
        self._fixed = {
            "types": types,
            "split": np.array([row.get("split", "") for row in rows], dtype="U5"),
            "vocab_size": 0,
            "n_tokens": np.full((len(rows), len(types)), np.nan, np.float32),
        }

    def probe(
        self, model, tokenizer, step: int, examples: int, rows=None, share: bool = True
    ) -> dict[str, np.ndarray]:
        """Score the probes after ``step`` updates on ``examples`` rows, and keep what is found.

        All of them, as it must be the first time, or those of these numbers, with NaN for the
        others. ``share`` as in `together`. Returns, (N,) over the tokens of each ``rejected``,
        "top", the mean probability of the likeliest token, and "valley", the share with π_y < ‖π‖².
        """

        def work(some: np.ndarray) -> dict[str, np.ndarray]:
            probes, options = self.probes[some.tolist()], {"per_token": True, "progress": False}
            scores = as_forward(model, score, model, tokenizer, probes, **options)
            pushed = [row.get("rejected") for row in scores.tokens]
            top = [np.exp(t.argmax_logp).mean() if t else np.nan for t in pushed]
            valley = [(t.prob_sq > t.label_prob).mean() if t else np.nan for t in pushed]
            found = {name: getattr(scores, name) for name in (*STATS, "n_tokens")}
            found["V"] = np.full(len(some), float(scores.vocab_size))
            return found | {"top": np.array(top), "valley": np.array(valley)}

        rows = np.arange(len(self.probes)) if rows is None else rows
        found = together(model, rows, work, len(self.probes), share)
        if not self._over_time["steps"]:
            self._fixed["vocab_size"] = int(np.nanmax(found["V"]))
            self._fixed["n_tokens"] = np.float32(found["n_tokens"])
        moment = {"steps": step, "examples_seen": examples}
        for name, values in self._over_time.items():
            values.append(moment[name] if name in moment else np.float32(found[name]))
        return {name: found[name] for name in ("top", "valley")}

    def probed(self, step: int) -> bool:
        """Whether nothing is left to score after ``step`` updates."""
        return self.probes is None or step in self._over_time["steps"]

    def update(self, **values: float) -> None:
        """Add the log of one update."""
        for name, value in values.items():
            self._log.setdefault(name, []).append(np.float32(value))

    def restore(self, trajectory: Trajectory, step: int) -> None:
        """Go on from the first ``step`` updates of what was recorded before."""
        kept = trajectory.steps <= step
        self._over_time = {name: [*getattr(trajectory, name)[kept]] for name in _OVER_TIME}
        self._fixed = {name: getattr(trajectory, name) for name in _FIXED}
        self._log = {name: [*values[:step]] for name, values in trajectory.log.items()}

    def trajectory(self, meta: dict) -> Trajectory:
        """Everything so far."""
        times = {name: np.array(self._over_time[name], int) for name in ("steps", "examples_seen")}
        shape = (len(times["steps"]), *self._fixed["n_tokens"].shape)
        stats = {s: np.array(self._over_time[s], np.float32).reshape(shape) for s in STATS}
        log = {name: np.array(values) for name, values in self._log.items()}
        return Trajectory(**self._fixed, **times, **stats, log=log, meta=meta)
