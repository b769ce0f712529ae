"""What a model makes of batches: hidden states, logits, and the log-probs of responses."""

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from lmdyn.lm.batches import SLACK, TOKENS, Batch, pack
from lmdyn.lm.processes import as_forward, is_sharded
from lmdyn.lm.tokens import Encoded

CHUNK = 128  # positions whose logits are there at a time


class LogProbs(nn.Module):
    """log π(y|x) of the responses that a loss reads, as a module that can be distributed.

    Args:
        model: a Hugging Face causal language model.
        encoded: the N rows.
        keys: what the loss calls a response → its type in the rows.
        bf16: compute in bfloat16, whatever the weights are in.
        spare: types of responses whose tokens in a valley, π_y < ‖π‖², give no gradient.

    Attributes:
        lengths: response name → (N,) its tokens, EOS included.
    """

    def __init__(self, model, encoded: Sequence[Encoded], keys: Mapping, bf16=False, spare=()):
        super().__init__()
        self.model, self.head = model, head(model)
        self.encoded, self.keys, self.bf16, self.spare = encoded, keys, bf16, spare
        self.shared = can_share(model, check_fits(model, encoded)) and len(keys) > 1
        lengths = {k: [len(row.responses[key]) for row in encoded] for k, key in keys.items()}
        self.lengths = {k: torch.tensor(n, device=model.device) for k, n in lengths.items()}

    def forward(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Response name → (B,), the log-probs of these rows, nats, with their gradient."""
        return as_forward(self.model, self._log_probs, rows)

    def _log_probs(self, rows: Sequence[int]) -> dict[str, Tensor]:
        device, found = self.model.device, {}
        # Sharded, each process must pass as often as the others: in one batch, whatever it pads.
        slack = math.inf if is_sharded(self.model) else SLACK
        packed = {"tokens": sys.maxsize, "shared": self.shared, "device": device, "slack": slack}
        # Each weight is used once: a cache would only hold copies of all of them.
        bf16 = {"dtype": torch.bfloat16, "enabled": self.bf16, "cache_enabled": False}
        for batch in pack([self.encoded[i] for i in rows], **packed):
            with torch.autocast(device.type, **bf16):
                logits = self.head(hidden(self.model, batch))
            logps = token_logps(logits, batch)
            if self.spare:
                logps = torch.where(self._is_spared(logits, logps, batch), logps.detach(), logps)
            found |= batch.sum(logps)
        n = len(rows)
        return {k: torch.stack([found[i, key] for i in range(n)]) for k, key in self.keys.items()}

    @torch.no_grad()
    def _is_spared(self, logits: Tensor, logps: Tensor, batch: Batch) -> Tensor:
        """(M,), which tokens of the responses to spare have π_y < ‖π‖²."""
        parts = logits.split(CHUNK)
        prob_sq = torch.cat([part.to(logps).softmax(-1).square().sum(-1) for part in parts])
        spared = torch.tensor([name in self.spare for _, name in batch.responses])
        return spared.to(logps.device)[batch.segment] & (logps.exp() < prob_sq)

    @torch.no_grad()
    def all(self, rows: Sequence[int], batch_size: int) -> dict[str, np.ndarray]:
        """Response name → (len(rows),), so many rows at a time."""
        parts = [self(rows[i : i + batch_size]) for i in range(0, len(rows), batch_size)]
        return {k: torch.cat([part[k] for part in parts]).numpy(force=True) for k in self.keys}


def batches(model, encoded: Sequence[Encoded], tokens: int = TOKENS) -> Iterator[Batch]:
    """`pack` for this model: checked, on its device, the prompt shared where it can be."""
    shared = can_share(model, check_fits(model, encoded))
    return pack(encoded, tokens=tokens, shared=shared, device=model.device)


@torch.no_grad()
def token_values(
    model, encoded: Sequence[Encoded], read: Callable[[Tensor, Batch, slice], Tensor], tokens=TOKENS
) -> Iterator[tuple[tuple[int, str], np.ndarray]]:
    """Pass over all responses: (row, type) of each, and (T, k) float64 values at its tokens.

    ``read`` makes them, (m, k), of the logits (m, V), which it may overwrite, at a slice of the M
    tokens of a batch. ValueError where one is not finite.
    """
    states_of, layer = hidden, model.get_output_embeddings()
    if not head_is_last(model):  # logits at all positions, so fewer at a time
        states_of, layer, tokens = full_logits, nn.Identity(), min(tokens, 512)
    for batch in batches(model, encoded, tokens):
        states = states_of(model, batch)
        parts = [slice(start, start + CHUNK) for start in range(0, len(states), CHUNK)]
        found = torch.cat([read(layer(states[part]), batch, part) for part in parts])
        for (row, name), values in batch.split(found.double().cpu()).items():
            if not values.isfinite().all():
                what = f"the model's predictions are not finite for rows[{row}] {name!r}"
                raise ValueError(f"{what}: its weights have diverged, or it needs a wider dtype")
            yield (row, name), values.numpy()


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


def head(model) -> nn.Module:
    """The layer that makes logits (…, V) of `hidden`; a ValueError if they are made otherwise."""
    if not head_is_last(model):
        what = "does more to its logits than its output layer does"
        remedy = "it can be scored, but neither predicted nor finetuned here"
        raise ValueError(f"{type(model).__name__} {what}: {remedy}")
    return model.get_output_embeddings()


def full_logits(model, batch: Batch) -> Tensor:
    """(M, V), the logits at `Batch.source`, made at all B·L: for models that `head` refuses."""
    logits = model(**inputs(model, batch)).logits
    return logits.flatten(0, 1).index_select(0, batch.source)


def inputs(model, batch: Batch, tell_positions: bool = False) -> dict:
    """What the model, or its `body`, is called with.

    In the plain form the model's own positions are right, 0, 1, 2, …, and some models take no
    others. With ``tell_positions`` those that do are told, so that each sequence looks up its own.
    """
    given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if batch.shared or (tell_positions and _checked(model)["shared"]):
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
    with torch.inference_mode(False), evaluating(model), autocast:
        yield


class Reweighted(nn.Module):
    """A pass through a model as a function of its weights.

    Args:
        model: whose ``named_parameters`` name the weights.
        run: the pass, ``run(part, *inputs)``.
        part: the module that is passed through: the model by default.
    """

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


def check_fits(model, encoded: Sequence[Encoded]) -> int:
    """The tokens of the longest prompt with a response; ValueError if the model cannot read one."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    vocabulary, longest = len(model.get_input_embeddings().weight), 0
    for i, row in enumerate(encoded):
        for name, ids in row.responses.items():
            length, token = len(row.prompt) + len(ids), max(*row.prompt, *ids)
            longest = max(longest, length)
            if context is not None and length - 1 > context:  # the last is not fed
                raise ValueError(
                    f"rows[{i}]: the prompt ({len(row.prompt)} tokens) and {name!r} ({len(ids)}) "
                    f"are longer than the {context} tokens that the model reads: "
                    f"pass a format with max_length={context}"
                )
            if token >= vocabulary:
                raise ValueError(
                    f"rows[{i}], {name!r}: token {token} is not among the model's {vocabulary}: "
                    "use the tokenizer that belongs to the model"
                )
    return longest


def can_share(model, longest: int) -> bool:
    """Whether responses of up to ``longest`` tokens, prompt included, can share their prompt.

    The shared form needs attention that obeys a mask and positions that it is told. Recurrent
    layers or ALiBi would be silently wrong, so a few tokens are compared with the plain form.
    Windows of attention, which a given mask replaces, only show beyond their length.
    """
    config = model.config.get_text_config()
    if model.config._attn_implementation not in ("sdpa", "eager"):
        return False  # flash and flex attention take no such mask
    windows = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return min(window or longest for window in windows) >= longest and _checked(model)["shared"]


def head_is_last(model) -> bool:
    """Whether the logits are the output layer applied to the final hidden states, as is usual."""
    return _checked(model)["head"]


_CHECKED: WeakKeyDictionary = WeakKeyDictionary()  # model → attention → what was found


@torch.no_grad()
def _checked(model) -> dict[str, bool]:
    """Compare the ways to hidden states and logits on a few tokens, once for each model."""
    found, attention = _CHECKED.setdefault(model, {}), model.config._attn_implementation
    if attention in found:
        return found[attention]
    ids = [n * 7919 % len(model.get_input_embeddings().weight) for n in range(1, 13)]
    encoded = [Encoded(ids[:4], {"first": ids[4:8], "second": ids[8:]})]
    (plain,), (shared,) = (pack(encoded, shared=s, device=model.device) for s in (False, True))
    # The comparison is about the model, whatever precision the caller is training in.
    with evaluating(model), torch.autocast(model.device.type, enabled=False):
        states = hidden(model, plain)
        is_last = _ends_in_head(model, plain, states)
        tolerance = {torch.float64: 1e-5, torch.float32: 1e-3}.get(states.dtype, 5e-2)
        try:
            same = _close(hidden(model, shared), states, tolerance)
        except torch.cuda.OutOfMemoryError:  # says nothing about the model
            raise
        except (TypeError, ValueError, RuntimeError, IndexError, AssertionError):
            same = False  # the many ways in which models refuse such a mask or positions
    return found.setdefault(attention, {"head": is_last, "shared": same})


def _ends_in_head(model, batch: Batch, states: Tensor) -> bool:
    """Whether the output layer reads `hidden` and what it gives are the logits."""
    layer, seen = model.get_output_embeddings(), []
    if layer is None:
        return False
    with layer.register_forward_hook(lambda _, given, output: seen.extend((*given, output))):
        logits = full_logits(model, batch)
    reads, gives = (x.flatten(0, 1).index_select(0, batch.source) for x in seen)
    # A training loop may run the model's own forward pass in a lower precision: hence the slack.
    return _close(reads, states, 5e-2) and _close(gives, logits, 1e-6)


def _close(x: Tensor, y: Tensor, tolerance: float) -> bool:
    scale = float(y.nan_to_num().abs().max())
    return torch.allclose(x.to(y.dtype), y, rtol=0, atol=tolerance * scale, equal_nan=True)
