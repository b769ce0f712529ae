"""The runs that a folder holds, whoever trained them."""

import json
import re
import zipfile
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from lmdyn.lm.trajectory import STATS, Trajectory

Curve = tuple[np.ndarray, np.ndarray]  # updates, values


@dataclass(frozen=True, eq=False)
class Run:
    """One training.

    Attributes:
        name: of its folder, where there are several.
        trajectory: its record; of prompts that were probed every time alone.
        left_out: how many prompts were not.
        log: what the training logged, name → (updates, values).
        trainer: what a `transformers.Trainer` says of itself.
        checkpoint: the folder of its last weights.
        ended: whether it came to its end; None if its files do not tell.
    """

    name: str
    trajectory: Trajectory
    left_out: int = 0
    log: dict[str, Curve] = field(default_factory=dict)
    trainer: dict = field(default_factory=dict)
    checkpoint: Path | None = None
    ended: bool | None = None


def find_runs(folder: str | Path) -> list[Run]:
    """The run in a folder, or those in its sub-folders, in order.

    Raises:
        FileNotFoundError: no such folder, or no run in it.
        ValueError: a file of a run that cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    found = _runs_in(folder)
    if found:
        return found
    parts = sorted((p for p in folder.iterdir() if p.is_dir()), key=_order)
    found = [run for part in parts for run in _runs_in(part, part.name)]
    if found:
        return found
    if (folder / "settings.json").is_file():
        raise FileNotFoundError(
            f"{folder} holds a run that has recorded nothing yet: the record comes with its first "
            "checkpoint; go on with it (resume=True)"
        )
    raise FileNotFoundError(
        f"no run in {folder}: there is no trajectory.npz, which finetune(out=…) writes there, and "
        "ProbeCallback to lmdyn in the trainer's output_dir"
    )


def _runs_in(folder: Path, name: str = "") -> list[Run]:
    rounds = sorted((p.parent for p in folder.glob("round-*/trajectory.npz")), key=_order)
    for place in (folder, folder / "lmdyn"):
        if any((place / f"trajectory.{kind}").exists() for kind in ("npz", "json")):
            home = place.resolve().parent if place.resolve().name == "lmdyn" else place
            weights = rounds[-1] if rounds else home
            return [_run(name, _load(place / "trajectory"), weights)]
    parts = [_load(part / "trajectory") for part in rounds]
    try:
        whole = Trajectory.join(parts)
    except ValueError:  # no rounds, or of other probes
        names = [f"{name} {part.name}".strip() for part in rounds]
        return [_run(*of) for of in zip(names, parts, rounds, strict=True)]
    return [_run(name, whole, rounds[-1])]


def _run(name: str, trajectory: Trajectory, home: Path) -> Run:
    whole, left_out = _probed_throughout(trajectory)
    checkpoint = max(
        (p for p in home.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)),
        key=_order,
        default=None,
    )
    log, trainer, ended = {}, {}, None
    if trajectory.updates:
        updates = np.arange(trajectory.updates)
        log = {key: (updates, values) for key, values in trajectory.log.items()}
        # finetune takes the optimizer's state out of the last checkpoint.
        ended = None if checkpoint is None else not (checkpoint / "optimizer.pt").exists()
    elif "settings" not in trajectory.meta:
        log, trainer = _of_trainer([home, checkpoint])
    return Run(name, whole, left_out, log, trainer, checkpoint, ended)


def _probed_throughout(trajectory: Trajectory) -> tuple[Trajectory, int]:
    """Without the prompts that some probing left out: a mean over others is another mean."""
    there = ~np.isnan(trajectory.logp).all(2)  # (S, N)
    kept = there.all(0)
    if kept.all() or not kept.any():
        return trajectory, 0
    stats = {name: getattr(trajectory, name)[:, kept] for name in STATS}
    rows = {name: getattr(trajectory, name)[kept] for name in ("n_tokens", "split")}
    return replace(trajectory, **stats, **rows), int((~kept).sum())


def _load(path: Path) -> Trajectory:
    try:
        found = Trajectory.load(path)
        meta = found.meta if isinstance(found.meta, dict) else {"settings": found.meta}
        if not all(isinstance(meta.get(name, {}), dict) for name in ("settings", "versions")):
            raise ValueError("trajectory.json is no table of settings")
        return found
    except FileNotFoundError:
        raise
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        said = str(error).splitlines()[:1] or [type(error).__name__]
        raise ValueError(f"{path}.npz and .json cannot be read ({said[0]})") from None


def _of_trainer(places: list[Path | None]) -> tuple[dict[str, Curve], dict]:
    """The longest log of a Trainer, and its settings as far as they are plain text."""
    states = [_json(p / "trainer_state.json") for p in places if p is not None]
    state = max(states, key=lambda state: state.get("global_step", 0))
    points: dict[str, dict[int, float]] = {}
    for entry in state.get("log_history", []):
        for key, value in entry.items():
            if key not in ("step", "epoch") and isinstance(value, int | float):
                points.setdefault(key, {})[entry["step"]] = value
    log = {key: (np.array(list(at)), np.array(list(at.values()))) for key, at in points.items()}
    names = ("global_step", "max_steps", "epoch", "num_train_epochs", "train_batch_size")
    return log, {name: state[name] for name in names if name in state}


def _json(file: Path) -> dict:
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} cannot be read ({error})") from None


def _order(path: Path) -> tuple[list[int], str]:
    """Numbers in names count as numbers."""
    return [int(digits) for digits in re.findall(r"\d+", path.name)], path.name
