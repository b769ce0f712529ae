"""What a report tells of the models themselves: single tokens, answers, pairs."""

from pathlib import Path

import numpy as np

from lmdyn.lm._adapter import base_of, is_adapter, load_adapted
from lmdyn.lm._checkpoint import fingerprint_model
from lmdyn.lm.data import load_probes
from lmdyn.lm.diagnose import diagnose
from lmdyn.lm.generate import generate
from lmdyn.lm.mass import token_mass
from lmdyn.lm.models import load
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
    held_out = some.split("test") if "test" in {row.get("split") for row in some} else None
    types = [name for name in ("chosen", "rejected") if all(name in row for row in some)]
    asked = list(some)[:: max(1, len(some) // ANSWERS)][:ANSWERS]
    masses, answers, pairs, known = {}, {}, None, None
    for when, where in (("before", model), ("after", last)):
        if where is None:
            continue
        adapter = when == "after" and is_adapter(last)
        loaded = load_adapted(last, model, device) if adapter else load(where, device=device)
        if when == "before":
            recorded = runs[0].trajectory.meta.get("settings", {}).get("model")
            known = recorded and fingerprint_model(loaded[0]) == recorded
        if pairs is None and "rejected" in types:
            pairs = diagnose(*loaded, some, held_out=held_out)
        masses[when] = token_mass(*loaded, some, types, masses.get("before"))
        answers[when] = generate(*loaded, [row["prompt"] for row in asked], NEW_TOKENS)
    parts = {name: {when: _parts(masses[when], name) for when in masses} for name in types}
    gains = {
        name: {f"the {part}": of["after"][part] - of["before"][part] for part in PARTS}
        for name, of in parts.items()
        if len(of) == 2
    }
    return {
        "about": f"On {len(some)} of {len(probes)} rows of {Path(rows).name}, evenly spread.",
        "before": model,
        "is_the_one": known,
        "after": last and last.name,
        "base": (model or base_of(last)) if last and is_adapter(last) else None,
        "which": which,
        "parts": parts,
        "gains": gains,
        "figure": figures.gains(gains),
        "asked": asked,
        "answers": answers,
        "tokens": NEW_TOKENS,
        "pairs": pairs,
    }


def _is_model(folder: Path | None) -> bool:
    """Whether it can be loaded: a whole model, or an adapter of one."""
    whole = folder and (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))
    return bool(folder and (whole or is_adapter(folder)))


def _parts(mass, name: str) -> dict[str, float]:
    """The mean of each part of π over the tokens of a type, and the share in a valley."""
    of = mass.of(name)
    return {part: getattr(mass, f"{part}_prob")[of].mean() for part in PARTS} | {
        "valley": (mass.squeeze[of] > 0).mean()
    }
