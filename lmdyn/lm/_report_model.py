"""What a report tells of the models themselves: single tokens, answers, pairs."""

from pathlib import Path

import numpy as np

from lmdyn.lm import _report_figures as figures
from lmdyn.lm._adapter import base_of, is_adapter, load_adapted
from lmdyn.lm._report_page import Drawing, Part, Table
from lmdyn.lm._report_runs import Run
from lmdyn.lm.checkpoint import fingerprint_model
from lmdyn.lm.data import ProbeSet, load_probes
from lmdyn.lm.diagnose import FLAGS, diagnose
from lmdyn.lm.generate import generate, repeated
from lmdyn.lm.mass import TokenMass, token_mass
from lmdyn.lm.models import load

MOST_ROWS = 32  # rows to look at, evenly spread
ANSWERS = 6  # prompts to answer
WORST = 10  # pairs to show
NEW_TOKENS = 64
LONGEST = 300  # characters of a text in a table


def look_at_models(
    runs: list[Run], model: str | None, rows: str | Path | None, device: str
) -> list[Part]:
    """The parts about the model that the runs began with and the one they left, on these rows.

    Returns:
        Nothing without rows.

    Raises:
        ValueError: a model without rows, rows without any model, rows that cannot be read.
    """
    if rows is None:
        if model is not None:
            raise ValueError("a model without rows: pass --rows FILE.jsonl too")
        return []
    last = next((run.checkpoint for run in reversed(runs) if _is_model(run.checkpoint)), None)
    if model is None and last is None:
        raise ValueError(
            "rows without a model: the run left no checkpoint that can be loaded, pass --model NAME"
        )
    probes = load_probes(rows)
    which = np.linspace(0, len(probes) - 1, min(MOST_ROWS, len(probes))).round().astype(int)
    some = probes[np.unique(which).tolist()]
    types = [name for name in ("chosen", "rejected") if all(name in row for row in some)]
    said = f"On {len(some)} of {len(probes)} rows of {Path(rows).name}, evenly spread. "
    masses, answers, pairs, pairs_of = [], [], None, ""
    for where, name in ((model, "before"), (last, "after")):
        if where is None:
            said += f"Without the model {name}: " + (
                "--model gives it. " if name == "before" else "the run left none to load. "
            )
            continue
        if name == "after" and is_adapter(last):
            loaded, tokenizer = load_adapted(last, model, device)
            said += f"After: {last.name}, an adapter merged into {model or base_of(last)}. "
        else:
            loaded, tokenizer = load(where, device=device)
        if name == "before":
            said += _whether_it_is_the_one(loaded, runs[0], model)
        if pairs is None and "rejected" in types:
            held_out = some.split("test") if "test" in _splits(some) else None
            pairs = diagnose(loaded, tokenizer, some, held_out=held_out)
            pairs_of = name
        follow = masses[0][1] if masses else None
        masses.append((name, token_mass(loaded, tokenizer, some, types, follow)))
        answers.append((name, _answers(loaded, tokenizer, some)))
        del loaded
    worst = _worst(pairs, pairs_of, np.unique(which)) if pairs else _no_pairs()
    return [_mass(masses, types, said.strip()), _generations(some, answers), worst]


def _is_model(folder: Path | None) -> bool:
    """Whether it can be loaded: a whole model, or an adapter of one."""
    if folder is None:
        return False
    whole = (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))
    return whole or is_adapter(folder)


def _splits(probes: ProbeSet) -> set[str]:
    return {row.get("split", "train") for row in probes}


def _whether_it_is_the_one(model, run: Run, name: str) -> str:
    recorded = run.trajectory.meta.get("settings", {}).get("model")
    if recorded is None:
        return f"Before: {name}. "
    same = fingerprint_model(model) == recorded
    return f"Before: {name}, {'the' if same else 'NOT the'} model that the run began with. "


def _mass(masses: list[tuple[str, TokenMass]], types: list[str], said: str) -> Part:
    part = Part("The mass account", [said])
    parts = ("label", "rival", "rest")
    if len(masses) == 2:
        moved = masses[0][1].moved(masses[1][1])
        of = {name: masses[0][1].of(name) for name in types}
        groups = {
            name: {f"the {p}": float(moved[p][of[name]].mean()) for p in parts} for name in types
        }
        alt = "Bars: " + "; ".join(
            f"tokens of {name}: " + ", ".join(f"{key} {_signed(x)}" for key, x in gains.items())
            for name, gains in groups.items()
        )
        caption = (
            "What each part has gained from before to after: the response's own token (label), the "
            "token that was likeliest beside it (rival), and all others (rest). A squeeze moves "
            "mass to the rival."
        )
        part.content.append(Drawing(*figures.moved(groups), f"{alt}.", caption))
    rows = [
        (
            f"{name}, {when}",
            *(f"{getattr(mass, f'{p}_prob')[mass.of(name)].mean():.3f}" for p in parts),
            f"{(mass.squeeze[mass.of(name)] > 0).mean():.0%}",
        )
        for name in types
        for when, mass in masses
    ]
    head = ("tokens of", "label", "rival", "rest", "tokens in a valley")
    part.content.append(Table("Mean probability over the tokens", head, rows))
    return part


def _answers(model, tokenizer, probes: ProbeSet) -> list[str]:
    prompts = [row["prompt"] for row in probes][:: max(1, len(probes) // ANSWERS)][:ANSWERS]
    return generate(model, tokenizer, prompts, NEW_TOKENS)


def _generations(probes: ProbeSet, answers: list[tuple[str, list[str]]]) -> Part:
    rows = list(probes)[:: max(1, len(probes) // ANSWERS)][:ANSWERS]
    told = [
        (_short(row["prompt"], end=True), _short(row["chosen"]), *map(_short, texts))
        for row, *texts in zip(rows, *(texts for _, texts in answers), strict=True)
    ]
    again = ", ".join(f"{repeated(texts):.0%} {name}" for name, texts in answers)
    head = ("prompt", "chosen", *(f"answer {name}" for name, _ in answers))
    return Part(
        "Generations",
        [
            f"Greedy answers, at most {NEW_TOKENS} tokens. Three-word sequences that their own "
            f"answer already held: {again}.",
            Table("What the model says", head, told, prose=True),
        ],
    )


def _worst(pairs, when: str, numbers: np.ndarray) -> Part:
    rows = [
        (
            str(numbers[row["row"]]),
            _signed(row["own_pull"] + row["own_push"], ".3g"),
            _signed(row["held_out_pull"] + row["held_out_push"], ".3g"),
            f"{row['valley']:.0%}",
            ", ".join(row["flags"]) or "–",
            _short(row["prompt"], end=True),
        )
        for row in pairs.rows()[:WORST]
    ]
    head = ("row", "own chosen", "held-out chosen", "tokens in a valley", "flags", "prompt")
    caption = (
        "The pairs that lower other chosen answers most: what one DPO step on the pair alone does, "
        f"to first order, in nats per unit learning rate, by the model {when} the run. Held-out "
        "are the rows of split test, or else some of these rows"
    )
    flags = "; ".join(f"{name}: {text}" for name, text in FLAGS.items())
    return Part(
        "The worst pairs",
        [
            Table(caption, head, rows, prose=True),
            f"Flags. {flags}. For all rows: python -m lmdyn diagnose FILE --model MODEL.",
        ],
    )


def _no_pairs() -> Part:
    return Part("The worst pairs", ["Not told: some of the rows have no rejected response."])


def _signed(value: float, form: str = ".3f") -> str:
    return format(value, f"+{form}").replace("-", "−")


def _short(text: str, end: bool = False) -> str:
    """The beginning of a text, or its end."""
    text = text.strip()
    if len(text) <= LONGEST:
        return text
    return f"… {text[-LONGEST:]}" if end else f"{text[:LONGEST]} …"
