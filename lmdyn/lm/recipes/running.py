"""Do what a recipe says, or tell what it would do and take."""

import math
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import disable_fsdp_ram_efficient_loading
from torch.utils.benchmark import Timer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lmdyn.checks import check_different, check_resumed
from lmdyn.lm.data import ProbeSet
from lmdyn.lm.forward import LogProbs
from lmdyn.lm.models import NAMES, load, pick_device
from lmdyn.lm.on_policy import finetune_on_policy
from lmdyn.lm.recipes.estimate import lengths, memory, operations
from lmdyn.lm.recipes.recipe import Recipe, read
from lmdyn.lm.records import replacing
from lmdyn.lm.tokens import encode
from lmdyn.lm.train import finetune
from lmdyn.lm.trajectory import Trajectory

SHARE = 0.5  # of the matrix rate that training reaches; small models reach less


def run(
    recipe: Recipe,
    out: str | Path,
    *,
    resume: bool = False,
    progress: bool | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> list[Trajectory]:
    """Train as a recipe says, stage by stage, each from where the last ended.

    In several processes (``accelerate launch -m lmdyn run …``) each takes some rows of every
    update, and the first one writes and tells; with ``--use_fsdp`` they share out the weights.

    Args:
        recipe: from `read`.
        out: the run's folder: recipe.yaml, and for each stage a folder such as 1-dpo with what
            `finetune` keeps (one of rounds: a folder for each round, and its trajectory).
        resume: go on with the run in ``out`` where it stopped; begin if there is none.
        progress: as for `finetune`.
        tell: called with a heading and a summary of each stage, as they come.

    Returns:
        One `Trajectory` a stage.

    Raises:
        ValueError: before the first stage begins: a folder that holds a run already, or one of
            another recipe (it names the key); rows or settings that a stage refuses.
        OSError: a folder that cannot be written.

    Example:
        >>> import tempfile
        >>> quick = read("tiny-sft", ["stages.0.max_steps=1", "probes.limit=2"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run(quick, folder)
        [Trajectory(2 probings of 4 prompts × 13 types, 1 updates)]
    """
    state, file = PartialState(cpu=recipe.device == "cpu"), Path(out) / "recipe.yaml"
    if file.is_file():
        check_resumed(out, recipe.differences(read(file)), resume)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"cannot write to {out}: {error.strerror}; choose another --out") from None
    rows, probes = (part and recipe.load(part) for part in (recipe.data, recipe.probes))
    is_alone = state.num_processes == 1
    if not is_alone:  # a whole model may not fit where a part of it is to go: finetune moves it
        disable_fsdp_ram_efficient_loading()
    model, tokenizer = load(recipe.model, recipe.device if is_alone else "cpu", recipe.dtype)
    if recipe.gradient_checkpointing:
        what = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
        getattr(model, f"{what}_checkpointing_enable")({"use_reentrant": False})
    _check_stages(model, tokenizer, recipe, rows, is_alone)
    state.wait_for_everyone()  # until each process has read what the first writes over
    if state.is_main_process:
        with replacing(file) as temporary:
            temporary.write_text(recipe.to_yaml(), encoding="utf-8")

    tell, trajectories = state.on_main_process(tell), []
    for number, stage in enumerate(recipe.stages):
        tell(f"{number}-{stage.name}: {stage.get_loss()!r}")
        folder = file.parent / f"{number}-{stage.name}"
        options = {"probes": probes, "out": folder, "resume": resume, "progress": progress}
        train = finetune_on_policy if stage.rounds else finetune
        options |= stage.settings()
        trajectories.append(train(model, tokenizer, stage.rows(rows), stage.get_loss(), **options))
        if stage.rounds:
            trajectories[-1].save(folder / "trajectory")
        tell(trajectories[-1].summary())
    return trajectories


def _check_stages(model, tokenizer, recipe: Recipe, rows: ProbeSet, is_alone: bool) -> None:
    """Refuse what a later stage would refuse, before hours have gone into the first."""
    for number, stage in enumerate(recipe.stages):
        try:
            if stage.rounds and not is_alone:
                raise ValueError("rounds sample in one process: launch one, or leave rounds out")
            if stage.rounds:
                continue  # its pairs are not there yet
            learn, loss = stage.rows(rows), stage.get_loss()
            with warnings.catch_warnings(action="ignore"):  # finetune warns of what is cut
                encoded = encode(tokenizer, learn)
            keys = dict(zip(loss.responses, learn.types, strict=True))
            LogProbs(model, encoded, keys)
            check_different(encoded, keys, loss)
        except ValueError as error:
            raise ValueError(f"stages.{number} ({stage.name}): {error}") from None


def dry_run(recipe: Recipe, tokenizer=None) -> str:
    """Rows, probes and updates of a recipe, with estimates of memory, disk and time.

    Nothing is trained; of a model on the hub the configuration is read, no weights, and the
    tokenizer, if none is given. What cannot be known here is said, not refused.
    """
    lines = [f"{recipe.name}: {recipe.about}"]
    try:
        lines.extend(f"{label:<9} {text}" for label, text in _plan(recipe, tokenizer))
    except (ValueError, OSError, ImportError) as error:
        lines.append(f"unknown from here on: {str(error).splitlines()[0]}")
    return "\n".join([*lines, "Memory and time are estimates. Nothing was trained."])


def _plan(recipe: Recipe, tokenizer) -> Iterator[tuple[str, str]]:
    rows, probes = (part and recipe.load(part) for part in (recipe.data, recipe.probes))
    yield "rows", f"{recipe.data.source}: {len(rows)}"
    if probes:
        source = recipe.probes.source or recipe.data.source
        yield "probes", f"{source}: {len(probes)} prompts × {len(probes.types)} types"
    stages = [(f"{i}-{s.name}", s, s.rows(rows)) for i, s in enumerate(recipe.stages)]
    for label, stage, learn in stages:
        plan = stage.plan(len(learn))
        rounds = f"{stage.rounds} rounds, sampling not counted, of " if stage.rounds else ""
        size = f"{plan.batch_size * plan.accumulate} rows ({plan.examples(plan.updates)} examples"
        scored = f", scored {plan.probings} times" if probes else ""
        updates = f"{rounds}{plan.updates} updates of {size} of {len(learn)} rows){scored}"
        yield label, f"{stage.get_loss()!r}, {updates}"
    model, tokenizer = _shape(recipe, tokenizer)
    size = f"{model.num_parameters() / 1e6:,.1f}M parameters"
    yield "model", f"{recipe.model}, {recipe.dtype}; {size}"
    again, scored = recipe.gradient_checkpointing, lengths(tokenizer, probes) if probes else []
    needs, work = {}, 0.0
    for label, stage, learn in stages:
        size = lengths(tokenizer, learn, stage.max_new_tokens if stage.rounds else 0)
        needs[label] = memory(model, stage, size, again)
        work += operations(model, stage, size, scored, again)
    yield from _takes(recipe, needs, work)


def _shape(recipe: Recipe, tokenizer):
    """(model without weights, tokenizer), from a configuration alone."""
    if recipe.model in NAMES:  # at hand anyway
        model, own = load(recipe.model, "cpu", recipe.dtype)
        return model, tokenizer or own
    options = {"trust_remote_code": False}
    config = AutoConfig.from_pretrained(recipe.model, **options)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, recipe.dtype))
    return model, tokenizer or AutoTokenizer.from_pretrained(recipe.model, **options)


def _takes(recipe: Recipe, needs: dict[str, dict], work: float) -> Iterator[tuple[str, str]]:
    device = pick_device(recipe.device)
    on_gpu, (label, most) = device.type == "cuda", max(needs.items(), key=lambda n: n[1]["peak"])
    gb = {name: f"{size / 1e9:.2f}" for name, size in most.items()}
    parts = ", ".join(f"{name} {size}" for name, size in gb.items() if name != "peak")
    free = f", of {torch.cuda.mem_get_info(device)[0] / 1e9:.1f} GB free" if on_gpu else ""
    yield "memory", f"about {gb['peak']} GB ({parts}), in {label}{free}"
    saved = f"{(most['weights'] + most['optimizer']) / 1e9:.2f} GB a checkpoint"
    yield "disk", f"about {saved}, {gb['weights']} GB a finished stage"
    is_bf16 = any(stage.mixed_precision == "bf16" for stage in recipe.stages)
    dtype, n = "bfloat16" if is_bf16 else recipe.dtype, 8192 if on_gpu else 512
    a = torch.randn(n, n, device=device).to(getattr(torch, dtype))
    timer = Timer("a @ a", globals={"a": a}, num_threads=torch.get_num_threads())
    rate = 2 * n**3 / timer.blocked_autorange(min_run_time=0.1).median
    duration = timedelta(seconds=math.ceil(work / (rate * SHARE)))
    speed = f"{rate / 1e9:,.0f} GFLOP/s that a matrix product reaches on this {device.type}"
    yield "time", f"about {duration}: {work:.2e} operations at {SHARE:.0%} of the {speed}"
