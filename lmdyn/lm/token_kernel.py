"""K between token positions: what position l of an update does to position m of an observation."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.func import jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import one_hot

from lmdyn.kernel import learned
from lmdyn.lm.forward import Reweighted, body, forward_mode, undisturbed
from lmdyn.lm.influence import gradient_products
from lmdyn.lm.tokens import Encoded
from lmdyn.lm.ways import check_kind, ways
from lmdyn.softmax import log_softmax_jvp

HELD_BYTES = 2**29  # of the steps that are taken together
Ids = Sequence[int] | Tensor  # of tokens


def token_kernel(
    model,
    ids_o: Ids,
    ids_u: Ids | None = None,
    *,
    positions_o: Sequence[int] | None = None,
    positions_u: Sequence[int] | None = None,
    norms: bool = False,
    memory: float = 2e9,
) -> Tensor:
    """The exact blocks K_ml = J_m(χ_o) J_l(χ_u)ᵀ of the empirical NTK between token positions.

    J_m is the Jacobian of the logits at position m, those that predict token m + 1, with respect
    to all parameters with ``requires_grad``. Meant for models of about a million parameters: a
    position of the update costs as many backward and forward-mode passes as the model is wide.

    Args:
        model: a Hugging Face causal language model whose output layer is linear. It stays as it is.
        ids_o, ids_u: tokens of prompt and response: observed, χ_o; updated, χ_u (χ_o if None).
        positions_o, positions_u: M and L positions in them, counted from 0; all if not given. A
            response that begins at token n is predicted from position n − 1 on.
        norms: the Frobenius norms ‖K_ml‖_F alone, without holding K.
        memory: bytes that the result may take.

    Returns:
        (M, L, V, V): entry [m, l, i, j] is ⟨∇z_i at position m of χ_o, ∇z_j at position l of χ_u⟩;
        (M, L) with ``norms``. In the dtype of the model.

    Raises:
        ValueError: a result beyond ``memory``; tokens or positions that are not there; weights in
            half precision, or none trainable; a model with another kind of output layer.
    """
    o = _Positions(model, ids_o, positions_o, "o")
    u = _Positions(model, ids_o if ids_u is None else ids_u, positions_u, "u")
    layer = o.ways.required_head(model)
    if not isinstance(layer, nn.Linear):
        kind = type(layer).__name__
        raise ValueError(f"the output layer is {kind}: the kernel of positions needs a Linear")
    m, n, v = len(o.positions), len(u.positions), layer.out_features
    size = m * n * v * v * layer.weight.itemsize
    if size > memory and not norms:
        what = f"K takes {size / 1e6:,.0f} MB ({m} × {n} blocks of {v} × {v})"
        how = "choose fewer positions, pass norms=True, or raise memory"
        raise ValueError(f"{what}, more than {memory=:,.0f} bytes: {how}")
    k = layer.weight.new_empty(m, n) if norms else layer.weight.new_empty(m, n, v, v)
    with undisturbed(model), forward_mode(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        for j, blocks in enumerate(_blocks(model, o, u)):
            k[:, j] = blocks.flatten(1).norm(dim=1) if norms else blocks
    return k


def token_influence(
    model, ids_o: Ids, ids_u: Ids | None = None, *, positions_o=None, positions_u=None, vocab=False
) -> Tensor:
    """−A_m K_ml G_l: what learning token l + 1 of the update does to the prediction at m (Eq. 5).

    The update is an SGD step on −log π of the tokens that ``positions_u`` predict. To first order
    and per unit learning rate, the sum over l is the change of log π at m, and the sum over both,
    for all tokens of two responses, is their `influence`. K is not formed, so models may be of any
    size: each token is a response of its own to what precedes it, in `influence`.

    Args:
        model, ids_o, ids_u: as in `token_kernel`, with its errors.
        positions_o, positions_u: M and L positions with a token after them; all if not given.
        vocab: the change at m of the whole vocabulary instead of that of token m + 1, by a
            backward and a forward-mode pass for each l. Memory: a few times the weights.

    Returns:
        (M, L), or (M, L, V) with ``vocab``: nats per unit learning rate.
    """
    o = _Positions(model, ids_o, positions_o, "o", labels=True)
    u = _Positions(model, ids_o if ids_u is None else ids_u, positions_u, "u", labels=True)
    if not vocab:
        found = gradient_products(model, u.tokens(), o.tokens(), ["next"], ["next"])[1]
        return torch.from_numpy(found[:, 0, :, 0].T).to(o.ids.device, model.dtype)
    weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    with undisturbed(model), forward_mode(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        z_o, (z_u, pull) = o.logits(weights), vjp(u.logits, weights)
        g = z_u.softmax(-1) - one_hot(u.ids[u.positions + 1], z_u.shape[-1])
        found = []
        for place in torch.eye(len(g)).to(g):
            (step,) = pull(place.unsqueeze(1) * g)
            change = -log_softmax_jvp(z_o, jvp(o.logits, (weights,), (step,))[1])
            found.append(change.masked_fill(z_o.isneginf(), 0))
        return torch.stack(found, 1)


class _Positions:
    """Some positions of one sequence: what the model makes there, as a function of its weights."""

    def __init__(self, model, ids, positions, side: str, labels: bool = False):
        check_kind(model)
        learned(model)
        ids = torch.as_tensor(ids, device=model.device)
        vocabulary = len(model.get_input_embeddings().weight)
        most = getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf
        fits = ids.ndim == 1 and 0 < len(ids) <= most
        if not fits or ids.is_floating_point() or ids.min() < 0 or ids.max() >= vocabulary:
            told = f"up to {most} in 0 … {vocabulary - 1}, got {tuple(ids.shape)}: {ids.tolist()}"
            raise ValueError(f"ids_{side} must be the tokens of one sequence, {told}")
        known = range(len(ids) - labels)
        positions = [int(p) for p in (known if positions is None else positions)]
        if not positions or not {*positions} <= {*known}:
            some = f"0 … {len(known) - 1}" + ", as there is no token after the last" * labels
            raise ValueError(f"positions_{side} must be some of {some}; got {positions}")
        self.ids, self.positions = ids.long(), torch.tensor(positions, device=ids.device)
        first, *rest = self.ids.tolist()
        self.ways = ways(model, [Encoded([first], {"": [*rest, 0]})], shared=False)
        given, at = {"input_ids": self.ids[None], "use_cache": False}, self.positions
        # Weights → hidden states (P, d), and logits (P, V); those of virtual tokens come before.
        self.states = Reweighted(model, lambda m: body(m)(**given).last_hidden_state[0, at]).at
        self.logits = Reweighted(model, lambda m: m(**given).logits[0, at - len(ids)]).at

    def tokens(self) -> list[Encoded]:
        """The token after each position, as the response to all up to there."""
        ids = self.ids.tolist()
        return [Encoded(ids[: p + 1], {"next": [ids[p + 1]]}) for p in self.positions.tolist()]


def _blocks(model, o: _Positions, u: _Positions) -> Iterator[Tensor]:
    """(M, V, V), the blocks K_ml of each position l of the update.

    A column of K_ml is what the step J_lᵀe does to all logits at m: one backward pass through the
    update makes the step, and one forward-mode pass leads from there to all m. As z = W h + b, a
    step moves the logits by W dh + dW h + db. All logits are sums of the d hidden units, so d
    steps lead to every dh. If W is the table of embeddings too, each of its rows adds a step.
    """
    layer, below = o.ways.required_head(model), set(body(model).parameters())
    weights = {n: p.detach() for n, p in model.named_parameters() if p in below and p.requires_grad}
    table = next((n for n in weights if model.get_parameter(n) is layer.weight), None)
    w = layer.weight.detach()
    learns, shifts = (p is not None and p.requires_grad for p in (layer.weight, layer.bias))
    h_o, h_u = o.states(weights), u.states(weights)
    out_o, out_u = (at.logits({}).isneginf() for at in (o, u))  # these stay
    pull = vjp(u.states, weights)[1] if weights else None
    together = max(1, HELD_BYTES // (1 + sum(weight.nbytes for weight in weights.values())))

    def by_unit(unit: Tensor, place: Tensor) -> Tensor:
        """(M, V), by the step on a hidden unit, one-hot (d,), at l, one-hot (L,)."""
        (step,) = pull(place.unsqueeze(1) * unit)
        moved = jvp(o.states, (weights,), (step,))[1] @ w.T
        return moved if table is None else moved + h_o @ step[table].T

    def by_row(row: Tensor, state: Tensor) -> Tensor:
        """(M, V), by dW = e ⊗ h, with e one-hot (V,), in the embeddings."""
        return jvp(o.states, ({table: w},), ({table: row.unsqueeze(1) * state},))[1] @ w.T

    if table is not None:  # of it, the rows that reach the hidden states: any sum's gradient tells
        states, back = vjp(o.states, {table: w})
        some = torch.randn(states.shape, generator=torch.Generator().manual_seed(0)).to(states)
        rows = back(some)[0][table].any(1).nonzero().squeeze(1)
    units = torch.eye(w.shape[1]).to(w)
    for place, state, out in zip(torch.eye(len(h_u)).to(h_u), h_u, out_u, strict=True):
        k = torch.diag_embed((learns * (h_o @ state) + shifts).unsqueeze(1).expand(-1, len(w)))
        if weights:
            moved = vmap(by_unit, (0, None), chunk_size=together)(units, place)
            k += torch.einsum("dmv,wd->mvw", moved, w)
        if table is not None:
            moved = vmap(by_row, (0, None), chunk_size=together)(one_hot(rows, len(w)).to(w), state)
            k[:, :, rows] += moved.permute(1, 2, 0)
        yield k.masked_fill(out_o.unsqueeze(2) | out, 0)
