"""The plan of a recipe in words; what cannot be known here is said, not refused."""

from collections.abc import Iterator

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


def _lines(recipe: Recipe) -> Iterator[str]:
    yield f"{recipe.name}: {recipe.about}"
    rows, problem = _try(load_rows, recipe.data)
    probes, unscored = _try(load_probe_rows, recipe) if recipe.probes else (None, None)
    found, unknown = _try(estimate.empty, recipe.model, recipe.dtype)
    model, tokenizer = found or (None, None)
    shape = model and estimate.shape(model)
    size = f"{shape.parameters / 1e6:,.1f}M parameters" if shape else f"unknown: {unknown}"
    precision = "" if recipe.mixed_precision == "no" else f", computing in {recipe.mixed_precision}"
    yield f"{'model':<10}{recipe.model}, {recipe.dtype}{precision}; {size}"
    yield f"{'rows':<10}{recipe.data.source}: {problem or len(rows)}"
    if recipe.probes:
        scored = unscored or f"{len(probes)} prompts × {len(probes.types)} types"
        yield f"{'probes':<10}{recipe.probes.source or recipe.data.source}: {scored}"

    device, absent = _try(_device, recipe.device)
    rate = None if device is None else _rate(recipe, device)
    peaks, total = {}, 0.0
    for number, stage in enumerate(recipe.stages):
        label = f"{number}-{stage.name}"
        learn, refused = _try(stage_rows, stage, rows) if rows else (None, None)
        yield f"{label:<9} {stage.get_loss()!r}, {_updates(stage, learn, bool(probes))}"
        if refused:
            yield f"{'':<10}it will be refused: {refused}"
        if learn is None or shape is None:
            continue
        size = estimate.lengths(tokenizer, _read(stage, learn))
        peaks[label] = estimate.memory(stage, shape, size, recipe)
        if rate:
            looked_at = estimate.lengths(tokenizer, probes) if probes else []
            work = estimate.operations(stage, shape, size, looked_at, recipe)
            total += work / (rate * estimate.SHARE)

    if peaks:
        label = max(peaks, key=lambda name: peaks[name].peak)
        yield f"{'memory':<10}about {_memory(peaks[label])}, in {label}{_of(device)}"
        parts = peaks[label]
        last, saved = parts.weights / GB, (parts.weights + parts.optimizer) / GB
        yield f"{'disk':<10}about {saved:.2f} GB a checkpoint, {last:.2f} GB a finished stage"
    if total:
        sampling = ", sampling not counted" if any(s.rounds for s in recipe.stages) else ""
        yield (
            f"{'time':<10}about {_time(total)}{sampling}: at half of the {rate / 1e9:,.0f} GFLOP/s "
            f"that a matrix product reaches on this {device.type}"
        )
    else:
        yield f"{'time':<10}unknown: {absent or unknown or problem}"
    guess = f"; a token is taken for {estimate.CHARACTERS} characters"
    guessed = "" if tokenizer or not peaks else guess
    yield f"Memory and time are estimates{guessed}. Nothing was trained."


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
