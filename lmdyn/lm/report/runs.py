"""The runs that a folder holds, whoever trained them, and the verdict on each."""

import json
import re
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import numpy as np

from lmdyn.lm.squeeze import ERRORS, Alert, squeeze
from lmdyn.lm.trajectory import Trajectory

Curve = tuple[np.ndarray, np.ndarray]  # updates, values
PAIR = {"chosen", "rejected"}


@dataclass(frozen=True, eq=False)
class Run:
    """One training."""

    name: str  # of its folder, where there are several
    trajectory: Trajectory  # of the prompts that were probed every time
    left_out: int  # how many were not
    log: dict[str, Curve]  # what the training logged
    settings: dict
    checkpoint: Path | None  # the folder of its last weights
    ended: bool | None  # whether it came to its end; None if its files do not tell


def find_runs(folder: Path) -> list[Run]:
    """The run in a folder, or those in its sub-folders, in order.

    Raises:
        FileNotFoundError: no such folder, or no run in it.
        ValueError: a file of a run that cannot be read.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    parts = sorted((part for part in folder.iterdir() if part.is_dir()), key=_order)
    found = _runs_in(folder) or [run for part in parts for run in _runs_in(part, part.name)]
    if not found:
        raise FileNotFoundError(
            f"no run in {folder}: there is no trajectory.npz, which finetune(out=…) writes there "
            "with its first checkpoint (go on with resume=True), and ProbeCallback to lmdyn in "
            "the trainer's output_dir"
        )
    return found


def _runs_in(folder: Path, name: str = "") -> list[Run]:
    rounds = sorted((file.parent for file in folder.glob("round-*/trajectory.npz")), key=_order)
    for place in (folder, folder / "lmdyn"):
        if any((place / f"trajectory.{kind}").exists() for kind in ("npz", "json")):
            home = place.resolve().parent if place.resolve().name == "lmdyn" else place
            whole = Trajectory.load(place / "trajectory")
            return [_run(name, whole, rounds[-1] if rounds else home)]
    parts = [Trajectory.load(part / "trajectory") for part in rounds]
    try:
        return [_run(name, Trajectory.join(parts), rounds[-1])] if parts else []
    except ValueError:  # rounds of other probes: each is a run of its own
        names = [f"{name} {part.name}".strip() for part in rounds]
        return [_run(*of) for of in zip(names, parts, rounds, strict=True)]


def _run(name: str, trajectory: Trajectory, home: Path) -> Run:
    saved = [p for p in home.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)]
    checkpoint = max(saved, key=_order, default=None)
    settings, ended = trajectory.meta.get("settings"), None
    log = {key: (np.arange(len(y)), y) for key, y in trajectory.log.items() if len(y)}
    if log and checkpoint:  # finetune's last one is without the optimizer's state
        ended = not any(checkpoint.glob("optimizer*"))
    if not log and settings is None:
        log, settings = _of_trainer(home)
    whole = trajectory.complete()
    left_out = len(trajectory.split) - len(whole.split)
    return Run(name, whole, left_out, log, settings or {}, checkpoint, ended)


def _of_trainer(home: Path) -> tuple[dict[str, Curve], dict]:
    """The longest log of a `transformers.Trainer`, and what it says of itself."""
    states = [{}]
    for file in (*home.glob("trainer_state.json"), *home.glob("checkpoint-*/trainer_state.json")):
        try:
            states.append(dict(json.loads(file.read_text(encoding="utf-8"))))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{file} cannot be read ({error})") from None
    state = max(states, key=lambda state: state.get("global_step", 0))
    log: dict[str, list] = {}
    for entry in state.get("log_history", []):
        for key, value in entry.items():
            if key not in ("step", "epoch") and isinstance(value, int | float):
                log.setdefault(key, []).append((entry["step"], value))
    names = ("global_step", "max_steps", "epoch", "num_train_epochs", "train_batch_size")
    settings = {name: state[name] for name in names if name in state}
    return {key: tuple(np.array(points).T) for key, points in log.items()}, settings


def _order(path: Path) -> tuple[list[int], str]:
    """Numbers in names count as numbers."""
    return [int(digits) for digits in re.findall(r"\d+", path.name)], path.name


def judge(trajectory: Trajectory) -> dict:
    """The verdict on a run, by its probings.

    Returns:
        ``kind``: "squeeze" at the end, "past" if there was one before, "fall" if the chosen
        responses fell without one, "none"; or what it lacks: "probes", "types", "probings",
        "prompts". ``alerts``: of the squeeze, probing by probing. ``held_out``: whether it shows
        on held-out prompts alone. ``moved``: split, None for all → type → (N,) nats in all.
    """
    splits = (None, "train", "test") if {"train", "test"} <= set(trajectory.split) else (None,)
    moved = {split: _moved(trajectory, split) for split in splits}
    alerts = _alerts(trajectory)
    held_out = not any(alerts) and "test" in trajectory.split
    if held_out:
        alerts = _alerts(trajectory, "test")
    lasting = [*takewhile(bool, reversed(alerts))][::-1]
    seen = lasting or [alert for alert in alerts if alert]
    kind = "squeeze" if lasting else "past" if seen else _unalarmed(trajectory, moved[None])
    return {"kind": kind, "alerts": seen, "held_out": held_out, "moved": moved}


def is_noise(change: np.ndarray) -> bool:
    """Whether a mean change is no further from zero than the rule of a squeeze asks."""
    error = change.std(ddof=1) / len(change) ** 0.5 if len(change) > 1 else 0.0
    return bool(abs(change.mean()) <= ERRORS * error)


def _alerts(trajectory: Trajectory, split: str | None = None) -> list[Alert | None]:
    """What the rule says of each probing from the second on."""
    if not PAIR <= set(trajectory.types):
        return []
    curves = [trajectory.values(name, split=split) for name in ("chosen", "rejected")]
    curves = [trajectory.steps, *curves, trajectory.values("chosen", "argmax_logp", split)]
    return [squeeze(*(y[: s + 1] for y in curves)) for s in range(1, len(trajectory.steps))]


def _unalarmed(trajectory: Trajectory, moved: dict[str, np.ndarray]) -> str:
    if not len(trajectory.steps):
        return "probes"
    if not PAIR <= set(trajectory.types):
        return "types"
    if len(trajectory.steps) < 2:
        return "probings"
    both = trajectory.values("chosen") + trajectory.values("rejected")
    if (~np.isnan(both)).all(0).sum() < 2:
        return "prompts"
    fell = moved["chosen"].mean() < 0 and not is_noise(moved["chosen"])
    return "fall" if fell else "none"


def _moved(trajectory: Trajectory, split: str | None) -> dict[str, np.ndarray]:
    """How far each prompt that has a type came, of the types that some prompt has."""
    if len(trajectory.steps) < 2:
        return {}
    values = {name: trajectory.values(name, split=split) for name in trajectory.mean()}
    moved = {name: (y[-1] - y[0]).astype(np.float64) for name, y in values.items()}
    return {name: d[~np.isnan(d)] for name, d in moved.items() if not np.isnan(d).all()}
