"""Gradients of sequence log-probs, layer by layer, in the form in which they take least room.

For a weight W used as y = x Wᵀ, the gradient of log π(y) for one response is a sum over tokens
Σ_t g_t ⊗ x_t of output gradients and inputs: what a forward and a backward pass hold anyway. All
responses of a batch share these passes, as each sequence is a row of its own. Inner products
⟨∇ log π(y_u), ∇ log π(y_o)⟩ are then taken one weight at a time.
"""

import inspect
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lmdyn.kernel.factors import NotStructured
from lmdyn.kernel.trace import Call, Trace, record
from lmdyn.lm import forward
from lmdyn.lm._inner import Block, Piece, widen
from lmdyn.lm.forward import Batch
from lmdyn.lm.tokens import Encoded

# Tokens of one forward and backward pass, padding included: what autograd keeps meanwhile is
# several times what stays.
PASS_TOKENS = 512


class Gradients:
    """Gradients of log π(y) for the responses of a model, and their inner products.

    A parameter is *structured* if all its uses are of a known form and its rows can be told apart
    by response. That is found out from the autograd graph and from a comparison with plain
    autograd on a few tokens. The others are *generic*: one backward pass a response, flattened.

    Args:
        model: a causal language model in eval mode.
        sample: two encoded rows with one short response each, to compare on.
    """

    def __init__(self, model: nn.Module, sample: Sequence[Encoded]):
        self.model = model
        self.params = [p for p in model.parameters() if p.requires_grad]
        if not self.params:
            raise ValueError(
                "no parameter of the model has requires_grad: there is nothing to learn"
            )
        self.device = model.get_input_embeddings().weight.device
        self.generic: set[Tensor] = set()
        while True:
            try:
                self.generic |= self._wrong(sample)
                break
            except NotStructured as error:
                self.generic |= error.params

    def blocks(self, encoded: Sequence[Encoded], limit: float) -> Iterator[Block]:
        """All responses, in blocks that hold about ``limit`` bytes, or one pass at least."""
        block, grown = Block(), 0
        tokens = 1 if self.generic else PASS_TOKENS  # generic gradients come one by one anyway
        for batch in forward.pack(encoded, tokens=tokens, shared=False, device=self.device):
            if block.responses and block.nbytes + grown > limit:
                yield block
                block = Block()
            before = block.nbytes
            self._add(block, batch)
            grown = block.nbytes - before
        if block.responses:
            yield block

    def _add(self, block: Block, batch: Batch) -> None:
        first = len(block.responses)
        with torch.enable_grad():
            seen = record(lambda: self._logps(batch), set(self.params) - self.generic)
            if seen.unseen:
                raise NotStructured(seen.unseen)
            if not seen.logits.requires_grad:
                raise ValueError("the log-probs do not depend on any parameter with requires_grad")
            if seen.calls:
                self._structured(block, seen, batch, first)
            if self.generic:
                self._generic(block, seen.logits)
        block.responses += batch.responses
        block.logps += seen.logits.tolist()

    def _logps(self, batch: Batch) -> Tensor:
        """(B,): log π(y|x) of each sequence."""
        if forward.head_is_last(self.model):
            logits = forward.head(self.model)(self._hidden(batch))
        else:
            logits = forward.full_logits(self.model, batch)
        if logits.dtype.itemsize < 4:
            logits = logits.float()
        tokens = -cross_entropy(logits, batch.target, reduction="none")
        return tokens.new_zeros(len(batch.responses)).index_add(0, batch.segment, tokens)

    def _hidden(self, batch: Batch) -> Tensor:
        """As `forward.hidden`, but positions are told: by default the sequences share one row."""
        base = forward.body(self.model)
        inputs = forward.inputs(self.model, batch)
        if "position_ids" in inspect.signature(base.forward).parameters:
            inputs["position_ids"] = batch.position_ids
        states = base(**inputs).last_hidden_state
        return states.flatten(0, 1).index_select(0, batch.source)

    def _structured(self, block: Block, seen: Trace, batch: Batch, first: int) -> None:
        edges = [call.edge for call in seen.calls]
        grads = torch.autograd.grad(
            seen.logits.sum(), edges, retain_graph=bool(self.generic), materialize_grads=True
        )
        sums: dict[Tensor, Tensor] = {}
        with torch.no_grad():
            for call, grad in zip(seen.calls, grads, strict=True):
                grad = call.channels_last(grad)
                features = grad if call.weight is None else call.features().detach()
                rows = _rows(call, features.shape[:-1], grad.shape[:-1], batch)
                if rows is None:
                    raise NotStructured({p for p in (call.weight, call.bias) if p is not None})
                grad, features = grad.flatten(0, -2), features.flatten(0, -2)
                if call.bias is not None:
                    _sum(sums, call.bias, widen(grad), rows)
                if call.weight is None:
                    continue
                if call.kind == "scale":
                    _sum(sums, call.weight, widen(grad) * features, rows)
                    continue
                if call.kind == "lookup":
                    features = features.squeeze(-1)
                left, right = (grad, features) if call.kind == "matrix" else (features, grad)
                block.keep(left, right)
                block.pieces[call.weight] += [
                    Piece(first + b, left[part], right[part]) for b, part in enumerate(rows)
                ]
        for param, total in sums.items():
            block.keep(total)
            block.vectors[param] += total.unbind()

    def _generic(self, block: Block, logps: Tensor) -> None:
        params = [p for p in self.params if p in self.generic]
        for logp in logps:
            grads = torch.autograd.grad(
                logp, params, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            for param, grad in zip(params, grads, strict=True):
                block.keep(grad)
                block.vectors[param].append(widen(grad).flatten())

    def _wrong(self, sample: Sequence[Encoded]) -> set[Tensor]:
        """The structured parameters whose gradients differ from those of plain autograd."""
        together, wrong = Block(), set()
        (batch,) = forward.pack(sample, shared=False, device=self.device)
        self._add(together, batch)
        for number, (row, _) in enumerate(batch.responses):
            (alone,) = forward.pack([sample[row]], shared=False, device=self.device)
            with torch.enable_grad():
                logp = self._logps(alone).sum()
                grads = torch.autograd.grad(
                    logp, self.params, allow_unused=True, materialize_grads=True
                )
            # A gradient that is zero in exact arithmetic is all rounding: hence the floor.
            floor = 1e-4 * max(float(grad.norm()) for grad in grads)
            for param, grad in zip(self.params, grads, strict=True):
                if param not in self.generic:
                    error = float((together.gradient(param, number) - grad).norm())
                    if not error <= 0.02 * float(grad.norm()) + floor:
                        wrong.add(param)
        return wrong


def _rows(call: Call, inputs: torch.Size, outputs: torch.Size, batch: Batch) -> list[slice] | None:
    """The rows of each sequence in the use of a weight; None if they cannot be told."""
    if call.groups > 1 or inputs.numel() != outputs.numel():
        return None
    if call.weight is not None and call.weight.ndim != 2 and call.kind != "scale":
        return None
    n, length = batch.input_ids.shape
    if outputs[0] == n or tuple(outputs) == (n * length,):
        each = outputs.numel() // n
        used = [each] * n
        if outputs[0] != n or outputs[1:2] == (length,):  # padding has no gradient: leave it out
            used = [each // length * fed for fed in batch.attention_mask.sum(1).tolist()]
        return [slice(i * each, i * each + rows) for i, rows in enumerate(used)]
    if tuple(outputs) == tuple(batch.source.shape):
        ends = torch.bincount(batch.segment, minlength=n).cumsum(0).tolist()
        return [slice(i, j) for i, j in zip([0, *ends[:-1]], ends, strict=True)]
    return None


def _sum(sums: dict, param: Tensor, values: Tensor, rows: list[slice]) -> None:
    """Add to the gradient (S, p) of a vector of parameters in each sequence."""
    total = torch.stack([values[part].sum(0) for part in rows])
    sums[param] = sums[param] + total if param in sums else total
