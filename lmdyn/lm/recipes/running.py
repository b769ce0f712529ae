"""Do what a recipe says, or tell what it would do and take."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import disable_fsdp_ram_efficient_loading
from torch.utils.benchmark import Timer
from transformers import AutoConfig, AutoModelForCausalLM

from lmdyn.checks import check_different, check_resumed
from lmdyn.lm.data import ProbeSet
from lmdyn.lm.models import OFFLINE, load, load_tokenizer, locate, pick_device
from lmdyn.lm.on_policy import finetune_on_policy
from lmdyn.lm.recipes.recipe import Recipe, Stage, naming, read
from lmdyn.lm.records import write_text
from lmdyn.lm.settings import Plan
from lmdyn.lm.tokens import encode
from lmdyn.lm.train import finetune
from lmdyn.lm.trajectory import Trajectory
from lmdyn.lm.ways import LogProbs

STATES = {"adamw": 2, "rmsprop": 1, "sgd": 0}  # numbers an optimizer keeps for each parameter
SHARE = 0.5  # of the matrix rate that training reaches; small models reach less
Lengths = Sequence[tuple[int, int]]  # tokens fed and tokens predicted, of each row


def run(
    recipe: Recipe,
    out: str | Path,
    *,
    resume: bool = False,
    progress: bool | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> list[Trajectory]:
    """Train as a recipe says, stage by stage, each from where the last ended.

    Several processes (``accelerate launch -m lmdyn run …``) share the work as in `finetune`. What a
    stage would refuse is a ValueError before the first one begins.

    Args:
        out: the run's folder: recipe.yaml, and for each stage one such as 1-dpo, as of `finetune`.
        resume: go on with the run in ``out`` where it stopped; begin if there is none.
        progress: as for `finetune`.
        tell: called with a heading and a summary of each stage, as they come.
    """
    state, file = PartialState(cpu=recipe.device == "cpu"), Path(out) / "recipe.yaml"
    if file.is_file():
        check_resumed(out, recipe.differences(read(file)), resume)
    file.parent.mkdir(parents=True, exist_ok=True)
    rows, probes = (part and recipe.load(part) for part in (recipe.data, recipe.probes))
    is_alone = state.num_processes == 1
    if not is_alone:  # a whole model may not fit where a part of it is to go: finetune moves it
        disable_fsdp_ram_efficient_loading()
    model, tokenizer = load(recipe.model, recipe.device if is_alone else "cpu", recipe.dtype)
    if recipe.gradient_checkpointing:
        what = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
        getattr(model, f"{what}_checkpointing_enable")({"use_reentrant": False})
    for number, stage in enumerate(recipe.stages):
        with naming(f"stages.{number} ({stage.name}): "):
            _check(stage, model, tokenizer, rows, is_alone)
    state.wait_for_everyone()  # each process has read what the first one writes over
    if state.is_main_process:
        write_text(file, recipe.to_yaml())
    tell, trajectories = state.on_main_process(tell), []
    for number, stage in enumerate(recipe.stages):
        tell(f"{number}-{stage.name}: {stage.get_loss()!r}")
        folder, train = file.parent / f"{number}-{stage.name}", finetune
        options = stage.settings() | {"out": folder, "resume": resume, "progress": progress}
        if stage.rounds:
            train, names = finetune_on_policy, ("rounds", "max_new_tokens", "temperature")
            options |= {name: getattr(stage, name) for name in names}
        options |= {"loss": stage.get_loss(), "probes": probes}
        trajectories.append(train(model, tokenizer, stage.rows(rows), **options))
        tell(trajectories[-1].summary())
    return trajectories


def _check(stage: Stage, model, tokenizer, rows: ProbeSet, is_alone: bool) -> None:
    """Refuse what `finetune` would, before hours have gone into the stages before."""
    if stage.rounds:  # the pairs are not there yet
        if not is_alone:
            raise ValueError("rounds sample in one process: launch one, or leave rounds out")
        return
    learn, loss = stage.rows(rows), stage.get_loss()
    keys = dict(zip(loss.responses, learn.types, strict=True))
    with warnings.catch_warnings(action="ignore"):  # of what is cut: finetune warns
        encoded = encode(tokenizer, learn)
    LogProbs(model, encoded, keys)
    check_different(encoded, keys, loss)


def dry_run(recipe: Recipe, tokenizer=None) -> str:
    """Rows, probes and updates of a recipe, with estimates of memory, disk and time.

    Nothing is trained; of a model, its configuration is read, and its tokenizer if none is given.
    What cannot be known here is said, not refused.
    """
    lines = [f"{recipe.name}: {recipe.about}"]
    try:
        lines.extend(f"{label:<9} {text}" for label, text in _plan(recipe, tokenizer))
    except (ValueError, OSError, ImportError) as error:
        hint = OFFLINE * (type(error) is OSError)  # as transformers raises for what it cannot reach
        lines.append(f"unknown from here on: {str(error).splitlines()[0]}{hint}")
    return "\n".join([*lines, "Memory and time are estimates. Nothing was trained."])


def _plan(recipe: Recipe, tokenizer) -> Iterator[tuple[str, str]]:
    rows, probes = (part and recipe.load(part) for part in (recipe.data, recipe.probes))
    yield "rows", f"{recipe.data.source}: {len(rows)}"
    if probes:
        source = recipe.probes.source or recipe.data.source
        yield "probes", f"{source}: {len(probes)} prompts × {len(probes.types)} types"
    stages = [(f"{i}-{s.name}", s, s.rows(rows)) for i, s in enumerate(recipe.stages)]
    for label, stage, learn in stages:
        plan = Plan(n_rows=len(learn), **stage.settings())
        rounds = f"{stage.rounds} rounds, sampling not counted, of " if stage.rounds else ""
        size = f"{plan.batch_size * plan.accumulate} rows ({plan.examples(plan.updates)} examples"
        scored = f", scored {plan.probings} times" if probes else ""
        updates = f"{rounds}{plan.updates} updates of {size} of {len(learn)} rows){scored}"
        yield label, f"{stage.get_loss()!r}, {updates}"
    where, again = locate(recipe.model), recipe.gradient_checkpointing
    config = AutoConfig.from_pretrained(where, trust_remote_code=False)
    with torch.device("meta"):  # without weights
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, recipe.dtype))
    parameters = f"{model.num_parameters() / 1e6:,.1f}M parameters"
    yield "model", f"{recipe.model}, {recipe.dtype}; {parameters}"
    tokenizer = tokenizer or load_tokenizer(where)
    needs, work, scored = {}, 0.0, lengths(tokenizer, probes) if probes else []
    for label, stage, learn in stages:
        size = lengths(tokenizer, learn, stage.max_new_tokens if stage.rounds else 0)
        needs[label] = memory(model, stage, size, again)
        work += operations(model, stage, size, scored, again)
    yield from _takes(recipe, needs, work)


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


def lengths(tokenizer, rows: ProbeSet, sampled: int = 0) -> Lengths:
    """Of each row, its prompt held once; with ``sampled``, of chosen and so many tokens more."""
    with warnings.catch_warnings(action="ignore"):
        encoded = encode(tokenizer, rows.only("chosen") if sampled else rows)
    sizes = [(e, sum(map(len, e.responses.values()))) for e in encoded]
    return [(len(e.prompt) + n - len(e.responses) + sampled, n + sampled) for e, n in sizes]


def memory(model, stage: Stage, rows: Lengths, checkpointing: bool = False) -> dict[str, float]:
    """Bytes on the device at the worst moment of a stage, for a batch of its longest rows.

    The parts, and their "peak": the "step" of the optimizer is without activations and logits.
    """
    batch = min(stage.batch_size, len(rows))
    fed = batch * max(fed for fed, _ in rows)  # padded
    predicted = sum(sorted(predicted for _, predicted in rows)[-batch:])
    config, head = model.config.get_text_config(), model.get_output_embeddings().weight
    layers, width, parameters = config.num_hidden_layers, config.hidden_size, model.num_parameters()
    is_bf16, weights = stage.mixed_precision == "bf16", parameters * head.element_size()
    number, states = 2 if is_bf16 else head.element_size(), STATES[stage.optimizer] * weights
    # What a layer keeps of a token: inputs and outputs of two norms, queries, keys (before and
    # after rotation), values, the attention's output, the residual sums; before and after the
    # activation function. With checkpointing: the inputs of all layers, and one layer in full.
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None)
    is_gated = any(name.endswith("gate_proj") for name, _ in model.named_modules())
    kept = 12 * width + (4 if is_gated else 2) * (inner or 4 * width)
    kept = layers * width + kept if checkpointing else layers * kept
    activations = kept * fed * number + is_bf16 * 2 * parameters
    # as they come, their softmax, their gradient
    logits = 3 * predicted * len(head) * max(4, number) * (1.5 if is_bf16 else 1)
    step = weights if states else 0  # what PyTorch's foreach loops hold
    held = {"weights": weights, "gradients": weights, "optimizer": states}
    peak = sum(held.values()) + max(activations + logits, step)
    return {**held, "activations": activations, "logits": logits, "step": step, "peak": peak}


def operations(
    model, stage: Stage, rows: Lengths, probes: Lengths, checkpointing: bool = False
) -> float:
    """Additions and multiplications of a stage in the model's matrices."""
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    body = sum(p.numel() for p in model.base_model.parameters() if p is not table)

    def forward(some: Lengths, head: int = head.numel()) -> float:
        return 2 * sum(body * fed + head * predicted for fed, predicted in some)

    plan = Plan(n_rows=len(rows), **stage.settings())
    update = 3 * forward(rows) + checkpointing * forward(rows, head=0)
    work = update * plan.examples(plan.updates) / len(rows) + plan.probings * forward(probes)
    return (stage.rounds or 1) * (work + stage.get_loss().needs_ref * forward(rows))
