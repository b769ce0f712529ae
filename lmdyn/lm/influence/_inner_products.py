"""Inner products of the gradients of responses, one parameter at a time.

The gradient of a weight (n, m) in one response is Σ_t left_t ⊗ right_t over tokens. Two exact
ways to all inner products of U responses with O others:

- by tokens: Σ_ts (left_t·left_s)(right_t·right_s), which needs no gradient at all;
- by gradients: formed a slab of rows at a time, so that they stay in the cache, then multiplied.

The first costs T²(n + m) a pair, the second nm a pair and Tnm a response: it wins once there are
many pairs. The kernel's factors (`lmdyn.kernel.factors`) are the same two forms, but for examples
that all have the same positions, and for all logits of each; here each response has its own
number of tokens and one gradient. Half-precision factors are multiplied in float32.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lmdyn.kernel.trace import dots

# Bytes of the gradients that are formed at a time.
SLAB_BYTES = 2**25
# Operations that the elementwise product of an entry costs, in the choice between the two ways.
ELEMENTWISE = 16


@dataclass
class Piece:
    """One use of a parameter (n, m) in one response: its gradient there is Σ_t left_t ⊗ right_t.

    Attributes:
        response: its number in the block.
        left: (T, n), or (T,) rows of a table, which stand for one-hot vectors; None if the
            gradient is formed already.
        right: (T, m); the gradient (n, m) itself if ``left`` is None.
    """

    response: int
    left: Tensor | None
    right: Tensor


@dataclass
class Block:
    """What is kept of S responses.

    Attributes:
        responses: (row, type) of each.
        logps: log π(y|x) of each, nats.
        pieces: parameter → its uses, in the order of the responses.
        storages: the memory that all this takes, address → bytes.
    """

    responses: list[tuple[int, str]] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    pieces: dict[Tensor, list[Piece]] = field(default_factory=lambda: defaultdict(list))
    storages: dict[int, int] = field(default_factory=dict)

    def keep(self, param: Tensor, response: int, left: Tensor | None, right: Tensor) -> None:
        """Add a `Piece`."""
        self.pieces[param].append(Piece(response, left, right))
        for storage in (t.untyped_storage() for t in (left, right) if t is not None):
            self.storages[storage.data_ptr()] = storage.nbytes()

    @property
    def nbytes(self) -> int:
        return sum(self.storages.values())

    def gradient(self, param: Tensor, number: int) -> Tensor:
        """The whole gradient of a parameter in one response."""
        own = [piece for piece in self.pieces[param] if piece.response == number]
        if not own:
            return torch.zeros_like(param)
        own = [Piece(0, piece.left, piece.right) for piece in _widen(own)]
        n, m = as_matrix(param)
        return _form(own, 1, 0, n, m).view(param.shape)


def widen(t: Tensor) -> Tensor:
    """In float32 at least."""
    return t.float() if t.is_floating_point() and t.dtype.itemsize < 4 else t


def as_matrix(param: Tensor) -> tuple[int, int]:
    """(n, m), the shape in which a parameter's gradient is kept."""
    return tuple(param.shape) if param.ndim == 2 else (1, param.numel())


def inner_products(u: Block, o: Block) -> Tensor:
    """(S_u, S_o): ⟨∇ log π(y_u), ∇ log π(y_o)⟩ over all parameters, in float64."""
    shape = len(u.responses), len(o.responses)
    total = torch.zeros(shape, dtype=torch.float64)
    for param in (p for p in u.pieces if p in o.pieces):
        ours, theirs = _widen(u.pieces[param]), _widen(o.pieces[param])
        by_tokens = _tokens_cost_less(ours, theirs, shape, *as_matrix(param))
        way = _by_tokens if by_tokens else _by_gradients
        total += way(ours, theirs, shape, *as_matrix(param)).cpu().double()
    return total


def _widen(pieces: Sequence[Piece]) -> list[Piece]:
    return [
        Piece(p.response, None if p.left is None else widen(p.left), widen(p.right)) for p in pieces
    ]


def _tokens_cost_less(
    ours: list[Piece], theirs: list[Piece], shape: tuple[int, int], n: int, m: int
) -> bool:
    """Compare the floating-point operations of both ways."""
    if any(piece.left is None for piece in (*ours, *theirs)):
        return False  # there are no tokens

    def tokens(pieces: list[Piece], dense: bool) -> int:
        return sum(len(p.right) for p in pieces if not dense or p.left.ndim == 2)

    by_tokens = 2 * tokens(ours, False) * tokens(theirs, False) * (m + ELEMENTWISE)
    by_tokens += 2 * tokens(ours, True) * tokens(theirs, True) * n
    # The 4 stands for the memory that formed gradients take.
    formed = tokens(ours, True) + tokens(theirs, True) + 4 * sum(shape)
    return by_tokens < 2 * n * m * (formed + 2 * shape[0] * shape[1])


def _by_tokens(ours, theirs, shape: tuple[int, int], n: int, m: int) -> Tensor:
    total = ours[0].right.new_zeros(shape)
    for ndim in {piece.left.ndim for piece in theirs}:
        same = [piece for piece in theirs if piece.left.ndim == ndim]
        left, right = torch.cat([p.left for p in same]), torch.cat([p.right for p in same])
        whose = [p.response for p in same for _ in range(len(p.right))]
        sums = total.new_zeros(shape[0], len(right))
        for piece in ours:
            products = (piece.right @ right.T).mul_(dots(piece.left, left))
            sums[piece.response] += products.sum(0)
        total.index_add_(1, torch.tensor(whose, device=sums.device), sums)
    return total


def _by_gradients(ours, theirs, shape: tuple[int, int], n: int, m: int) -> Tensor:
    total = ours[0].right.new_zeros(shape)
    slab = max(1, SLAB_BYTES // (sum(shape) * m * total.itemsize))
    for start in range(0, n, slab):
        stop = min(start + slab, n)
        a = _form(ours, shape[0], start, stop, m)
        total.addmm_(a, _form(theirs, shape[1], start, stop, m).T)
    return total


def _form(pieces: list[Piece], responses: int, start: int, stop: int, m: int) -> Tensor:
    """(S, (stop − start)·m): these rows of the parameter's gradient in each response."""
    formed = pieces[0].right.new_empty(responses, stop - start, m)
    begun = set()
    for piece in pieces:
        out, left, right = formed[piece.response], piece.left, piece.right
        first = piece.response not in begun
        begun.add(piece.response)
        if left is not None and left.ndim == 2:
            torch.addmm(out, left[:, start:stop].T, right, beta=0 if first else 1, out=out)
            continue
        if first:
            out.zero_()
        if left is None:
            out += right[start:stop]
        else:
            inside = (left >= start) & (left < stop)
            out.index_add_(0, left[inside] - start, right[inside])
    for response in set(range(responses)) - begun:
        formed[response].zero_()
    return formed.flatten(1)
