"""Gradients of sequence log-probs, layer by layer, in the form in which they take least room.

For a weight W used as y = x Wᵀ, the gradient of log π(y) for one response is a sum over tokens
Σ_t g_t ⊗ x_t of output gradients and inputs: what a forward and a backward pass hold anyway. All
responses of a batch share these passes, as each sequence is a row of its own.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from lmdyn.checks import trainable
from lmdyn.kernel.trace import Call, record
from lmdyn.lm import forward
from lmdyn.lm.forward import Batch
from lmdyn.lm.influence._inner_products import Block, as_matrix, widen
from lmdyn.lm.tokens import Encoded

# Tokens of one forward and backward pass, padding included: what autograd keeps meanwhile is
# several times what stays.
PASS_TOKENS = 512


class Gradients:
    """Gradients of log π(y) for the responses of a model.

    A parameter is *structured* if all its uses are of a known form and its rows can be told apart
    by response. That is found out from the autograd graph of each pass, and from a comparison
    with plain autograd on a few tokens. The others are *generic*: one backward pass a response.

    Args:
        model: a causal language model in eval mode.
        sample: two encoded rows with one short response each, to compare on.
    """

    def __init__(self, model: nn.Module, sample: Sequence[Encoded]):
        self.model = model
        self.params = [*trainable(model).values()]
        self.device = model.get_input_embeddings().weight.device
        self.head = forward.head(model) if forward.head_is_last(model) else None
        self.last = set(self.head.parameters()) if self.head else set()
        self.generic: set[Tensor] = set()
        self._compare(sample)

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

    @torch.enable_grad()
    def _add(self, block: Block, batch: Batch) -> None:
        first = len(block.responses)
        seen = record(lambda: self._logps(batch), set(self.params) - self.generic)
        logps = seen.output
        if not logps.requires_grad:
            raise ValueError("the log-probs do not depend on any parameter with requires_grad")
        rows = {id(call): self._rows(call, batch) for call in seen.calls}
        unclear = [call.params for call in seen.calls if rows[id(call)] is None]
        self.generic |= seen.unseen.union(*unclear)
        seen.forget(self.generic)
        if seen.calls:
            edges = [call.edge for call in seen.calls]
            grads = torch.autograd.grad(
                logps.sum(), edges, retain_graph=bool(self.generic), materialize_grads=True
            )
            for call, grad in zip(seen.calls, grads, strict=True):
                _keep(block, call, grad, rows[id(call)], first)
        params = [p for p in self.params if p in self.generic]
        for number, logp in enumerate(logps if params else (), first):
            grads = torch.autograd.grad(logp, params, retain_graph=True, materialize_grads=True)
            for param, grad in zip(params, grads, strict=True):
                block.keep(param, number, None, widen(grad).reshape(as_matrix(param)))
        block.responses += batch.responses
        block.logps += logps.tolist()

    def _logps(self, batch: Batch) -> Tensor:
        """(B,): log π(y|x) of each sequence."""
        if self.head is None:
            logits = forward.full_logits(self.model, batch)
        else:  # positions are told, as by default all sequences share one row of them
            logits = self.head(forward.hidden(self.model, batch, tell_positions=True))
        return torch.stack(list(batch.sum(forward.token_logps(logits, batch)).values()))

    def _rows(self, call: Call, batch: Batch) -> list[slice] | None:
        """The rows of each sequence in the output of a call; None if they cannot be told."""
        rows = call.grad_shape[:-1]
        flat = call.weight is None or call.weight.ndim == 2 or call.kind == "scale"
        if not rows or not flat or call.groups > 1:
            return None
        n, length = batch.input_ids.shape
        if rows[0] == n or tuple(rows) == (n * length,):
            each = rows.numel() // n
            used = [each] * n
            if rows[0] != n or rows[1:2] == (length,):  # padding has no gradient: leave it out
                used = [each // length * fed for fed in batch.attention_mask.sum(1).tolist()]
            return [slice(i * each, i * each + count) for i, count in enumerate(used)]
        if tuple(rows) == tuple(batch.source.shape) and call.params <= self.last:
            ends = torch.bincount(batch.segment, minlength=n).cumsum(0).tolist()
            return [slice(i, j) for i, j in zip([0, *ends[:-1]], ends, strict=True)]
        return None

    def _compare(self, sample: Sequence[Encoded]) -> None:
        """Make those parameters generic whose gradients differ from those of plain autograd."""
        together = Block()
        (batch,) = forward.pack(sample, shared=False, device=self.device)
        self._add(together, batch)
        for number, (row, _) in enumerate(batch.responses):
            (alone,) = forward.pack([sample[row]], shared=False, device=self.device)
            with torch.enable_grad():
                grads = torch.autograd.grad(self._logps(alone), self.params, materialize_grads=True)
            # A gradient that is zero in exact arithmetic is all rounding: hence the floor.
            floor = 1e-4 * max(float(grad.norm()) for grad in grads)
            for param, grad in zip(self.params, grads, strict=True):
                error = float((together.gradient(param, number) - grad).norm())
                if not error <= 0.02 * float(grad.norm()) + floor:
                    self.generic.add(param)


@torch.no_grad()
def _keep(block: Block, call: Call, grad: Tensor, rows: list[slice], first: int) -> None:
    """Keep what one call adds to the gradients of its sequences."""
    grad = call.channels_last(grad).flatten(0, -2)
    vectors = [(call.bias, widen(grad))] if call.bias is not None else []
    if call.weight is not None:
        features = call.features().detach().flatten(0, -2)
        if call.kind == "scale":
            vectors.append((call.weight, widen(grad) * features))
        else:
            features = features.squeeze(-1) if call.kind == "lookup" else features
            left, right = (grad, features) if call.kind == "matrix" else (features, grad)
            for number, part in enumerate(rows, first):
                block.keep(call.weight, number, left[part], right[part])
    for param, values in vectors:
        sums = torch.stack([values[part].sum(0) for part in rows])
        for number, total in enumerate(sums, first):
            block.keep(param, number, None, total.unsqueeze(0))
