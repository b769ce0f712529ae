"""What a report tells of the models themselves: single tokens, answers, pairs."""

from pathlib import Path

import numpy as np

from lmdyn.lm.checkpoint import fingerprint_model
from lmdyn.lm.data import ProbeSet, load_probes
from lmdyn.lm.diagnose import diagnose
from lmdyn.lm.generate import generate
from lmdyn.lm.mass import token_mass
from lmdyn.lm.models import base_of, is_adapter, load

ROWS, ANSWERS, NEW_TOKENS = 32, 6, 64  # rows to look at, prompts to answer, tokens of an answer


def look_at_models(runs: list[dict], model, rows, device: str) -> dict | None:
    """What the page shows of the model before the runs, and after, on these rows; None without."""
    if rows is None:
        if model is not None:
            raise ValueError("a model without rows: pass --rows FILE.jsonl too")
        return None
    saved = [run["checkpoint"] for run in reversed(runs) if run["checkpoint"]]
    last = next((folder for folder in saved if any(folder.glob("*.safetensors"))), None)
    if model is None and last is None:
        raise ValueError("rows without a model: the run left no safetensors, pass --model NAME")
    probes = load_probes(rows)
    which = np.linspace(0, len(probes) - 1, min(ROWS, len(probes))).round().astype(int).tolist()
    some = probes[which]
    asked = list(some)[:: max(1, len(some) // ANSWERS)][:ANSWERS]
    base = model or base_of(last) if last and is_adapter(last) else None
    looks, gains = {}, {}
    for when, name, of in (("before", model, None), ("after", last, base)):
        if name is not None:
            looks[when] = _look(load(name, device, base=of), some, asked, looks.get("before"))
    if len(looks) == 2:
        before, after = (look["mass"] for look in looks.values())
        for name in before.types:
            moved = {part: x[before.of(name)].mean() for part, x in before.moved(after).items()}
            gains[name] = {f"the {part}": gain for part, gain in moved.items()}
    return {
        "about": f"On {len(some)} of {len(probes)} rows of {Path(rows).name}, evenly spread.",
        "before": model,
        "after": last and last.name,
        "base": base,
        "which": which,
        "asked": asked,
        "tokens": NEW_TOKENS,
        "looks": looks,
        "gains": gains,
    }


def _look(loaded, rows: ProbeSet, asked: list, before: dict | None) -> dict:
    """What a model, with its tokenizer, makes of the rows; the pairs are told of the first one."""
    types = [name for name in ("chosen", "rejected") if all(name in row for row in rows)]
    ranked = before is None and "rejected" in types
    return {
        "fingerprint": fingerprint_model(loaded[0]),
        "mass": token_mass(*loaded, rows, types, before and before["mass"]),
        "answers": generate(*loaded, [row["prompt"] for row in asked], NEW_TOKENS),
        "pairs": diagnose(*loaded, rows, held_out=rows.split("test") or None) if ranked else None,
    }
