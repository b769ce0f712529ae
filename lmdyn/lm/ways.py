"""Which ways through a model are right for some rows, as tried on them, and log-probs by these."""

import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from lmdyn.lm.batches import SLACK, TOKENS, Batch, Group, collate, fed, pack, plan
from lmdyn.lm.forward import Reweighted, full_logits, hidden, token_logps, undisturbed
from lmdyn.lm.processes import as_forward, is_sharded
from lmdyn.lm.tokens import Encoded

CHUNK = 128  # positions whose logits are there at a time
SHORT = 32  # tokens of the text on which a model's own form is tried
FULL_TOKENS = 512  # in a batch whose logits are made at all positions
_FAILURES = (TypeError, ValueError, RuntimeError, LookupError, AssertionError, AttributeError)


@dataclass(frozen=True)
class Ways:
    """What holds for a model and some rows."""

    head: nn.Module | None  #: makes the logits (…, V) of `hidden`; None if they are made otherwise
    told: bool  #: whether positions can be told
    shared: bool  #: whether responses can share their prompt
    tokens: int  #: the budget of a batch; 1 if each sequence must be alone
    #: number of a group of `plan` → its batch, and its hidden states, or else its logits
    done: dict[int, tuple[Batch, Tensor]] = field(default_factory=dict, repr=False)

    def batches(self, model, encoded: Sequence[Encoded], slack: float = SLACK) -> Iterator[Batch]:
        form = {"tokens": self.tokens, "shared": self.shared, "slack": slack}
        return pack(encoded, device=model.device, **form)

    def required_head(self, model) -> nn.Module:
        """The head; a ValueError for a model whose logits are made otherwise."""
        if self.head is None:
            what = "does more to its logits than its output layer does"
            remedy = "it can be scored, but neither predicted nor finetuned here"
            raise ValueError(f"{type(model).__name__} {what}: {remedy}")
        return self.head


def ways(
    model, encoded: Sequence[Encoded], tokens: int = TOKENS, *, shared=True, as_is=False
) -> Ways:
    """Try the ways through a model on some rows, in the batches that `plan` makes of them.

    The last response of the longest row, the longest sequence and the shortest must get in their
    batch what they get alone. Weights that are all alike, such as a head of zeros or a gate that is
    shut, would prove nothing for other weights, nor for derivatives: hence some noise on them.
    ``as_is`` leaves it out, and keeps what was tried in `Ways.done`. A ValueError for what is no
    causal language model of transformers, and for a row that it cannot read.
    """
    check_fits(model, encoded)
    keep = as_is and not torch.is_autocast_enabled(model.device.type)  # the tries are without
    with undisturbed(model), torch.no_grad():
        weights = {} if is_sharded(model) else _some_noise(model)
        head, told = _own_form(model, weights, encoded, tell=not as_is)
        read, tokens = (hidden, tokens) if head else (full_logits, min(tokens, FULL_TOKENS))
        weights, passes, expected = {} if as_is else weights, Reweighted(model, read), {}
        # Flash and flex attention take no mask of who sees whom.
        shared = shared and model.config._attn_implementation in ("sdpa", "eager")
        for form in (True, False) if shared else (False,):
            groups = plan(encoded, tokens=tokens, shared=form)
            if not as_is:
                some = sorted({i for _, i, *_ in _extremes(groups)})
                groups = plan([encoded[i] for i in some], tokens=tokens, shared=form)
            done = _compared(lambda batch: passes.at(weights, batch), groups, expected, model)
            if done is not None:
                return Ways(head, told, form, tokens, done if keep else {})
            what = f"{type(model).__name__} reads a response beside others otherwise than alone"
            how = "prompts are not shared" if form else "each is read alone"
            warnings.warn(f"{what}: {how}, which takes longer", stacklevel=3)
    return Ways(head, told, False, 1)


def check_kind(model) -> None:
    """Refuse what is no causal language model, or not there as a whole."""
    kind, config = type(model).__name__, getattr(model, "config", None)
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise ValueError(f"{kind} wraps the model: pass its .module")
    if not isinstance(model, nn.Module) or not hasattr(config, "get_text_config"):
        raise ValueError(f"model must be a causal language model of transformers, got {kind}")
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{kind} has an encoder: only a model that goes on with a text is read")
    if any(weight.is_meta for weight in model.parameters()):
        raise ValueError("some weights are offloaded: load the model whole, without offloading")


def check_fits(model, encoded: Sequence[Encoded]) -> None:
    """Refuse a prompt with a response beyond the model's context, or tokens unknown to it."""
    check_kind(model)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or -1
    vocabulary = len(model.get_input_embeddings().weight)
    for i, row in enumerate(encoded):
        for name, ids in row.responses.items():
            prompt = row.own.get(name, row.prompt)
            if 0 < context < len(prompt) + len(ids) - 1:  # the last is not fed
                told = f"rows[{i}]: the prompt ({len(prompt)} tokens) and {name!r} ({len(ids)}) are"
                told = f"{told} longer than the {context} tokens that the model reads"
                raise ValueError(f"{told}: pass a format with max_length={context}")
            if (token := max(*prompt, *ids)) >= vocabulary:
                told = f"rows[{i}], {name!r}: token {token} is not among the model's {vocabulary}"
                raise ValueError(f"{told}: use the tokenizer that belongs to the model")


def _some_noise(model) -> dict[str, Tensor]:
    """Weights whose entries are all equal, made to differ; their signs stay."""
    found, generator = {}, torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if type(weight.detach()) is not Tensor or not weight.is_floating_point():  # packed
            continue
        first = weight.detach().flatten()[:16]
        alike = len(first) and (first == first[0]).all()
        if alike and (weight == first[0]).all():
            noise = torch.rand(weight.shape, generator=generator).to(weight)
            found[name] = torch.where(weight == 0, 0.1 * noise, weight.sign() * (0.1 + noise))
    return found


def _own_form(model, weights: dict, encoded, tell: bool) -> tuple[nn.Module | None, bool]:
    """The head, if it comes last, and, with ``tell``, whether positions can be told."""
    every = [(row, *response) for row in encoded for response in row.responses.items()]
    text = max((row.own.get(n, row.prompt) + ids for row, n, ids in every), key=len)[:-1][:SHORT]
    # Not a multiple of 2, 4, …: attention in blocks would not show there.
    middle, size = min(len(text) - 1, len(text) // 2 | 1), len(model.get_input_embeddings().weight)
    other = text[:middle] + [(token + 1) % size for token in text[middle:]]
    rows = (Encoded(ids[:1], {"": [*ids[1:], 0]}) for ids in (text, other, text[:-1] or text))
    one, two, cut = (collate([(0, row)], model.device) for row in rows)
    whole = Reweighted(model, full_logits)
    logits, error = _try(lambda: whole.at(weights, one))
    kind = type(model).__name__
    if error or logits.ndim != 2 or logits.shape[1] <= max(max(ids) for *_, ids in every):
        what = f"{type(error).__name__}: {error}" if error else "not one for each token and label"
        told = f"{kind} gives no logits of a text ({' '.join(what.split()):.120})"
        raise ValueError(f"{told}: is it a causal language model?") from error
    changed, fewer = (whole.at(weights, x) for x in (two, cut))
    if not all(_close(model, x, logits[: len(x)]) for x in (changed[:middle], fewer)):
        ahead = "looks ahead: its logits at a token depend on those after it or on their number"
        what = ahead if _close(model, whole.at(weights, one), logits) else "is random"
        raise ValueError(f"{kind} {what}, so that it gives no probability of a text")
    table = model.get_input_embeddings().weight  # new tokens may all have the same row of it
    differ = not torch.equal(table[text[middle]], table[other[middle]])
    if differ and logits[middle].isfinite().any() and torch.equal(changed[middle], logits[middle]):
        raise ValueError(f"{kind} is no causal language model: its logits at a token ignore it")
    last = Reweighted(model, lambda m, *given: m.get_output_embeddings()(hidden(m, *given)))

    def is_last(tell_positions: bool, cast: torch.dtype | None) -> bool:
        with torch.autocast(model.device.type, cast, enabled=cast is not None):
            found, _ = _try(lambda: last.at(weights, one, tell_positions))
        return found is not None and _close(model, found, logits, 1e-6)

    # A training loop may have the model's own forward pass in a lower precision.
    for cast in (None, torch.bfloat16, torch.float16):
        if is_last(False, cast):
            return model.get_output_embeddings(), tell and is_last(True, cast)
    return None, False


def _compared(run: Callable, groups: Sequence[Group], expected: dict, model) -> dict | None:
    """The batches of the extreme responses; None if one of them is not read there as alone."""
    done = {}
    for number, i, part, name in _extremes(groups):
        if len(groups[number]) == 1 == len(part.responses):
            continue
        if number not in done:
            batch = collate(groups[number], model.device)
            done[number] = batch, _try(lambda batch=batch: run(batch))[0]
        ids, (batch, states) = part.responses[name], done[number]
        if states is None:
            return None
        if (key := (name, len(ids), *part.prompt, *ids)) not in expected:
            expected[key] = run(collate([(0, Encoded(part.prompt, {name: ids}))], model.device))
        if not _close(model, batch.split(states)[i, name], expected[key]):
            return None
    return done


def _extremes(groups: Sequence[Group]) -> list[tuple[int, int, Encoded, str]]:
    """Group, row, part and type of the farthest response, the longest sequence and the shortest."""
    found = [
        (number, i, part, name)
        for number, group in enumerate(groups)
        for i, part in group
        for name in part.responses
    ]
    sizes = [(fed(part), len(part.responses[name]), len(part.prompt)) for _, _, part, name in found]
    far = max(range(len(found)), key=lambda k: (sizes[k][0], sizes[k][1] > 1, k))
    lengths = [ids + prompt for _, ids, prompt in sizes]
    return [found[k] for k in {far, lengths.index(max(lengths)), lengths.index(min(lengths))}]


def _try(run: Callable[[], Tensor]) -> tuple[Tensor | None, Exception | None]:
    """What it gives, or one of the many errors with which models refuse a mask or positions."""
    try:
        return run(), None
    except torch.cuda.OutOfMemoryError:  # says nothing about the model
        raise
    except _FAILURES as error:
        return None, error


def _close(model, x: Tensor, y: Tensor, tolerance: float | None = None) -> bool:
    """Whether rows (n, d) are equal up to rounding, and in what is not finite.

    In half precision one in five may differ: rounding takes a token now and then to other experts.
    """
    known = {torch.float64: (1e-5, 1), torch.float32: (2e-4, 1)}
    usual, share = known.get(model.dtype, (5e-2, 0.8))
    if x.shape != y.shape or not torch.equal(x.isfinite(), y.isfinite()):
        return False
    x, y = (z.double().nan_to_num(0.0, 0.0, 0.0) for z in (x, y))
    near = (x - y).norm(dim=-1) <= (tolerance or usual) * y.norm(dim=-1).mean()
    return int(near.sum()) >= share * len(near)


class LogProbs(nn.Module):
    """log π(y|x) of the responses that a loss reads, as a module that can be distributed.

    Args:
        keys: what the loss calls a response → its type in the rows.
        bf16: compute in bfloat16, whatever the weights are in.
        spare: types of responses whose tokens in a valley, π_y < ‖π‖², give no gradient.
        found: the `Ways` of the model for these rows; they are tried, if not given.
        per_token: give the log-probs of tokens, padded with zeros to the longest response of all.
    """

    def __init__(
        self, model, encoded, keys, bf16=False, spare=(), found: Ways | None = None, per_token=False
    ):
        super().__init__()
        self.model, self.found = model, found or ways(model, encoded, sys.maxsize)
        self.head = self.found.required_head(model)
        self.encoded, self.keys, self.bf16, self.spare = encoded, keys, bf16, spare
        lengths = {k: [len(row.responses[key]) for row in encoded] for k, key in keys.items()}
        #: response name → (N,) its tokens, EOS included
        self.lengths = {k: torch.tensor(n, device=model.device) for k, n in lengths.items()}
        self.width = max(map(max, lengths.values())) if per_token else 0

    def try_again(self) -> None:
        """Try the ways with the weights of now, unless they are shared out."""
        if not is_sharded(self.model):
            self.found = ways(self.model, self.encoded, sys.maxsize)

    def forward(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Response name → (B,) or (B, T), log-probs of these rows, nats, with their gradient."""
        return as_forward(self.model, self._log_probs, rows)

    def _log_probs(self, rows: Sequence[int]) -> dict[str, Tensor]:
        device, found = self.model.device, {}
        # Sharded, each process must pass as often as the others: in one batch, whatever it pads.
        slack = math.inf if is_sharded(self.model) else SLACK
        # Each weight is used once: a cache would only hold copies of all of them.
        bf16 = {"dtype": torch.bfloat16, "enabled": self.bf16, "cache_enabled": False}
        for batch in self.found.batches(self.model, [self.encoded[i] for i in rows], slack=slack):
            with torch.autocast(device.type, **bf16):
                logits = self.head(hidden(self.model, batch))
            logps = token_logps(logits, batch)
            if self.spare:
                spared = torch.tensor([name in self.spare for _, name in batch.responses])
                parts = (part.to(logps).softmax(-1) for part in logits.detach().split(CHUNK))
                valley = logps.exp() < torch.cat([p.square().sum(-1) for p in parts])
                valley &= spared.to(logps.device)[batch.segment]
                logps = torch.where(valley, logps.detach(), logps)
            found |= batch.split(logps) if self.width else batch.sum(logps)
        if self.width:
            found = {at: pad(x, (0, self.width - len(x))) for at, x in found.items()}
        n = len(rows)
        return {k: torch.stack([found[i, key] for i in range(n)]) for k, key in self.keys.items()}

    @torch.no_grad()
    def all(self, rows: Sequence[int], batch_size: int) -> dict[str, np.ndarray]:
        """Response name → (len(rows),), so many rows at a time."""
        parts = [self(rows[i : i + batch_size]) for i in range(0, len(rows), batch_size)]
        return {k: torch.cat([part[k] for part in parts]).numpy(force=True) for k in self.keys}


@torch.no_grad()
def token_values(
    model, encoded: Sequence[Encoded], read: Callable[[Tensor, Batch, slice], Tensor], tokens=TOKENS
) -> Iterator[tuple[tuple[int, str], np.ndarray]]:
    """Pass over all responses: (row, type) of each, and (T, k) float64 values at its tokens.

    ``read`` makes them, (m, k), of the logits (m, V), which it may overwrite, at a slice of the M
    tokens of a batch. ValueError where one is NaN or +∞.
    """
    found = ways(model, encoded, tokens, as_is=True)
    layer = found.head or nn.Identity()
    for number, group in enumerate(plan(encoded, tokens=found.tokens, shared=found.shared)):
        if number in found.done:
            batch, states = found.done.pop(number)
        else:
            batch = collate(group, model.device)
            states = (hidden if found.head else full_logits)(model, batch)
        parts = [slice(start, start + CHUNK) for start in range(0, len(states), CHUNK)]
        values = torch.cat([read(layer(states[part]), batch, part) for part in parts])
        for (row, name), of in batch.split(values.double().cpu()).items():
            if not (of < torch.inf).all():
                what = f"the model's predictions are not finite for rows[{row}] {name!r}"
                raise ValueError(f"{what}: its weights have diverged, or it needs a wider dtype")
            yield (row, name), of.numpy()
