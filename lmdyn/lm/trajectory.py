"""What a run recorded: the statistics of every probe on the way, and a log of the updates."""

import json
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from lmdyn.checks import check_known, unknown
from lmdyn.lm.records import replacing, write_json
from lmdyn.lm.score import STATS

_ARRAYS = ("steps", "examples_seen", "types", "split", "vocab_size", "n_tokens", *STATS)


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The learning dynamics of one run: N prompts with R response types, scored S times.

    Its statistics are those of `Scores`, (S, N, R) each, NaN where a row lacks a type, and float32
    in memory as in the file: saved and loaded, it is the same to the last bit.

    Attributes:
        steps: (S,) updates made before each probing; the first is 0, before training.
        examples_seen: (S,) rows learned by then, repetitions counted.
        types: the R response types.
        vocab_size: V, the entries of π; 0 where nothing is probed.
        n_tokens: (N, R) tokens of each response, EOS included.
        split: (N,) "train" or "test" for each prompt, "" where the data do not tell.
        log: what each of U updates logged, name → (U,): the means over its rows of ``loss`` and
            of ``logp_<type>``, nats, for each response that the loss reads; ``lr``; ``grad_norm``,
            before clipping.
        meta: the settings of the run, seed, versions, hardware, date and command.
    """

    steps: np.ndarray
    examples_seen: np.ndarray
    types: tuple[str, ...]
    logp: np.ndarray
    argmax_logp: np.ndarray
    prob_sq: np.ndarray
    label_prob: np.ndarray
    entropy: np.ndarray
    squeeze: np.ndarray
    prob_norm: np.ndarray
    residual_norm: np.ndarray
    vocab_size: int
    n_tokens: np.ndarray
    split: np.ndarray
    log: dict[str, np.ndarray] = field(default_factory=dict)
    meta: dict = field(default_factory=dict)

    def __repr__(self) -> str:
        s, n, r = self.logp.shape
        return f"Trajectory({s} probings of {n} prompts × {r} types, {self.updates} updates)"

    @property
    def jacobian_norm_sq(self) -> np.ndarray:
        """(S, N, R) as in `Scores`, float64."""
        return self.vocab_size * (self.prob_sq.astype(np.float64) + 1) - 2

    @property
    def residual_norm_sq(self) -> np.ndarray:
        """(S, N, R) as in `Scores`, float64."""
        return self.prob_sq.astype(np.float64) - 2 * self.label_prob + 1

    @property
    def updates(self) -> int:
        """U, the updates that were made."""
        return len(next(iter(self.log.values()), ()))

    def values(self, name: str, stat: str = "logp", split: str | None = None) -> np.ndarray:
        """A statistic of one response type, prompt by prompt.

        Args:
            name: a response type, or "argmax", the paper's y*: ``argmax_logp`` along ``chosen``.
            stat: which statistic, also ``jacobian_norm_sq`` and ``residual_norm_sq``.
            split: take the prompts of "train" or "test" alone.

        Returns:
            (S, N); NaN where a prompt lacks the type.
        """
        known = (*STATS, "jacobian_norm_sq", "residual_norm_sq")
        check_known("statistic", stat, known)
        check_known("response type", name, self._known(stat))
        if name == "argmax" and name not in self.types:
            name, stat = "chosen", "argmax_logp"
        return getattr(self, stat)[:, self._rows(split), self.types.index(name)]

    def mean(self, name: str | None = None, stat: str = "logp", split: str | None = None):
        """The mean of `values` over the prompts that have the type.

        Returns:
            (S,) for one name. Without a name, a dict of all types → (S,), followed, for ``logp``,
            by "argmax" if ``chosen`` is among them.
        """
        if name is None:
            return {key: self.mean(key, stat, split) for key in self._known(stat)}
        values = self.values(name, stat, split)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Mean of empty slice")  # no prompt has it: NaN
            return np.nanmean(values, axis=1, dtype=np.float64)

    def complete(self) -> "Trajectory":
        """Without the prompts that some probing left out, as a budget asks of `ProbeCallback`.

        A mean over other prompts is another mean. All stay if none was probed every time.
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
        prompts = int(self._rows(split).sum())
        if not len(self.steps) or not prompts:
            return f"{self.updates} updates, no probes"
        seen = self.examples_seen
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
        turns = max(rise, fall) > 0
        return f"{word} {curve[at]:.2f} at {self.examples_seen[at]}" if turns else ""

    def save(self, path: str | Path) -> None:
        """Write NAME.npz, the arrays, and NAME.json, ``meta``, each whole or not at all.

        The same arrays give the same bytes. ``path`` is NAME, with or without ".npz".
        """
        npz, meta = _names(path)
        arrays = {name: np.asarray(getattr(self, name)) for name in _ARRAYS}
        arrays |= {f"log_{name}": values for name, values in self.log.items()}
        with replacing(npz) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)
        write_json(meta, self.meta)

    @classmethod
    def load(cls, path: str | Path) -> "Trajectory":
        """Read what `save` wrote; FileNotFoundError if a file is missing, ValueError for others."""
        npz, meta = _names(path)
        for file in (npz, meta):
            if not file.is_file():
                raise FileNotFoundError(f"there is no {file}: a trajectory is NAME.npz + NAME.json")
        try:
            with np.load(npz, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            told = json.loads(meta.read_text(encoding="utf-8"))
        except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            said = str(error).partition("\n")[0] or type(error).__name__
            raise ValueError(f"{npz} or {meta.name} cannot be read ({said})") from None
        missing = [name for name in _ARRAYS if name not in arrays]
        if missing:
            raise ValueError(f"{npz} is no trajectory: it has no {', '.join(missing)}")
        known = ("settings", "versions")
        if not (isinstance(told, dict) and all(isinstance(told.get(k, {}), dict) for k in known)):
            raise ValueError(f"{meta} is no table of settings")
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
        whole, *later = parts
        for i, part in enumerate(later):
            ends = whole.logp[-1:], part.logp[:1]  # not bit for bit: some devices sum in any order
            if not (
                whole.types == part.types
                and np.array_equal(whole.n_tokens, part.n_tokens, equal_nan=True)
                and np.allclose(*ends, rtol=0, atol=1e-2, equal_nan=True)
            ):
                raise ValueError(
                    f"parts[{i + 1}] does not go on from parts[{i}]: the log-probs of its first "
                    "probing differ from the last ones before"
                )
            began, seen = whole.updates, whole.examples_seen
            both = {stat: [getattr(whole, stat), getattr(part, stat)[1:]] for stat in STATS}
            seconds = sum(run.meta.get("seconds", 0.0) for run in (whole, part))
            joined = [*whole.meta.get("joined", []), began]
            whole = replace(
                whole,
                steps=np.append(whole.steps, part.steps[1:] + began),
                examples_seen=np.append(seen, part.examples_seen[1:] + seen[-1:]),
                log={name: np.append(x, part.log[name]) for name, x in whole.log.items()},
                meta={**whole.meta, "seconds": seconds, "joined": joined},
                **{stat: np.concatenate(values) for stat, values in both.items()},
            )
        return whole

    def _known(self, stat: str) -> list[str]:
        argmax = ["argmax"] if stat == "logp" and "chosen" in self.types else []
        return [*self.types, *argmax]

    def _rows(self, split: str | None) -> np.ndarray:
        if split is None:
            return np.ones(len(self.split), dtype=bool)
        if split not in self.split:
            known = [name for name in np.unique(self.split).tolist() if name]
            raise ValueError(unknown("split of these prompts", split, known))
        return self.split == split


def _names(path: str | Path) -> tuple[Path, Path]:
    name = str(path).removesuffix(".npz")
    return Path(f"{name}.npz"), Path(f"{name}.json")
