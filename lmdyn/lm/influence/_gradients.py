"""Gradients of sequence log-probs, layer by layer, as factors, and their inner products.

For a weight W used as y = x Wᵀ, the gradient of log π(y) for one response is a sum over tokens
Σ_t g_t ⊗ x_t of output gradients and inputs: what a forward and a backward pass hold anyway. All
responses of a batch share these passes, as each sequence is a row of its own. Two exact ways lead
from factors Σ_t left_t ⊗ right_t, (n, m), to the inner products of U responses with O others:

- by tokens: Σ_ts (left_t·left_s)(right_t·right_s), which needs no gradient at all;
- by gradients: formed a slab of rows at a time, so that they stay in the cache, then multiplied.

The first costs T²(n + m) a pair, the second nm a pair and Tnm a response: it wins once there are
many pairs. Half-precision factors are multiplied in float32.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lmdyn.checks import trainable
from lmdyn.kernel.factors import ELEMENTWISE
from lmdyn.kernel.trace import Call, dots, record
from lmdyn.lm import forward
from lmdyn.lm.batches import Batch
from lmdyn.lm.tokens import Encoded
from lmdyn.lm.ways import ways

PASS_TOKENS = 512  # in one pass, padding included: it keeps several times what stays
SLAB_BYTES = 2**25  # of the gradients that are formed at a time
Change = Callable[[Tensor, range, Tensor], Tensor]  # parameter, its rows, gradients → others


class Use(NamedTuple):
    """A use of a parameter (n, m) in one pass over some responses, T tokens in all.

    A gradient that is formed already counts as a table, each of whose rows is read once.
    """

    whose: Tensor  # (T,) numbers of the responses, ascending, on the CPU
    left: Tensor  # (T, n), or (T,) rows of a table, which stand for one-hot vectors
    right: Tensor  # (T, m)


class Block:
    """What is kept of S responses."""

    def __init__(self):
        self.logps: dict[tuple[int, str], float] = {}  # (row, type) of each → its log π(y|x), nats
        self.uses: dict[Tensor, list[Use]] = defaultdict(list)  # of each parameter
        self.nbytes = 0  # that the uses take

    def keep(self, param: Tensor, whose: Tensor, left: Tensor, right: Tensor) -> None:
        self.uses[param].append(Use(whose, left, right))
        self.nbytes += left.nbytes + right.nbytes


class Gradients:
    """Gradients of log π(y) for the responses of a model in eval mode.

    A parameter is *structured* if all its uses are of a known form and its rows can be told apart
    by response: the autograd graph of each pass tells, and a comparison with plain autograd on a
    few tokens of two rows. The others are *generic*: one backward pass a response.
    """

    def __init__(self, model: nn.Module, encoded: Sequence[Encoded]):
        self.model = model
        self.params = [*trainable(model).values()]
        self.watch: Callable[[Tensor, Batch], None] | None = None  # is shown each pass's logits
        self.ways = ways(model, encoded, PASS_TOKENS, shared=False)
        self.generic: set[Tensor] = set()
        some = [(e.prompt, *e.responses.values()) for e in encoded if e.responses]
        pair = ((*some[0][:2], 5), (*some[-1][:2], 3))
        self._compare([Encoded(prompt[-n:], {"": ids[:n]}) for prompt, ids, n in pair])
        if self.generic:  # whose gradients come one by one anyway
            self.ways = replace(self.ways, tokens=1)

    def blocks(self, encoded: Sequence[Encoded], limit: float, weights=None) -> Iterator[Block]:
        """All responses, in blocks that end with the pass that reaches ``limit`` bytes."""
        block = Block()
        for batch in self.ways.batches(self.model, encoded):
            self._add(block, batch, weights)
            if block.nbytes >= limit:
                yield block
                block = Block()
        if block.logps:
            yield block

    @torch.enable_grad()
    def _add(self, block: Block, batch: Batch, weights=None) -> None:
        first = len(block.logps)
        tracked = set(self.params) - self.generic
        seen = record(lambda: self._logps(batch, weights, self.watch), tracked)
        logps = seen.output
        if not logps.requires_grad:
            raise ValueError("the log-probs do not depend on any parameter with requires_grad")
        whose = {call: self._whose(call, batch) for call in seen.calls}
        unclear = [call.params for call in seen.calls if whose[call] is None]
        self.generic |= seen.unseen.union(*unclear)
        seen.forget(self.generic)
        if seen.calls:
            edges = [call.edge for call in seen.calls]
            options = {"retain_graph": bool(self.generic), "allow_unused": True}
            grads = torch.autograd.grad(logps.sum(), edges, **options)
            for call, grad in zip(seen.calls, grads, strict=True):
                if grad is not None:  # a function above it lets none through
                    _keep(block, call, grad, whose[call], first)
        params = [p for p in self.params if p in self.generic]
        for number, logp in enumerate(logps if params else (), first):
            grads = torch.autograd.grad(logp, params, retain_graph=True, materialize_grads=True)
            for param, grad in zip(params, grads, strict=True):
                grad = widen(grad).reshape(as_matrix(param))
                rows = torch.arange(len(grad), device=grad.device)
                block.keep(param, torch.full((len(grad),), number), rows, grad)
        block.logps |= zip(batch.responses, logps.tolist(), strict=True)

    def _logps(self, batch: Batch, weights=None, watch=None) -> Tensor:
        """(B,): log π(y|x) of each sequence, its tokens weighted if so wanted."""
        if self.ways.head is None:
            logits = forward.full_logits(self.model, batch)
        else:  # positions are told, if they can be: by default all sequences share one row of them
            logits = self.ways.head(forward.hidden(self.model, batch, self.ways.told))
        if watch:
            watch(logits.detach(), batch)
        logps = forward.token_logps(logits, batch)
        logps = logps * batch.join(weights).to(logps) if weights else logps
        return torch.stack(list(batch.sum(logps).values()))

    def _whose(self, call: Call, batch: Batch) -> Tensor | None:
        """(R,) on the CPU, whose each row of a call's output is; None if that cannot be told.

        Padding has no gradient, so it may count as its sequence's.
        """
        rows = call.grad_shape[:-1]
        if call.kind != "scale" and call.weight is not None and call.weight.ndim != 2:
            return None
        n, length = batch.input_ids.shape
        if rows and (rows[0] == n or rows == (n * length,)):
            return torch.arange(n).repeat_interleave(rows.numel() // n)
        head = self.ways.head
        if rows == batch.source.shape and head and call.params <= {*head.parameters()}:
            return batch.segment.cpu()
        return None

    def _compare(self, sample: Sequence[Encoded]) -> None:
        """Make those parameters generic whose gradients differ from those of plain autograd."""
        together, factors = Block(), (1, -2)  # which tell the rows apart in one sum
        for batch in self.ways.batches(self.model, sample):
            self._add(together, batch)
        with torch.enable_grad():
            batches = (self.ways.batches(self.model, [row]) for row in sample)
            alone = (self._logps(*batch) for batch in batches)
            total = sum(factor * logp for factor, logp in zip(factors, alone, strict=True))
            grads = torch.autograd.grad(total, self.params, materialize_grads=True)
        # A gradient that is zero in exact arithmetic is all rounding: hence the floor.
        floor = 1e-4 * max(float(grad.norm()) for grad in grads)
        for param, grad in zip(self.params, grads, strict=True):
            both = _form(param, together.uses.get(param, ()), 2, range(as_matrix(param)[0]))
            found = both.new_tensor([factors[row] for row, _ in together.logps]) @ both
            error = float((found.view(grad.shape) - grad).norm())
            if not error <= 0.02 * float(grad.norm()) + floor:
                self.generic.add(param)


@torch.no_grad()
def _keep(block: Block, call: Call, grad: Tensor, whose: Tensor, first: int) -> None:
    """Keep what one call adds to the gradients of its sequences."""
    grad = call.channels_last(grad).flatten(0, -2)
    vectors = {call.bias: widen(grad)} if call.bias is not None else {}
    if call.weight is not None:
        features = call.features().detach().flatten(0, -2)
        if call.kind == "scale":
            vectors[call.weight] = widen(grad) * features
        else:
            features = features.squeeze(-1) if call.kind == "lookup" else features
            sides = (grad, features) if call.kind == "matrix" else (features, grad)
            block.keep(call.weight, whose + first, *sides)
    for param, values in vectors.items():
        sums = torch.stack([part.sum(0) for part in values.split(whose.bincount().tolist())])
        numbers = torch.arange(len(sums))
        block.keep(param, numbers + first, torch.zeros_like(numbers, device=sums.device), sums)


def widen(t: Tensor) -> Tensor:
    """In float32 at least."""
    return t.float() if t.is_floating_point() and t.dtype.itemsize < 4 else t


def as_matrix(param: Tensor) -> tuple[int, int]:
    """(n, m), the shape in which a parameter's gradient is kept."""
    return tuple(param.shape) if param.ndim == 2 else (1, param.numel())


def flat(x: Tensor, param: Tensor, rows: range) -> Tensor:
    """(D,): of a tensor like a parameter, what stands in these of the rows that are kept."""
    return x.detach().reshape(as_matrix(param))[rows.start : rows.stop].flatten()


def inner_products(u: Block, o: Block, left: Change | None = None, along=None) -> Tensor:
    """(S_u, S_o): ⟨∇ log π(y_u), ∇ log π(y_o)⟩ over all parameters, in float64.

    With ``left``, of what it makes of the ∇ log π(y_u). With ``along``, a dict parameter → one more
    gradient, there is one more column. Both rule out the way by tokens.
    """
    s, r = len(u.logps), len(o.logps)
    total = torch.zeros(1, 1, dtype=torch.float64)
    for param in o.uses if left else (p for p in u.uses if p in o.uses):
        ours, theirs, (n, m) = u.uses.get(param, ()), o.uses[param], as_matrix(param)
        # The floating-point operations of both ways; of one-hot vectors none.
        (t_u, dense_u), (t_o, dense_o) = _tokens(ours), _tokens(theirs)
        by_tokens = t_u * t_o * (m + ELEMENTWISE) + dense_u * dense_o * n
        # The 4 stands for the memory that formed gradients take.
        formed = dense_u * (o is not u) + dense_o + 4 * (s + r) + 2 * s * r
        if left or along or by_tokens >= n * m * formed:
            found = _by_gradients(param, (ours, s), (theirs, r), left, along)
        else:
            found = _by_tokens(widen(param).new_zeros(s, r), ours, theirs)
        total = total + found.cpu().double()
    return total


def _tokens(uses: Sequence[Use]) -> tuple[int, int]:
    """How many there are, and how many of them are dense."""
    return sum(len(x.left) for x in uses), sum(len(x.left) for x in uses if x.left.ndim == 2)


def _by_tokens(total: Tensor, ours, theirs) -> Tensor:
    for ndim in {use.left.ndim for use in theirs}:
        same = (use for use in theirs if use.left.ndim == ndim)
        whose, left, right = (widen(torch.cat(parts)) for parts in zip(*same, strict=True))
        sums = total.new_zeros(len(total), len(right))
        for use in ours:
            products = (widen(use.right) @ right.T).mul_(dots(widen(use.left), left))
            sums.index_add_(0, use.whose.to(sums.device), products)
        total.index_add_(1, whose.to(sums.device), sums)
    return total


def _by_gradients(param: Tensor, ours, theirs, left: Change | None, along) -> Tensor:
    n, m = as_matrix(param)
    slab, total = max(1, SLAB_BYTES // ((ours[1] + theirs[1]) * m * widen(param).itemsize)), 0
    for start in range(0, n, slab):
        rows = range(start, min(start + slab, n))
        a = _form(param, *ours, rows)
        b = a if theirs[0] is ours[0] else _form(param, *theirs, rows)
        a = left(param, rows, a) if left else a
        found = [a @ b.T]
        if along:
            found.append((a @ flat(along[param], param, rows).to(a)).unsqueeze(1))
        total = total + torch.cat(found, 1)
    return total


def _form(param: Tensor, uses: Sequence[Use], responses: int, rows: range) -> Tensor:
    """(S, len(rows)·m): these rows of the parameter's gradient in each response."""
    formed = widen(param.detach()).new_zeros(responses, len(rows), as_matrix(param)[1])
    for use in uses:
        if use.left.ndim == 1:
            inside = (use.left >= rows.start) & (use.left < rows.stop)
            at = use.whose.to(inside.device)[inside], use.left[inside] - rows.start
            formed.index_put_(at, widen(use.right[inside]), accumulate=True)
            continue
        numbers, sizes = (x.tolist() for x in use.whose.unique_consecutive(return_counts=True))
        left = use.left[:, rows.start : rows.stop]
        for number, a, b in zip(numbers, left.split(sizes), use.right.split(sizes), strict=True):
            formed[number].addmm_(widen(a).T, widen(b))
    return formed.flatten(1)
