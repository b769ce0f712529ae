"""Inner products of the gradients of responses, one parameter at a time.

The gradient of a weight (n, m) in one response is Σ_t left_t ⊗ right_t over tokens. Two exact
ways to all inner products of U responses with O others:

- by tokens: Σ_ts (left_t·left_s)(right_t·right_s), which needs no gradient at all;
- by gradients: formed a slab of rows at a time, so that they stay in the cache, then multiplied.

The first costs T²(n + m) a pair, the second nm a pair and Tnm a response: it wins once there are
many pairs. Half-precision factors are multiplied in float32.
"""

from collections import defaultdict
from dataclasses import dataclass, field

import torch
from torch import Tensor

# Bytes of the gradients that are formed at a time.
SLAB_BYTES = 2**25


@dataclass
class Piece:
    """One use of a weight (n, m) in one response: its gradient there is Σ_t left_t ⊗ right_t.

    Attributes:
        response: its number in the block.
        left: (T, n), or (T,) rows of a table, which stand for one-hot vectors.
        right: (T, m).
    """

    response: int
    left: Tensor
    right: Tensor


@dataclass
class Block:
    """What is kept of S responses.

    Attributes:
        responses: (row, type) of each.
        logps: log π(y|x) of each, nats.
        pieces: weight (n, m) → its uses.
        vectors: other parameter → its gradient in each response, flattened.
        storages: the memory that all this takes, address → bytes.
    """

    responses: list[tuple[int, str]] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    pieces: dict[Tensor, list[Piece]] = field(default_factory=lambda: defaultdict(list))
    vectors: dict[Tensor, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    storages: dict[int, int] = field(default_factory=dict)

    def keep(self, *tensors: Tensor) -> None:
        """Count these tensors' memory, once."""
        for t in tensors:
            storage = t.untyped_storage()
            self.storages[storage.data_ptr()] = storage.nbytes()

    @property
    def nbytes(self) -> int:
        return sum(self.storages.values())

    def gradient(self, param: Tensor, number: int) -> Tensor:
        """The whole gradient of a parameter in one response."""
        if param in self.vectors:
            return self.vectors[param][number].view(param.shape)
        own = [piece for piece in self.pieces[param] if piece.response == number]
        own = [Piece(0, piece.left, piece.right) for piece in own]
        return _gradients(_widen(own), 1, 0, *param.shape).view(param.shape)


def inner_products(u: Block, o: Block) -> Tensor:
    """(S_u, S_o): ⟨∇ log π(y_u), ∇ log π(y_o)⟩ over all parameters, in float64."""
    shape = len(u.responses), len(o.responses)
    total = torch.zeros(shape, dtype=torch.float64)
    for param in u.pieces.keys() & o.pieces.keys():
        ours, theirs = _widen(u.pieces[param]), _widen(o.pieces[param])
        by_tokens, by_gradients = _costs(ours, theirs, shape, *param.shape)
        way = _by_tokens if by_tokens < by_gradients else _by_gradients
        total += way(ours, theirs, shape, *param.shape).cpu().double()
    for param in u.vectors.keys() & o.vectors.keys():
        product = torch.stack(u.vectors[param]) @ torch.stack(o.vectors[param]).T
        total += product.cpu().double()
    return total


def widen(t: Tensor) -> Tensor:
    """In float32 at least."""
    return t.float() if t.is_floating_point() and t.dtype.itemsize < 4 else t


def _widen(pieces: list[Piece]) -> list[Piece]:
    return [Piece(p.response, widen(p.left), widen(p.right)) for p in pieces]


def _costs(
    ours: list[Piece], theirs: list[Piece], shape: tuple[int, int], n: int, m: int
) -> tuple[float, float]:
    """Floating-point operations of both ways."""

    def tokens(pieces, ndim):
        return sum(len(piece.right) for piece in pieces if piece.left.ndim == ndim)

    # The 16 stands for the elementwise product, the 4 for the memory that formed gradients take.
    pairs = sum(len(piece.right) for piece in ours) * sum(len(piece.right) for piece in theirs)
    dense = tokens(ours, 2) * tokens(theirs, 2)
    by_tokens = 2 * pairs * (m + 16) + 2 * dense * n
    formed = tokens(ours, 2) + tokens(theirs, 2) + 4 * (shape[0] + shape[1])
    by_gradients = 2 * n * m * (formed + 2 * shape[0] * shape[1])
    return by_tokens, by_gradients


def _by_tokens(ours, theirs, shape, n: int, m: int) -> Tensor:
    total = ours[0].right.new_zeros(shape)
    for ndim in {piece.left.ndim for piece in theirs}:
        same = [piece for piece in theirs if piece.left.ndim == ndim]
        left, right = torch.cat([p.left for p in same]), torch.cat([p.right for p in same])
        whose = torch.tensor([p.response for p in same], device=right.device)
        whose = whose.repeat_interleave(
            torch.tensor([len(p.right) for p in same], device=right.device)
        )
        sums = total.new_zeros(shape[0], len(right))
        for piece in ours:
            products = (piece.right @ right.T).mul_(dots(piece.left, left))
            sums[piece.response] += products.sum(0)
        total.index_add_(1, whose, sums)
    return total


def dots(a: Tensor, b: Tensor) -> Tensor:
    """(T, S) inner products of vectors, some of which are one-hot, given by their index."""
    if a.ndim == 2:
        return a @ b.T if b.ndim == 2 else a[:, b]
    return b.T[a] if b.ndim == 2 else a.unsqueeze(1) == b


def _by_gradients(ours, theirs, shape, n: int, m: int) -> Tensor:
    total = ours[0].right.new_zeros(shape)
    slab = max(1, SLAB_BYTES // (sum(shape) * m * total.itemsize))
    for start in range(0, n, slab):
        stop = min(start + slab, n)
        a = _gradients(ours, shape[0], start, stop, m)
        total.addmm_(a, _gradients(theirs, shape[1], start, stop, m).T)
    return total


def _gradients(pieces: list[Piece], responses: int, start: int, stop: int, m: int) -> Tensor:
    """(S, (stop − start)·m): these rows of the weight's gradient in each response."""
    formed = pieces[0].right.new_empty(responses, stop - start, m)
    begun = set()
    for piece in pieces:
        out, left, right = formed[piece.response], piece.left, piece.right
        if left.ndim == 1:
            if piece.response not in begun:
                out.zero_()
            inside = (left >= start) & (left < stop)
            out.index_add_(0, left[inside] - start, right[inside])
        elif piece.response in begun:
            out.addmm_(left[:, start:stop].T, right)
        else:
            torch.mm(left[:, start:stop].T, right, out=out)
        begun.add(piece.response)
    for response in set(range(responses)) - begun:
        formed[response].zero_()
    return formed.flatten(1)
