"""What a stage takes: tokens, memory and operations, from the shape of a model and its rows."""

import warnings
from collections.abc import Sequence

from lmdyn.lm.data import ProbeSet
from lmdyn.lm.recipes.recipe import Stage
from lmdyn.lm.tokens import encode

STATES = {"adamw": 2, "rmsprop": 1, "sgd": 0}  # numbers an optimizer keeps for each parameter
Lengths = Sequence[tuple[int, int]]  # tokens fed and tokens predicted, of each row


def lengths(tokenizer, rows: ProbeSet, sampled: int = 0) -> Lengths:
    """Tokens of each row, its prompt held once; with ``sampled``, of chosen and so many more."""
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
    number, states = 2 if is_bf16 else head.element_size(), STATES[stage.optimizer] * weights
    # What a layer keeps of a token: inputs and outputs of two norms, queries, keys (before and
    # after rotation), values, the attention's output, the residual sums; before and after the
    # activation function. Computed twice: the inputs of all layers, and one layer in full.
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

    plan = stage.plan(len(rows))
    update = 3 * forward(rows) + checkpointing * forward(rows, head=0)
    work = update * plan.examples(plan.updates) / len(rows) + plan.probings * forward(probes)
    return (stage.rounds or 1) * (work + stage.get_loss().needs_ref * forward(rows))
