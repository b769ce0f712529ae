"""One page about a run: ``page.html.j2`` has its words, the code here fills it."""

import json
import re
from itertools import product, takewhile
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lmdyn.lm.checkpoint import fingerprint_model
from lmdyn.lm.data import ProbeSet, load_probes
from lmdyn.lm.diagnose import FLAGS, diagnose
from lmdyn.lm.generate import CORRECT, generate, repeated
from lmdyn.lm.mass import token_mass
from lmdyn.lm.models import base_of, is_adapter, load
from lmdyn.lm.records import write_text
from lmdyn.lm.report import figures
from lmdyn.lm.rows import text_of
from lmdyn.lm.score import known_mean
from lmdyn.lm.squeeze import REMEDIES, fades, is_sure, squeeze
from lmdyn.lm.tokens import prompts_of
from lmdyn.lm.trajectory import Trajectory

ROWS, ANSWERS, NEW_TOKENS = 32, 6, 64  # rows to look at, prompts to answer, tokens of an answer


def report(
    folder: str | Path, out: str | Path | None = None, *, model=None, rows=None, device="auto"
) -> Path:
    """Write one self-contained HTML page about a run, and return its path.

    A verdict in plain words: whether it shows a `squeeze`, since when, and what to do; its curves.
    Of a run for a reward, whose probes have ``correct``: whether it loses right answers (`fades`).

    Args:
        folder: what ``finetune(out=…)`` or `finetune_on_policy` wrote, the ``output_dir`` of a
            trainer that had a `ProbeCallback`, or a folder of such folders, the stages of a run.
        out: the page; report.html in the folder if not given.
        model: the model that the run began with, as `load` takes it; an adapter that the run left
            is merged into it, or into the model that the adapter names.
        rows: a source of `load_probes`. With it the page tells, of ``model`` and of the last
            checkpoint, where probability went, what they answer, and what `diagnose` finds.
    """
    folder = Path(folder)
    runs = [_view(where.relative_to(folder), *of) for where, *of in _find(folder)]
    if not runs:
        told = f"no run in {folder}: there is no trajectory.npz, as finetune(out=…) writes with its"
        raise FileNotFoundError(f"{told} first checkpoint, and ProbeCallback into output_dir/lmdyn")
    models, recipe = _models(runs, model, rows, device), folder / "recipe.yaml"
    recipe = recipe.read_text(encoding="utf-8", errors="replace") if recipe.is_file() else None
    given = {"title": folder.resolve().name, "runs": runs, "models": models, "recipe": recipe}
    page = _PAGES.get_template("page.html.j2").render(given)
    out = folder / "report.html" if out is None else Path(out)
    write_text(out, page, errors="replace")  # a prompt can hold half a surrogate pair, no file can
    return out


def _find(folder: Path, depth: int = 2) -> list[tuple[Path, Trajectory, Path]]:
    """The run in a folder, or those in its sub-folders: where, its record, its last folder."""
    rounds = sorted((file.parent for file in folder.glob("round-*/trajectory.npz")), key=_in_order)
    for place in (folder, folder / "lmdyn"):
        if (place / "trajectory.npz").is_file():
            home = place.resolve().parent if place.resolve().name == "lmdyn" else place
            return [(folder, Trajectory.load(place / "trajectory"), [home, *rounds][-1])]
    parts = [Trajectory.load(part / "trajectory") for part in rounds]
    try:
        return [(folder, Trajectory.join(parts), rounds[-1])]
    except ValueError:  # no rounds, or rounds of other probes: each is a run of its own
        inner = sorted(folder.glob("*/"), key=_in_order) if depth else []
        return [run for part in inner for run in _find(part, depth - 1)]


def _in_order(path: Path) -> tuple[list[int], str]:
    """A key to sort by, in which numbers in names count as numbers."""
    return [int(digits) for digits in re.findall(r"\d+", path.name)], path.name


def _view(where: Path, whole: Trajectory, home: Path) -> dict:
    """What the page shows of a run."""
    trajectory, (log, settings) = whole.complete(), _logged(whole, home)
    checkpoint = max(home.glob("checkpoint-*[0-9]"), key=_in_order, default=None)
    if any(home.glob("*.safetensors")):  # as trainer.save_model() leaves it
        checkpoint = home
    shown, at = trajectory.mean(stat="squeeze"), trajectory.types.index
    if CORRECT in trajectory.types:  # a trainer may have logged it, too
        log = {"lmdyn/entropy": (trajectory.steps, trajectory.mean(CORRECT, "entropy"))} | log
    known = {  # of the likeliest token the sum of logs is recorded, hence geometric means
        "label": np.exp(trajectory.logp / trajectory.n_tokens),
        "likeliest": np.exp(trajectory.argmax_logp / trajectory.n_tokens),
        "valley": np.heaviside(trajectory.squeeze, 0),
    }
    return {
        "name": " ".join(where.parts),
        "trajectory": trajectory,
        "left_out": len(whole.split) - len(trajectory.split),
        "log": log,
        "settings": settings,
        "checkpoint": checkpoint,
        "unfinished": whole.updates and checkpoint and any(checkpoint.glob("optimizer*")),
        "verdict": _judge(trajectory),
        "along": {n: {k: known_mean(x[..., at(n)]) for k, x in known.items()} for n in shown},
    }


def _logged(trajectory: Trajectory, home: Path) -> tuple[dict, dict]:
    """What a training logged, name → (updates, values), and its settings."""
    log = {key: (np.arange(len(y)), y) for key, y in trajectory.log.items() if len(y)}
    settings, states = trajectory.meta.get("settings"), [{}]
    if log or settings is not None:
        return log, settings or {}
    for file in (*home.glob("trainer_state.json"), *home.glob("checkpoint-*/trainer_state.json")):
        try:  # of a `transformers.Trainer`
            states.append(dict(json.loads(file.read_text(encoding="utf-8"))))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{file} cannot be read ({error})") from None
    state = max(states, key=lambda state: state.get("global_step", 0))
    for entry in state.get("log_history", []):
        for key, value in entry.items():
            if key not in ("step", "epoch") and isinstance(value, int | float):
                log.setdefault(key, []).append((entry["step"], value))
    names = ("global_step", "max_steps", "epoch", "num_train_epochs", "train_batch_size")
    settings = {name: state[name] for name in names if name in state}
    return {key: tuple(np.array(of).T) for key, of in log.items()}, settings


def _judge(trajectory: Trajectory) -> dict:
    """The verdict: its ``kind``, the ``alerts`` behind it, whether on ``held_out`` prompts alone.

    And what ``moved`` from first to last: split, None for all → type → (N,) nats.
    """
    n, told = len(trajectory.steps), {"train", "test"} <= set(trajectory.split)
    moved = {split: {} for split in ((None, "train", "test") if told else (None,))}
    for split, name in product(moved, trajectory.mean() if n > 1 else ()):
        values = trajectory.values(name, split=split).astype(np.float64)
        change = values[-1] - values[0]
        if not np.isnan(change).all():
            moved[split][name] = change[~np.isnan(change)]
    verdict = {"kind": "unknown", "alerts": [], "held_out": False, "moved": moved}
    if len(moved[None].get(CORRECT, ())) > 1:
        curves = trajectory.steps, trajectory.values(CORRECT), trajectory.values(CORRECT, "entropy")
        told = [fades(*(y[:s] for y in curves)) for s in range(1, n + 1)]
        kind = "fades" if told[-1] else "faded" if any(told) else "kept"
        return verdict | {"kind": kind, "told": [*filter(None, told)]}
    if not {"chosen", "rejected"} <= moved[None].keys():
        return verdict
    if (~np.isnan(trajectory.values("chosen") + trajectory.values("rejected"))).all(0).sum() < 2:
        return verdict
    for split in list(moved)[::2]:  # all prompts, or else the held-out ones
        read = ("chosen", "rejected", "argmax")
        curves = [trajectory.steps, *(trajectory.values(name, split=split) for name in read)]
        lengths = np.stack([trajectory.values(name, "n_tokens", split) for name in read[:2]], 1)
        alerts = [squeeze(*(y[:s] for y in curves), lengths) for s in range(1, n + 1)]
        if any(alerts):
            lasting = [*takewhile(bool, reversed(alerts))][::-1]
            seen = {"alerts": lasting or [*filter(None, alerts)], "held_out": split is not None}
            return verdict | seen | {"kind": "squeeze" if lasting else "past"}
    return verdict | {"kind": "fall" if is_sure(-moved[None]["chosen"]) else "none"}


def _models(runs: list[dict], model, rows, device: str) -> dict | None:
    """What the page shows of the models before and after the runs on these rows; None without."""
    if rows is None and model is not None:
        raise ValueError("a model without rows: pass --rows FILE.jsonl too")
    if rows is None:
        return None
    saved = [run["checkpoint"] for run in reversed(runs) if run["checkpoint"]]
    last = next((folder for folder in saved if any(folder.glob("*.safetensors"))), None)
    if model is None and last is None:
        raise ValueError("rows without a model: the run left no safetensors, pass --model NAME")
    probes = load_probes(rows)
    which = np.linspace(0, len(probes) - 1, min(ROWS, len(probes))).round().astype(int).tolist()
    some = probes[which]
    types = [name for name in ("chosen", "rejected") if all(name in row for row in some)]
    if not types:
        what = "some rows have no 'chosen' and some no 'rejected', and the page tells of either"
        raise ValueError(f"{rows}: {what}: pass rows that all have it, such as pairs")
    asked = some[:: max(1, len(some) // ANSWERS)][:ANSWERS]
    base = (model or base_of(last)) if last and is_adapter(last) else None
    looks, gains = {}, {}
    for when, name, of in (("before", model, None), ("after", last, base)):
        if name is not None:
            loaded = load(name, device, base=of)
            try:
                looks[when] = _look(loaded, some, types, asked, looks.get("before"))
            except ValueError as error:  # which counts among these rows
                told = re.sub(r"\brows\[(\d+)", lambda i: f"rows[{which[int(i[1])]}", str(error))
                raise ValueError(told) from None
    if len(looks) == 2:
        before, after = (look["mass"] for look in looks.values())
        for name, (part, gain) in product(before.types, before.moved(after).items()):
            gains.setdefault(name, {})[f"the {part}"] = gain[before.of(name)].mean()
    found = {"looks": looks, "gains": gains, "before": model, "after": last and last.name}
    found["about"] = f"On {len(some)} of {len(probes)} rows of {Path(rows).name}, evenly spread."
    return found | {"base": base, "which": which, "tokens": NEW_TOKENS}


def _look(loaded, rows: ProbeSet, types, asked: ProbeSet, before: dict | None) -> dict:
    """What a model, with its tokenizer, makes of the rows; the pairs are told of the first one."""
    ranked = before is None and "rejected" in types
    return {
        "fingerprint": fingerprint_model(loaded[0]),
        "mass": token_mass(*loaded, rows, types, before and before["mass"]),
        "asked": [[text_of(r.get(k, ""), loaded[1]) for k in ("prompt", "chosen")] for r in asked],
        "answers": generate(*loaded, prompts_of(loaded[1], asked, asked.format), NEW_TOKENS),
        "pairs": diagnose(*loaded, rows, held_out=rows.split("test") or None) if ranked else None,
    }


_PAGES = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
_PAGES.undefined, _PAGES.trim_blocks, _PAGES.lstrip_blocks = StrictUndefined, True, True
_PAGES.globals |= {"figures": figures, "flags": FLAGS, "is_sure": is_sure}
_PAGES.globals |= {"repeated": repeated, "remedies": REMEDIES}
