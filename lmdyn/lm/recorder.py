"""Probes scored while a model trains: what `finetune` and `ProbeCallback` both record with."""

from dataclasses import replace

import numpy as np

from lmdyn.lm.data import ProbeSet
from lmdyn.lm.processes import as_forward, together
from lmdyn.lm.score import STATS, score
from lmdyn.lm.trajectory import Trajectory


class Recorder:
    """Scores probes on the way, if there are any, and collects what becomes a `Trajectory`."""

    def __init__(self, probes: ProbeSet | None = None):
        rows, types = ((), ()) if probes is None else (probes.rows, probes.types)
        never, empty = np.empty(0, int), np.empty((0, len(rows), len(types)), np.float32)
        self.probes, self.log = probes, {}
        self._probings = Trajectory(
            steps=never,
            examples_seen=never,
            types=types,
            vocab_size=0,
            n_tokens=np.full(empty.shape[1:], np.nan, np.float32),
            split=np.array([row.get("split", "") for row in rows], dtype="U5"),
            **dict.fromkeys(STATS, empty),
        )

    def probe(
        self, model, tokenizer, step: int, examples: int, rows=None, rank: int = 0, n: int = 1
    ) -> dict[str, np.ndarray]:
        """Score the probes after ``step`` updates on ``examples`` rows, and keep what is found.

        All of them, or those of these numbers, with NaN for the others; process ``rank`` of ``n``
        takes its share.

        Returns:
            Of the tokens of each ``rejected``, (N,): "top", the mean probability of the likeliest
            token; "valley", the share with π_y < ‖π‖². NaN where there is none.
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

        rows, before = np.arange(len(self.probes)) if rows is None else rows, self._probings
        found = together(rows, work, len(self.probes), rank, n)
        stats = {stat: [*getattr(before, stat), np.float32(found[stat])] for stat in STATS}
        self._probings = replace(
            before,
            steps=np.append(before.steps, step),
            examples_seen=np.append(before.examples_seen, examples),
            vocab_size=int(np.nanmax(found["V"])),
            # The first probing has all prompts.
            n_tokens=before.n_tokens if len(before.steps) else np.float32(found["n_tokens"]),
            **{stat: np.stack(values) for stat, values in stats.items()},
        )
        return {name: found[name] for name in ("top", "valley")}

    def probed(self, step: int) -> bool:
        """Whether nothing is left to score after ``step`` updates."""
        return self.probes is None or step in self._probings.steps

    def update(self, **values: float) -> None:
        """Add the log of one update."""
        for name, value in values.items():
            self.log.setdefault(name, []).append(np.float32(value))

    def restore(self, trajectory: Trajectory, step: int) -> None:
        """Go on from the first ``step`` updates of what was recorded before."""
        kept, over_time = trajectory.steps <= step, ("steps", "examples_seen", *STATS)
        cut = {name: getattr(trajectory, name)[kept] for name in over_time}
        self._probings = replace(trajectory, **cut)
        self.log = {name: list(values[:step]) for name, values in trajectory.log.items()}

    def trajectory(self, meta: dict) -> Trajectory:
        """Everything so far."""
        log = {name: np.array(values) for name, values in self.log.items()}
        return replace(self._probings, log=log, meta=meta)
