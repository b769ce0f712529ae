"""What a report tells of the models themselves: single tokens, answers, pairs."""

from pathlib import Path

import numpy as np

from lmdyn.lm.checkpoint import fingerprint_model
from lmdyn.lm.data import ProbeSet, load_probes
from lmdyn.lm.diagnose import diagnose
from lmdyn.lm.generate import generate
from lmdyn.lm.mass import TokenMass, token_mass
from lmdyn.lm.models import base_of, is_adapter, load
from lmdyn.lm.report import figures
from lmdyn.lm.report.runs import Run

ROWS, ANSWERS, NEW_TOKENS = 32, 6, 64  # rows to look at, prompts to answer, tokens of an answer
PARTS = ("label", "rival", "rest")


def look_at_models(runs: list[Run], model, rows, device: str) -> dict | None:
    """The model that the runs began with, and the one they left, on these rows.

    Returns:
        What the page shows of them; None without rows.

    Raises:
        ValueError: a model without rows, rows without any model, rows that cannot be read.
    """
    if rows is None:
        if model is not None:
            raise ValueError("a model without rows: pass --rows FILE.jsonl too")
        return None
    last = next((run.checkpoint for run in reversed(runs) if _is_model(run.checkpoint)), None)
    if model is None and last is None:
        raise ValueError(
            "rows without a model: the run left no checkpoint that can be loaded, pass --model NAME"
        )
    probes = load_probes(rows)
    which = np.linspace(0, len(probes) - 1, min(ROWS, len(probes))).round().astype(int).tolist()
    some = probes[which]
    adapter = last is not None and is_adapter(last)
    looks = {}
    if model is not None:
        looks["before"] = _look(load(model, device=device), some)
    if last is not None:
        loaded = load(last, device, base=model if adapter else None)
        looks["after"] = _look(loaded, some, looks.get("before"))
    recorded = runs[0].trajectory.meta.get("settings", {}).get("model")
    return {
        "about": f"On {len(some)} of {len(probes)} rows of {Path(rows).name}, evenly spread.",
        "before": model,
        "is_the_one": recorded and model and looks["before"]["fingerprint"] == recorded,
        "after": last and last.name,
        "base": (model or base_of(last)) if adapter else None,
        "which": which,
        "asked": _asked(some),
        "tokens": NEW_TOKENS,
        "looks": looks,
        "figure": figures.gains(_gains(looks)),
        "gains": _gains(looks),
    }


def _look(loaded, rows: ProbeSet, before: dict | None = None) -> dict:
    """What a model, with its tokenizer, makes of the rows; the pairs are told of the first one."""
    types = [name for name in ("chosen", "rejected") if all(name in row for row in rows)]
    held_out = rows.split("test") if "test" in {row.get("split") for row in rows} else None
    mass = token_mass(*loaded, rows, types, before and before["mass"])
    ranked = before is None and "rejected" in types
    return {
        "fingerprint": fingerprint_model(loaded[0]),
        "mass": mass,
        "parts": {name: _parts(mass, name) for name in types},
        "answers": generate(*loaded, [row["prompt"] for row in _asked(rows)], NEW_TOKENS),
        "pairs": diagnose(*loaded, rows, held_out=held_out) if ranked else None,
    }


def _parts(mass: TokenMass, name: str) -> dict[str, float]:
    """The mean of each part of π over the tokens of a type, and the share in a valley."""
    of = mass.of(name)
    parts = {part: getattr(mass, f"{part}_prob")[of].mean() for part in PARTS}
    return parts | {"valley": (mass.squeeze[of] > 0).mean()}


def _gains(looks: dict) -> dict[str, dict[str, float]]:
    """Type → part → what it gained between two models; nothing of one."""
    if len(looks) < 2:
        return {}
    before, after = (look["parts"] for look in looks.values())
    return {n: {f"the {p}": after[n][p] - of[p] for p in PARTS} for n, of in before.items()}


def _asked(rows: ProbeSet) -> list:
    return list(rows)[:: max(1, len(rows) // ANSWERS)][:ANSWERS]


def _is_model(folder: Path | None) -> bool:
    """Whether it can be loaded: a whole model, or an adapter of one."""
    whole = folder and (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))
    return bool(folder and (whole or is_adapter(folder)))
