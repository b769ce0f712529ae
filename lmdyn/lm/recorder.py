"""Probes scored while a model trains: what `finetune` and `ProbeCallback` both record with."""

from collections.abc import Mapping

import numpy as np

from lmdyn.lm.processes import as_forward, of_all, together
from lmdyn.lm.score import STATS, Scores, score
from lmdyn.lm.trajectory import Trajectory


class Recorder:
    """Scores probes on the way, and collects what becomes a `Trajectory`.

    Args:
        probes: a `ProbeSet`, or None if nothing is probed.
    """

    def __init__(self, probes=None):
        rows = () if probes is None else probes.rows
        self.probes, self.types = probes, () if probes is None else probes.types
        self.split = np.array([row.get("split", "") for row in rows], dtype="U5")
        self.vocab_size = 0
        self.n_tokens = np.full((len(rows), len(self.types)), np.nan, dtype=np.float32)
        self.moments: list[tuple[int, int, dict[str, np.ndarray]]] = []
        self.log: dict[str, list[np.float32]] = {}

    def probe(
        self, model, tokenizer, step: int, examples: int, rows=None, rank: int = 0, n: int = 1
    ) -> dict[str, np.ndarray]:
        """Score the probes after ``step`` updates on ``examples`` rows, and keep what is found.

        Args:
            rows: the numbers of the prompts to score, NaN for the others; all if not given.
            rank: this process's number among those that share the prompts out.
            n: how many those are.

        Returns:
            Of the tokens of each ``rejected``, (N,): "top", the mean probability of the likeliest
            token; "valley", the share with π_y < ‖π‖². NaN where there is none.
        """
        rows = np.arange(len(self.probes)) if rows is None else rows
        vocab_size = self.vocab_size

        def work(some: np.ndarray) -> dict[str, np.ndarray]:
            nonlocal vocab_size
            probes, options = self.probes[some.tolist()], {"per_token": True, "progress": False}
            scores = as_forward(model, score, model, tokenizer, probes, **options)
            vocab_size = scores.vocab_size
            return {name: getattr(scores, name) for name in (*STATS, "n_tokens")} | _pushed(scores)

        found = together(rows, work, len(self.probes), rank, n)
        self.record(step, examples, found, max(of_all(vocab_size)))
        return {name: found[name] for name in ("top", "valley")}

    def record(self, step: int, examples: int, found: Mapping, vocab_size: int) -> None:
        """Keep what a probing found, the statistics of `Scores`; the first one has all prompts."""
        if not self.moments:
            self.n_tokens = np.asarray(found["n_tokens"], dtype=np.float32)
        self.vocab_size = vocab_size
        stats = {stat: np.asarray(found[stat], dtype=np.float32) for stat in STATS}
        self.moments.append((step, examples, stats))

    def probed(self, step: int) -> bool:
        """Whether nothing is left to score after ``step`` updates."""
        return self.probes is None or any(step == moment[0] for moment in self.moments)

    def update(self, **values: float) -> None:
        """Add the log of one update."""
        for name, value in values.items():
            self.log.setdefault(name, []).append(np.float32(value))

    def restore(self, trajectory: Trajectory, step: int) -> None:
        """Go on from the first ``step`` updates of what was recorded before."""
        self.vocab_size, self.n_tokens = trajectory.vocab_size, trajectory.n_tokens
        self.moments = [
            (int(s), int(e), {stat: getattr(trajectory, stat)[i] for stat in STATS})
            for i, (s, e) in enumerate(zip(trajectory.steps, trajectory.examples_seen, strict=True))
            if s <= step
        ]
        self.log = {name: list(values[:step]) for name, values in trajectory.log.items()}

    def trajectory(self, meta: dict) -> Trajectory:
        """Everything so far."""
        shape = (len(self.moments), *self.n_tokens.shape)
        stats = {
            stat: np.array([m[2][stat] for m in self.moments], dtype=np.float32).reshape(shape)
            for stat in STATS
        }
        return Trajectory(
            steps=np.array([m[0] for m in self.moments], dtype=np.int64),
            examples_seen=np.array([m[1] for m in self.moments], dtype=np.int64),
            types=self.types,
            vocab_size=self.vocab_size,
            n_tokens=self.n_tokens,
            split=self.split,
            log={name: np.array(values, dtype=np.float32) for name, values in self.log.items()},
            meta=meta,
            **stats,
        )


def _pushed(scores: Scores) -> dict[str, np.ndarray]:
    """What `Recorder.probe` returns, for the rows that were scored."""
    tokens = [row.get("rejected") for row in scores.tokens]
    top = [np.exp(t.argmax_logp).mean() if t else np.nan for t in tokens]
    valley = [(t.prob_sq > t.label_prob).mean() if t else np.nan for t in tokens]
    return {"top": np.array(top), "valley": np.array(valley)}
