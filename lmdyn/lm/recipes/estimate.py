"""What a recipe will do and take, in words, before it is run: updates, memory, disk, time."""

import math
import warnings
from collections.abc import Iterator, Sequence
from datetime import timedelta

import torch
from tokenizers import Regex, Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from torch.utils.benchmark import Timer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from lmdyn.lm import models
from lmdyn.lm.data import ProbeSet
from lmdyn.lm.recipes.schema import Recipe, Stage
from lmdyn.lm.settings import Plan
from lmdyn.lm.tokens import encode

STATES = {"adamw": 2, "rmsprop": 1, "sgd": 0}  # numbers an optimizer keeps for each parameter
SHARE = 0.5  # of the matrix rate that training reaches; small models reach less
CHARACTERS = 4  # in a token, where there is no tokenizer to ask
Lengths = Sequence[tuple[int, int]]  # tokens fed and tokens predicted, of each row


def dry_run(recipe: Recipe) -> str:
    """Rows, probes and updates of a recipe, with estimates of memory, disk and time.

    Nothing is trained; of a model on the hub the configuration and the tokenizer are read, no
    weights. What cannot be known here is said, not refused.
    """
    lines = [f"{recipe.name}: {recipe.about}"]
    try:
        lines.extend(_plan(recipe))
    except (ValueError, OSError, ImportError) as error:
        lines.append(f"unknown from here on: {str(error).splitlines()[0]}")
    return "\n".join([*lines, "Memory and time are estimates. Nothing was trained."])


def _plan(recipe: Recipe) -> Iterator[str]:
    rows, probes = recipe.load_rows(), recipe.load_probe_rows()
    yield f"rows      {recipe.data.source}: {len(rows)}"
    if probes:
        what = f"{len(probes)} prompts × {len(probes.types)} types"
        yield f"probes    {recipe.probes.source or recipe.data.source}: {what}"
    learned = [stage.rows(rows) for stage in recipe.stages]
    labels = [f"{number}-{stage.name}" for number, stage in enumerate(recipe.stages)]
    for label, stage, learn in zip(labels, recipe.stages, learned, strict=True):
        plan, batch = stage.plan(len(learn)), stage.batch_size * stage.accumulate
        rounds = f"{stage.rounds} rounds of " if stage.rounds else ""
        often = f", scored {_probings(plan)} times" if probes else ""
        yield (
            f"{label:<9} {stage.get_loss()!r}, {rounds}{plan.updates} updates of {batch} rows "
            f"({plan.examples(plan.updates)} examples of {len(learn)} rows){often}"
        )
    model, tokenizer = _empty(recipe)
    size = f"{model.num_parameters() / 1e6:,.1f}M parameters"
    yield f"model     {recipe.model}, {recipe.dtype}; {size}"
    if tokenizer is None:
        yield f"{'':<10}without its tokenizer a token is taken for {CHARACTERS} characters"
    scored, again = lengths(tokenizer, probes) if probes else [], recipe.gradient_checkpointing
    peaks, work = {}, 0.0
    for label, stage, learn in zip(labels, recipe.stages, learned, strict=True):
        size = lengths(tokenizer, learn, stage.max_new_tokens if stage.rounds else 0)
        peaks[label] = memory(model, stage, size, again)
        work += operations(model, stage, size, scored, again)
    yield from _takes(recipe, peaks, work)


def _takes(recipe: Recipe, peaks: dict[str, dict], work: float) -> Iterator[str]:
    """Memory, disk and time."""
    device = models._device(recipe.device)
    label, most = max(peaks.items(), key=lambda of: of[1]["peak"])
    gb = {name: f"{size / 1e9:.2f}" for name, size in most.items()}
    parts = ", ".join(f"{name} {size}" for name, size in gb.items() if name != "peak")
    there = ""
    if device.type == "cuda":
        there = f", of {torch.cuda.mem_get_info(device)[0] / 1e9:.1f} GB free on this GPU"
    yield f"memory    about {gb['peak']} GB ({parts}), in {label}{there}"
    saved = (most["weights"] + most["optimizer"]) / 1e9
    yield f"disk      about {saved:.2f} GB a checkpoint, {gb['weights']} GB a finished stage"
    is_bf16 = any(stage.mixed_precision == "bf16" for stage in recipe.stages)
    rate = _matrix_rate(device, torch.bfloat16 if is_bf16 else getattr(torch, recipe.dtype))
    duration = timedelta(seconds=math.ceil(work / (rate * SHARE)))
    sampling = ", sampling not counted" if any(stage.rounds for stage in recipe.stages) else ""
    yield (
        f"time      about {duration}{sampling}: {work:.2e} operations "
        f"at {SHARE:.0%} of the {rate / 1e9:,.0f} GFLOP/s that a matrix product reaches on this "
        f"{device.type}"
    )


def _matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product."""
    n = 512 if device.type == "cpu" else 8192
    a = torch.randn(n, n, device=device).to(dtype)
    timer = Timer("a @ a", globals={"a": a}, num_threads=torch.get_num_threads())
    return 2 * n**3 / timer.blocked_autorange(min_run_time=0.1).median


def _empty(recipe: Recipe):
    """(model without weights, tokenizer or None), from a configuration alone."""
    name = recipe.model
    if name in models.NAMES:  # at hand anyway
        return models.load(name, "cpu", recipe.dtype)
    config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, recipe.dtype))
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception:  # a tokenizer that is not there fails in many ways
        return model, None
    return model, tokenizer if tokenizer("a word")["input_ids"] else None  # or an empty one


def lengths(tokenizer, rows: ProbeSet, sampled: int = 0) -> Lengths:
    """Tokens fed and predicted of each row, its prompt held once; with ``sampled``, of its chosen
    response and one of so many tokens. Without a tokenizer they are guessed."""
    if tokenizer is None:  # one that cuts a text into pieces
        pieces = Tokenizer(WordLevel({"?": 0, "": 1}, unk_token="?"))
        cut = Regex(f"(?m:.{{1,{CHARACTERS}}})")
        pieces.pre_tokenizer = pre_tokenizers.Split(cut, "isolated")
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces, unk_token="?", eos_token="")
    with warnings.catch_warnings(action="ignore"):  # of what is cut: finetune warns
        encoded = encode(tokenizer, rows.only("chosen") if sampled else rows)
    sizes = [(e, sum(map(len, e.responses.values()))) for e in encoded]
    return [(len(e.prompt) + n - len(e.responses) + sampled, n + sampled) for e, n in sizes]


def memory(model, stage: Stage, rows: Lengths, checkpointing: bool = False) -> dict[str, float]:
    """Bytes on the device at the worst moment of a stage, for a batch of its longest rows.

    The parts, and their "peak"; those of the optimizer's "step" are taken while activations and
    logits are not there. The model may be without weights.
    """
    batch = min(stage.batch_size, len(rows))
    fed = batch * max(fed for fed, _ in rows)  # padded
    predicted = sum(sorted(predicted for _, predicted in rows)[-batch:])
    config, head = model.config.get_text_config(), model.get_output_embeddings().weight
    layers, width, parameters = config.num_hidden_layers, config.hidden_size, model.num_parameters()
    is_bf16, weights = stage.mixed_precision == "bf16", parameters * head.element_size()
    number = 2 if is_bf16 else head.element_size()
    # What a layer keeps of a token: inputs and outputs of two norms, queries, keys (before and
    # after rotation), values, the attention's output, the residual sums; before and after the
    # activation function. Computed twice: the inputs of all layers, and one layer in full.
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None)
    is_gated = any(name.endswith("gate_proj") for name, _ in model.named_modules())
    kept = 12 * width + (4 if is_gated else 2) * (inner or 4 * width)
    kept = layers * width + kept if checkpointing else layers * kept
    held = {
        "weights": weights,
        "gradients": weights,
        "optimizer": STATES[stage.optimizer] * weights,
    }
    activations = kept * fed * number + is_bf16 * 2 * parameters
    # as they come, their softmax, their gradient
    logits = 3 * predicted * len(head) * max(4, number) * (1.5 if is_bf16 else 1)
    step = weights if STATES[stage.optimizer] else 0  # what PyTorch's foreach loops hold
    peak = sum(held.values()) + max(activations + logits, step)
    return {**held, "activations": activations, "logits": logits, "step": step, "peak": peak}


def operations(
    model, stage: Stage, rows: Lengths, probes: Lengths, checkpointing: bool = False
) -> float:
    """Additions and multiplications of a stage in the model's matrices."""
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    body = sum(p.numel() for p in model.base_model.parameters() if p is not table)

    def forward(some: Lengths) -> float:
        return 2 * sum(body * fed + head.numel() * predicted for fed, predicted in some)

    plan = stage.plan(len(rows))
    passes = plan.examples(plan.updates) / len(rows)
    again = 2 * body * sum(fed for fed, _ in rows) if checkpointing else 0
    reference = forward(rows) if stage.get_loss().needs_ref else 0
    work = passes * (3 * forward(rows) + again) + reference + _probings(plan) * forward(probes)
    return (stage.rounds or 1) * work


def _probings(plan: Plan) -> int:
    """How often the probes are scored, in a round if there are rounds."""
    return sum(map(plan.is_probed, range(plan.updates + 1)))
