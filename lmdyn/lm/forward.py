"""What a model makes of batches: hidden states and logits, and which form of batch it takes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lmdyn.lm.batches import TOKENS, Batch, pack
from lmdyn.lm.tokens import Encoded


def batches(model, encoded: Sequence[Encoded], tokens: int = TOKENS) -> Iterator[Batch]:
    """Batches for this model: checked, on its device, the prompt shared where it can be.

    Args:
        model: a Hugging Face causal language model.
        encoded: from `encode`; ``row`` in `Batch.responses` counts them.
        tokens: the budget B·L of a batch. A single response beyond it is a batch of its own.

    Raises:
        ValueError: a response that ends beyond the model's context, or a token it does not know.
    """
    longest = check_fits(model, encoded)
    device = _embedding(model).device
    return pack(encoded, tokens=tokens, shared=can_share(model, longest), device=device)


def hidden(model, batch: Batch) -> Tensor:
    """(M, d), the final hidden states, after the last norm, at `Batch.source`.

    Gradients and forward-mode tangents pass through. The model's mode (dropout) is the caller's.
    """
    states = _unwrap(model).base_model(**_inputs(model, batch)).last_hidden_state
    return states.flatten(0, 1).index_select(0, batch.source)


def head(model) -> nn.Module:
    """The layer that makes logits (…, V) of `hidden`.

    Raises:
        ValueError: the model makes its logits in another way (some scale or cap them afterwards).
    """
    if not head_is_last(model):
        raise ValueError(
            f"{type(model).__name__} does more to its logits than its output layer does: it can "
            "be scored, but neither predicted nor finetuned here"
        )
    return model.get_output_embeddings()


def full_logits(model, batch: Batch) -> Tensor:
    """(M, V), the logits at `Batch.source`, as the model itself makes them: at all B·L positions.

    For models that `head` refuses.
    """
    logits = model(**_inputs(model, batch)).logits
    return logits.flatten(0, 1).index_select(0, batch.source)


def _inputs(model, batch: Batch) -> dict:
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if batch.shared:  # else the default, 0, 1, 2, …, is right, and some models take no other
        inputs["position_ids"] = batch.position_ids
        if model.config._attn_implementation == "eager":  # it adds the mask to its scores
            mask = _embedding(model).new_zeros(batch.attention_mask.shape)
            low = torch.finfo(mask.dtype).min
            inputs["attention_mask"] = mask.masked_fill(~batch.attention_mask, low)
    return {**inputs, "use_cache": False}


@contextmanager
def evaluating(model: nn.Module):
    """Eval mode inside; afterwards every module is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def check_fits(model, encoded: Sequence[Encoded]) -> int:
    """The tokens of the longest prompt with a response, if the model can read them all."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    vocabulary = len(_embedding(model))
    longest = 0
    for i, row in enumerate(encoded):
        for name, ids in row.responses.items():
            together = len(row.prompt) + len(ids)
            longest = max(longest, together)
            if context is not None and together - 1 > context:  # the last is not fed
                raise ValueError(
                    f"rows[{i}]: the prompt ({len(row.prompt)} tokens) and {name!r} ({len(ids)}) "
                    f"are longer than the {context} tokens that the model reads: "
                    f"pass a format with max_length={context}"
                )
            if max(*row.prompt, *ids) >= vocabulary:
                raise ValueError(
                    f"rows[{i}], {name!r}: token {max(*row.prompt, *ids)} is not among the "
                    f"model's {vocabulary}: use the tokenizer that belongs to the model"
                )
    return longest


def can_share(model, longest: int) -> bool:
    """Whether responses of up to ``longest`` tokens, prompt included, can share their prompt.

    The shared form needs attention that obeys a mask and positions that it is told. Recurrent
    layers, ALiBi, or a model that ignores position ids would be silently wrong, so a few tokens
    are compared with the plain form. Windows of attention, which a given mask replaces, only
    show beyond their length.
    """
    config = model.config.get_text_config()
    if model.config._attn_implementation not in ("sdpa", "eager"):
        return False  # flash and flex attention take no such mask
    windows = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    if any(window is not None and window < longest for window in windows):
        return False
    return _checked(model)["shared"]


def head_is_last(model) -> bool:
    """Whether the logits are the output layer applied to the final hidden states, as is usual."""
    return _checked(model)["head"]


_CHECKED: WeakKeyDictionary = WeakKeyDictionary()  # model → attention → what was found


@torch.no_grad()
def _checked(model) -> dict[str, bool]:
    """Compare the ways to hidden states and logits on a few tokens, once for each model."""
    found = _CHECKED.setdefault(model, {})
    attention = model.config._attn_implementation
    if attention not in found:
        weight = _embedding(model)
        ids = [n * 7919 % len(weight) for n in range(1, 13)]
        encoded = [Encoded(ids[:4], {"first": ids[4:8], "second": ids[8:]})]
        (plain,) = pack(encoded, shared=False, device=weight.device)
        (shared,) = pack(encoded, shared=True, device=weight.device)
        # The comparison is about the model, whatever precision the caller is training in.
        with evaluating(model), torch.autocast(weight.device.type, enabled=False):
            states = hidden(model, plain)
            found[attention] = {
                "head": _ends_in_head(model, plain, states),
                "shared": _shares(model, shared, states),
            }
    return found[attention]


def _ends_in_head(model, batch: Batch, states: Tensor) -> bool:
    """Whether the output layer reads `hidden` and what it gives are the logits."""
    layer, seen = model.get_output_embeddings(), []
    if layer is None:
        return False
    hook = layer.register_forward_hook(lambda _, inputs, output: seen.append((*inputs, output)))
    try:
        logits = full_logits(model, batch)
    finally:
        hook.remove()
    reads, gives = (x.flatten(0, 1).index_select(0, batch.source) for x in seen[0])
    # A training loop may run the model's own forward pass in a lower precision: hence the slack.
    return _close(reads, states, 5e-2) and _close(gives, logits, 1e-6)


def _shares(model, batch: Batch, states: Tensor) -> bool:
    tolerance = {torch.float64: 1e-5, torch.float32: 1e-3}.get(states.dtype, 5e-2)
    try:
        return _close(hidden(model, batch), states, tolerance)
    except Exception:  # a model may refuse such a mask in any way it likes
        return False


def _close(x: Tensor, y: Tensor, tolerance: float) -> bool:
    scale = float(y.nan_to_num().abs().max())
    return torch.allclose(x.to(y.dtype), y, rtol=0, atol=tolerance * scale, equal_nan=True)


def _embedding(model) -> Tensor:
    """The input embedding (V, d): where the model begins, so its device and precision count."""
    return model.get_input_embeddings().weight


def _unwrap(model):
    """A model with adapters wraps the one that it adapts in place."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
