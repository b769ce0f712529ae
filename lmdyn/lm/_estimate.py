"""What a recipe will do and take, before it is run: updates, memory, time."""

import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from lmdyn.lm import models
from lmdyn.lm.data import ProbeSet
from lmdyn.lm.recipe import Recipe, Stage
from lmdyn.lm.tokens import Encoded, encode

STATES = {"adamw": 2, "rmsprop": 1, "sgd": 0}  # numbers an optimizer keeps for each parameter
SHARE = 0.5  # of the matrix rate that training reaches; small models reach less
CHARACTERS = 4  # in a token, where there is no tokenizer to ask


@dataclass(frozen=True)
class Shape:
    """What the costs of a model depend on.

    Attributes:
        parameters: all of them.
        body: those that every token is multiplied with.
        head: those of the output layer, (V, d).
        vocabulary: V.
        layers: how many.
        kept: numbers that a layer keeps of each token for the backward pass.
        width: d.
        itemsize: bytes of a parameter.
    """

    parameters: int
    body: int
    head: int
    vocabulary: int
    layers: int
    kept: int
    width: int
    itemsize: int


@dataclass(frozen=True)
class Memory:
    """Bytes on the device at the worst moment of a stage; `step` is only there while the rest of
    the last three is not."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    step: float

    @property
    def peak(self) -> float:
        """The most at a time: in the backward pass, or in the optimizer's step."""
        held = self.weights + self.gradients + self.optimizer
        return held + max(self.activations + self.logits, self.step)


def empty(name: str, dtype: str) -> tuple[nn.Module, object]:
    """(model without weights, tokenizer or None), from a configuration alone.

    Raises:
        OSError: the configuration is neither in a folder, nor cached, nor on a hub in reach.
    """
    if name in models.NAMES:  # at hand anyway
        return models.load(name, "cpu", dtype)
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except OSError as error:
        raise models._explained(name, error) from None
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.tie_weights()  # emptying them has parted them
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        tokenizer = tokenizer if tokenizer("a word")["input_ids"] else None  # an empty one
    except Exception:  # absent ones fail in many ways; lengths are guessed then
        tokenizer = None
    return model, tokenizer


def shape(model) -> Shape:
    """The shape of a model, with or without weights."""
    config = model.config.get_text_config()
    table = model.get_input_embeddings().weight
    head = model.get_output_embeddings().weight
    d = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * d
    is_gated = any(name.endswith("gate_proj") for name, _ in model.named_modules())
    return Shape(
        parameters=sum(p.numel() for p in model.parameters()),
        body=sum(p.numel() for p in model.base_model.parameters() if p is not table),
        head=head.numel(),
        vocabulary=len(head),
        layers=config.num_hidden_layers,
        # Inputs and outputs of two norms, queries, keys (before and after rotation), values, the
        # attention's output, the residual sums; before and after the activation function.
        kept=12 * d + (4 if is_gated else 2) * inner,
        width=d,
        itemsize=table.element_size(),
    )


def lengths(tokenizer, rows: ProbeSet) -> list[tuple[int, int]]:
    """(tokens fed, tokens predicted) of each row, its prompt held once."""
    with warnings.catch_warnings(action="ignore"):  # of what is cut: finetune warns
        encoded = encode(tokenizer or _Guess(), rows)
    return [_length(row) for row in encoded]


def memory(stage: Stage, shape: Shape, rows: Sequence[tuple[int, int]], recipe: Recipe) -> Memory:
    """Bytes that a stage needs for a batch of its longest rows."""
    batch = min(stage.batch_size, len(rows))
    fed = batch * max(fed for fed, _ in rows)  # padded
    predicted = sum(sorted(predicted for _, predicted in rows)[-batch:])
    weights = shape.parameters * shape.itemsize
    is_bf16 = recipe.mixed_precision == "bf16"
    number = 2 if is_bf16 else shape.itemsize
    layers = shape.layers * shape.kept
    if recipe.gradient_checkpointing:  # the inputs of all layers, and one layer in full
        layers = shape.layers * shape.width + shape.kept
    states = STATES[stage.optimizer]
    return Memory(
        weights=weights,
        gradients=weights,
        optimizer=states * weights,
        activations=layers * fed * number + is_bf16 * 2 * shape.parameters,
        # as they come, their softmax, their gradient
        logits=3 * predicted * shape.vocabulary * max(4, number) * (1.5 if is_bf16 else 1),
        step=weights if states else 0.0,  # what PyTorch's foreach loops hold on a GPU
    )


def operations(
    stage: Stage,
    shape: Shape,
    rows: Sequence[tuple[int, int]],
    probes: Sequence[tuple[int, int]],
    recipe: Recipe,
) -> float:
    """Additions and multiplications of a stage in the model's matrices."""

    def forward(some) -> float:
        fed, predicted = (sum(n) for n in zip(*some, strict=True)) if some else (0, 0)
        return 2 * (shape.body * fed + shape.head * predicted)

    plan = stage.plan(len(rows), recipe.seed, recipe.mixed_precision)
    passes = plan.examples(plan.updates) / len(rows)
    again = 2 * shape.body * sum(n for n, _ in rows) if recipe.gradient_checkpointing else 0
    reference = forward(rows) if stage.get_loss().needs_ref else 0
    scored = probings(stage, len(rows)) * forward(probes)
    rounds = stage.rounds or 1
    return rounds * (passes * (3 * forward(rows) + again) + reference + scored)


def probings(stage: Stage, n_rows: int) -> int:
    """How often the probes are scored, in a round if there are rounds."""
    plan = stage.plan(n_rows)
    return math.ceil(plan.updates / (plan.probe_every or plan.per_epoch)) + 1


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product, measured within a second."""
    n = 512 if device.type == "cpu" else 8192
    a = torch.randn(n, n, device=device).to(dtype)
    best = math.inf
    for _ in range(4):  # the first one warms up
        began = time.perf_counter()
        float((a @ a)[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - began)
        if best > 0.25:  # a CPU without units for this precision
            break
    return 2 * n**3 / best


def _length(row: Encoded) -> tuple[int, int]:
    responses = [len(ids) for ids in row.responses.values()]
    return len(row.prompt) + sum(responses) - len(responses), sum(responses)


class _Guess:
    """A tokenizer that only counts."""

    eos_token_id = -1
    eos_token = ""

    def __call__(self, text: str, add_special_tokens: bool = False) -> dict[str, list[int]]:
        return {"input_ids": [0] * math.ceil(len(text) / CHARACTERS)}
