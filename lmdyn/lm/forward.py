"""What a model makes of batches: hidden states, logits, and the log-probs of tokens."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from lmdyn.lm.batches import Batch
from lmdyn.lm.processes import is_sharded


def token_logps(logits: Tensor, batch: Batch) -> Tensor:
    """(M,) log π of `Batch.target`, nats, in float32 at least, from the logits (M, V)."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return -cross_entropy(logits, batch.target, reduction="none")


def body(model) -> nn.Module:
    """The model below its output layer. Adapters change it in place and only wrap its outside."""
    return (model.get_base_model() if hasattr(model, "get_base_model") else model).base_model


def hidden(model, batch: Batch, tell_positions: bool = False) -> Tensor:
    """(M, d), the final hidden states, after the last norm, at `Batch.source`."""
    states = body(model)(**inputs(model, batch, tell_positions)).last_hidden_state
    return states.flatten(0, 1).index_select(0, batch.source)


def full_logits(model, batch: Batch) -> Tensor:
    """(M, V), the logits at `Batch.source`, made at all B·L: for models whose head is not last."""
    logits = model(**inputs(model, batch)).logits
    if is_sharded(model):
        model.unshard()  # its own pass inside another one has shared its weights out again
    logits = logits[:, -batch.input_ids.shape[1] :]  # those of virtual tokens come before
    return logits.flatten(0, 1).index_select(0, batch.source)


def inputs(model, batch: Batch, tell_positions: bool = False) -> dict:
    """What the model, or its `body`, is called with.

    In the plain form the model's own positions are right, 0, 1, 2, …, and some models take no
    others. With ``tell_positions`` they are told, so that each sequence looks up its own.
    """
    given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if batch.shared or tell_positions:
        given["position_ids"] = batch.position_ids
    if batch.shared and model.config._attn_implementation == "eager":  # adds the mask to scores
        low, mask = torch.finfo(model.dtype).min, batch.attention_mask
        given["attention_mask"] = torch.zeros_like(mask, dtype=model.dtype).masked_fill(~mask, low)
    return {**given, "use_cache": False}


def bar(what: str, unit: str, progress: bool | None, total: int) -> tqdm:
    """A progress bar: shown, hidden, or (None) shown for work of more than ten seconds."""
    delay = 0 if progress else 10
    return tqdm(desc=what, unit=unit, total=total, delay=delay, disable=progress is False)


@contextmanager
def evaluating(model: nn.Module):
    """Eval mode inside; afterwards every module has its own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def undisturbed(model) -> Iterator[None]:
    """Derivatives of the plain function inside, whatever mode the model and its caller are in."""
    autocast = torch.autocast(model.device.type, enabled=False)
    new = hasattr(torch.backends, "fp32_precision")  # since torch 2.9; the old calls may fail then
    matmuls = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul] if new else []
    before = [m.fp32_precision for m in matmuls] if new else torch.get_float32_matmul_precision()
    try:
        new or torch.set_float32_matmul_precision("highest")
        for matmul in matmuls:
            matmul.fp32_precision = "ieee"
        with torch.inference_mode(False), evaluating(model), autocast:
            yield
    except AssertionError as error:  # of a model's own passes
        raise ValueError(f"{type(model).__name__} refuses, in eval mode: {error}") from error
    finally:
        new or torch.set_float32_matmul_precision(before)
        for matmul, precision in zip(matmuls, before, strict=True) if new else ():
            matmul.fp32_precision = "none"  # so that it follows the setting of all, if it did
            if matmul.fp32_precision != precision:
                matmul.fp32_precision = precision


@contextmanager
def forward_mode(model) -> Iterator[None]:
    """Inside, the experts of a mixture are computed one by one: grouped, they have no such mode."""
    before = getattr(model.config, "_experts_implementation", None)
    try:
        before and model.set_experts_implementation("eager")
        yield
    finally:
        before and model.set_experts_implementation(before)


class Reweighted(nn.Module):
    """A pass ``run(part, *inputs)`` through (part of) a model, as a function of its weights."""

    def __init__(self, model: nn.Module, run: Callable = nn.Module.__call__, part=None):
        super().__init__()
        self.part, self.run = model if part is None else part, run
        names = {p: name for name, p in model.named_parameters()}
        # A tied weight has places in several modules; a shared module is one place.
        self.places = {
            f"{path}.{key}": names[p]
            for path, module in self.named_modules()
            for key, p in module.named_parameters(recurse=False)
        }

    def at(self, weights: Mapping[str, Tensor], *inputs) -> Tensor:
        """The pass with these weights, by name; the others are the model's own."""
        given = {place: weights[name] for place, name in self.places.items() if name in weights}
        return functional_call(self, given, inputs, tie_weights=False)

    def forward(self, *inputs) -> Tensor:
        return self.run(self.part, *inputs)
