"""The plan of a recipe in words; what cannot be known here is said, not refused."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from lmdyn.lm import _estimate as estimate
from lmdyn.lm.data import ProbeSet
from lmdyn.lm.models import _device
from lmdyn.lm.recipe import Recipe, Stage
from lmdyn.lm.run import load_probe_rows, load_rows, stage_rows

GB = 1e9


def dry_run(recipe: Recipe) -> str:
    """Stages, updates, rows and probes of a recipe, with estimates of memory, disk and time.

    Nothing is trained. Of a model on the hub the configuration and the tokenizer are read, no
    weights.
    """
    return "\n".join(_lines(recipe))


@dataclass(frozen=True)
class _Known:
    """What can be known of a recipe here; None for what cannot, and why not in `problems`."""

    rows: ProbeSet | None
    probes: ProbeSet | None
    shape: estimate.Shape | None
    tokenizer: object
    device: torch.device | None
    problems: dict[str, str | None]


def _look(recipe: Recipe) -> _Known:
    rows, no_rows = _try(load_rows, recipe.data)
    probes, no_probes = _try(load_probe_rows, recipe) if recipe.probes else (None, None)
    found, no_model = _try(estimate.empty, recipe.model, recipe.dtype)
    model, tokenizer = found or (None, None)
    device, no_device = _try(_device, recipe.device)
    problems = {"device": no_device, "model": no_model, "rows": no_rows, "probes": no_probes}
    shape = None if model is None else estimate.shape(model)
    return _Known(rows, probes, shape, tokenizer, device, problems)


def _lines(recipe: Recipe) -> Iterator[str]:
    known = _look(recipe)
    yield f"{recipe.name}: {recipe.about}"
    yield from _what(recipe, known)
    peaks, work = {}, 0.0
    for number, stage in enumerate(recipe.stages):
        label = f"{number}-{stage.name}"
        learn, refused = _try(stage_rows, stage, known.rows) if known.rows else (None, None)
        yield f"{label:<9} {stage.get_loss()!r}, {_updates(stage, learn, bool(known.probes))}"
        if refused:
            yield f"{'':<10}it will be refused: {refused}"
        if learn is not None and known.shape is not None:
            size = estimate.lengths(known.tokenizer, _read(stage, learn))
            scored = estimate.lengths(known.tokenizer, known.probes) if known.probes else []
            peaks[label] = estimate.memory(stage, known.shape, size, recipe)
            work += estimate.operations(stage, known.shape, size, scored, recipe)
    if peaks:
        yield from _space(peaks, known.device)
    yield f"{'time':<10}{_duration(recipe, work, known)}"
    is_guess = peaks and known.tokenizer is None
    guess = f"; a token is taken for {estimate.CHARACTERS} characters" if is_guess else ""
    yield f"Memory and time are estimates{guess}. Nothing was trained."


def _what(recipe: Recipe, known: _Known) -> Iterator[str]:
    """Model, rows and probes."""
    size = f"unknown: {known.problems['model']}"
    if known.shape is not None:
        size = f"{known.shape.parameters / 1e6:,.1f}M parameters"
    precision = "" if recipe.mixed_precision == "no" else f", computing in {recipe.mixed_precision}"
    yield f"{'model':<10}{recipe.model}, {recipe.dtype}{precision}; {size}"
    yield f"{'rows':<10}{recipe.data.source}: {known.problems['rows'] or len(known.rows)}"
    if recipe.probes:
        scored = known.problems["probes"]
        if known.probes is not None:
            scored = f"{len(known.probes)} prompts × {len(known.probes.types)} types"
        yield f"{'probes':<10}{recipe.probes.source or recipe.data.source}: {scored}"


def _space(peaks: dict[str, estimate.Memory], device: torch.device | None) -> Iterator[str]:
    """Memory and disk."""
    label = max(peaks, key=lambda name: peaks[name].peak)
    parts = peaks[label]
    yield f"{'memory':<10}about {_memory(parts)}, in {label}{_of(device)}"
    last, saved = parts.weights / GB, (parts.weights + parts.optimizer) / GB
    yield f"{'disk':<10}about {saved:.2f} GB a checkpoint, {last:.2f} GB a finished stage"


def _duration(recipe: Recipe, work: float, known: _Known) -> str:
    if not work or known.device is None:
        return f"unknown: {next(filter(None, known.problems.values()), 'no rows to learn')}"
    rate = _rate(recipe, known.device)
    sampling = ", sampling not counted" if any(s.rounds for s in recipe.stages) else ""
    return (
        f"about {_time(work / (rate * estimate.SHARE))}{sampling}: {work:.2e} operations at "
        f"{estimate.SHARE:.0%} of the {rate / 1e9:,.0f} GFLOP/s that a matrix product reaches on "
        f"this {known.device.type}"
    )


def _try(read, *arguments):
    """(result, None), or (None, what is wrong)."""
    try:
        return read(*arguments), None
    except (ValueError, OSError, ImportError) as error:
        return None, str(error)


def _read(stage: Stage, learn: ProbeSet) -> ProbeSet:
    """The rows with what the stage reads, also where that is sampled only then."""
    if not stage.rounds:
        return learn
    answer = "word " * stage.max_new_tokens  # at least a token each
    rows = tuple({**row, "rejected": answer} for row in learn)
    return ProbeSet(rows, ("chosen", "rejected"), learn.format)


def _updates(stage: Stage, learn: ProbeSet | None, is_probed: bool) -> str:
    if learn is None:
        return f"{stage.epochs} epochs of unknown rows"
    plan = stage.plan(len(learn))
    rounds = f"{stage.rounds} rounds of " if stage.rounds else ""
    often = f", scored {estimate.probings(stage, len(learn))} times" if is_probed else ""
    return (
        f"{rounds}{plan.updates} updates of {stage.batch_size * stage.accumulate} rows "
        f"({plan.examples(plan.updates)} examples of {len(learn)} rows){often}"
    )


def _rate(recipe: Recipe, device: torch.device) -> float:
    is_bf16 = recipe.mixed_precision == "bf16"
    dtype = torch.bfloat16 if is_bf16 else getattr(torch, recipe.dtype)
    return estimate.matrix_rate(device, dtype)


def _memory(found: estimate.Memory) -> str:
    names = ("weights", "gradients", "optimizer", "activations", "logits", "step")
    parts = ", ".join(f"{name} {getattr(found, name) / GB:.2f}" for name in names)
    return f"{found.peak / GB:.2f} GB ({parts})"


def _of(device: torch.device | None) -> str:
    if device is None or device.type != "cuda":
        return ""
    return f", of {torch.cuda.mem_get_info(device)[0] / GB:.1f} GB free on this GPU"


def _time(seconds: float) -> str:
    for unit, name in ((3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{max(1, round(seconds))} s"
