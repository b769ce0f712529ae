"""The runs that a folder holds, whoever trained them, and the verdict on each."""

import json
import re
from itertools import product, takewhile
from pathlib import Path

import numpy as np

from lmdyn.lm.squeeze import ERRORS, squeeze
from lmdyn.lm.trajectory import Trajectory


def find_runs(folder: Path, depth: int = 2) -> list[tuple[Path, Trajectory, Path]]:
    """The run in a folder, or those in its sub-folders, in order: where, record, last folder."""
    rounds = sorted((file.parent for file in folder.glob("round-*/trajectory.npz")), key=in_order)
    for place in (folder, folder / "lmdyn"):
        if (place / "trajectory.npz").is_file():
            home = place.resolve().parent if place.resolve().name == "lmdyn" else place
            return [(folder, Trajectory.load(place / "trajectory"), [home, *rounds][-1])]
    parts = [Trajectory.load(part / "trajectory") for part in rounds]
    try:
        return [(folder, Trajectory.join(parts), rounds[-1])]
    except ValueError:  # no rounds, or rounds of other probes: each is a run of its own
        inner = sorted(folder.glob("*/"), key=in_order) if depth else []
        return [run for part in inner for run in find_runs(part, depth - 1)]


def in_order(path: Path) -> tuple[list[int], str]:
    """A key to sort by: numbers in names count as numbers."""
    return [int(digits) for digits in re.findall(r"\d+", path.name)], path.name


def logged(trajectory: Trajectory, home: Path) -> tuple[dict, dict]:
    """What a training logged, name → (updates, values), and its settings."""
    log = {key: (np.arange(len(y)), y) for key, y in trajectory.log.items() if len(y)}
    settings, state, points = trajectory.meta.get("settings"), {}, {}
    if log or settings is not None:
        return log, settings or {}
    for file in (*home.glob("trainer_state.json"), *home.glob("checkpoint-*/trainer_state.json")):
        try:  # of a `transformers.Trainer`
            found = dict(json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{file} cannot be read ({error})") from None
        state = max(state, found, key=lambda state: state.get("global_step", 0))
    for entry in state.get("log_history", []):
        for key, value in entry.items():
            if key not in ("step", "epoch") and isinstance(value, int | float):
                points.setdefault(key, []).append((entry["step"], value))
    names = ("global_step", "max_steps", "epoch", "num_train_epochs", "train_batch_size")
    settings = {name: state[name] for name in names if name in state}
    return {key: tuple(np.array(of).T) for key, of in points.items()}, settings


def judge(trajectory: Trajectory) -> dict:
    """The verdict on a run, by its probings.

    Returns:
        ``kind``: "squeeze" at the end, "past" if there was one before, "fall" if the chosen
        responses fell without one, "none", or "unknown" where something lacks; its ``alerts``;
        ``held_out``, if it shows on held-out prompts alone; ``moved``: split, None for all → type
        → (N,) nats from first to last.
    """
    n, told = len(trajectory.steps), {"train", "test"} <= set(trajectory.split)
    moved = {split: {} for split in ((None, "train", "test") if told else (None,))}
    for split, name in product(moved, trajectory.mean() if n > 1 else ()):
        values = trajectory.values(name, split=split)
        change = (values[-1] - values[0]).astype(np.float64)
        if not np.isnan(change).all():
            moved[split][name] = change[~np.isnan(change)]
    verdict = {"kind": "unknown", "alerts": [], "held_out": False, "moved": moved}
    if n < 2 or not {"chosen", "rejected"} <= set(trajectory.types):
        return verdict
    stats = (("chosen", "logp"), ("rejected", "logp"), ("chosen", "argmax_logp"))
    for split in list(moved)[::2]:  # all prompts, or else the held-out ones
        curves = [trajectory.steps, *(trajectory.values(*stat, split) for stat in stats)]
        alerts = [squeeze(*(y[:s] for y in curves)) for s in range(1, n + 1)]
        lasting = [*takewhile(bool, reversed(alerts))][::-1]
        if any(alerts):
            seen = {"alerts": lasting or [*filter(None, alerts)], "held_out": split is not None}
            return verdict | seen | {"kind": "squeeze" if lasting else "past"}
    pairs = trajectory.values("chosen") + trajectory.values("rejected")
    if (~np.isnan(pairs)).all(0).sum() < 2:
        return verdict
    chosen = moved[None]["chosen"]
    return verdict | {"kind": "fall" if chosen.mean() < 0 and not is_noise(chosen) else "none"}


def is_noise(change: np.ndarray) -> bool:
    """Whether a mean change is no further from zero than the rule of a squeeze asks."""
    error = np.sqrt(change.var() / max(len(change) - 1, 1))
    return abs(change.mean()) <= ERRORS * error
