"""K between token positions: what position l of an update does to position m of an observation.

Section 2 of the paper for sequences. The logits at position m are z_m = W h_m, so

    K_ml = J_m J_lᵀ = W k_ml Wᵀ + what the output layer's own weights add,

with k_ml = (∂h_m/∂θ)(∂h_l/∂θ)ᵀ of the width of the model, not of its vocabulary. For a layer
y = x Wᵀ, the gradient of one hidden unit is Σ_t δ_t ⊗ x_t, and its part of k_ml is
Σ_ts (x_t·x_s)(δ_t·δ_s): exact, and no Jacobian over the parameters is ever formed.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from lmdyn.lm import _pack
from lmdyn.lm._positions import Side, hidden_kernels, sides
from lmdyn.softmax import log_softmax_jvp


def token_kernel(
    model,
    ids_o: Sequence[int] | Tensor,
    ids_u: Sequence[int] | Tensor | None = None,
    *,
    positions_o: Sequence[int] | None = None,
    positions_u: Sequence[int] | None = None,
    norms: bool = False,
    memory: float = 2e9,
) -> Tensor:
    """The exact blocks K_ml = J_m(χ_o) J_l(χ_u)ᵀ of the empirical NTK between token positions.

    J_m is the Jacobian of the logits at position m, those that predict token m + 1, with respect
    to all parameters with ``requires_grad``. Meant for models of about a million parameters and a
    vocabulary of about a thousand.

    Args:
        model: a Hugging Face causal language model whose output layer is linear. It stays as it is.
        ids_o: the tokens of the observed sequence χ_o, prompt and response.
        ids_u: the tokens of the update χ_u; those of ``ids_o`` if not given.
        positions_o: M positions of ``ids_o``, counted from 0; all if not given. A response that
            begins at token n is predicted from position n − 1 on.
        positions_u: L positions of ``ids_u``.
        norms: the Frobenius norms ‖K_ml‖_F alone, without holding K.
        memory: bytes that the result may take.

    Returns:
        (M, L, V, V): entry [m, l, i, j] is ⟨∇z_i at position m of χ_o, ∇z_j at position l of χ_u⟩;
        (M, L) with ``norms``. In the dtype of the model.

    Raises:
        ValueError: a result beyond ``memory``; tokens or positions that are not there; weights in
            half precision, or none trainable; a model with another kind of output layer.

    Example:
        >>> model, tokenizer = load("tiny")  # doctest: +SKIP
        >>> ids = tokenizer("where is the red ball").input_ids  # doctest: +SKIP
        >>> token_kernel(model, ids, norms=True).shape  # doctest: +SKIP
        torch.Size([5, 5])
    """
    head = _head(model)
    ids_u = ids_o if ids_u is None else ids_u
    o = _sequence(model, ids_o, positions_o, "o")
    u = _sequence(model, ids_u, positions_u, "u")
    m, n, v = len(o[1]), len(u[1]), head.out_features
    size = m * n * v * v * head.weight.itemsize
    if size > memory and not norms:
        raise ValueError(
            f"K takes {size / 1e6:,.0f} MB ({m} × {n} blocks of {v} × {v}), more than "
            f"memory={memory:,.0f} bytes: choose fewer positions, pass norms=True, or raise memory"
        )
    k = head.weight.new_empty(m, n) if norms else head.weight.new_empty(m, n, v, v)
    with _pack.evaluating(model), torch.no_grad():
        for i, j, block in _blocks(*sides(model, o, u)):
            k[i, j] = block.norm() if norms else block
    return k


def token_influence(
    model,
    ids_o: Sequence[int] | Tensor,
    ids_u: Sequence[int] | Tensor | None = None,
    *,
    positions_o: Sequence[int] | None = None,
    positions_u: Sequence[int] | None = None,
    vocab: bool = False,
) -> Tensor:
    """−A_m K_ml G_l: what learning token l + 1 of the update does to the prediction at m (Eq. 5).

    The update is an SGD step on −log π of the tokens that ``positions_u`` predict. To first order
    and per unit learning rate, the sum over l is the change of log π at m, and the sum over both,
    for all tokens of two responses, is their `influence`. Without ``vocab`` it is cheap for models
    of any size: one backward pass for each position.

    Args:
        model: as in `token_kernel`, as all below.
        ids_o: the tokens of the observed sequence χ_o.
        ids_u: the tokens of the update χ_u; those of ``ids_o`` if not given.
        positions_o: M positions of ``ids_o``; all but the last if not given.
        positions_u: L positions of ``ids_u``, each with a token after it to learn.
        vocab: the change at m of the whole vocabulary instead of that of token m + 1.

    Returns:
        (M, L), or (M, L, V) with ``vocab``: nats per unit learning rate.

    Raises:
        ValueError: as in `token_kernel`; a last position, which has no token after it.

    Example:
        >>> model, tokenizer = load("tiny")  # doctest: +SKIP
        >>> ids = tokenizer("where is the red ball").input_ids  # doctest: +SKIP
        >>> token_influence(model, ids).shape  # doctest: +SKIP
        torch.Size([4, 4])
    """
    head = _head(model)
    ids_u = ids_o if ids_u is None else ids_u
    observed = _sequence(model, ids_o, positions_o, "o", labels=True)
    update = _sequence(model, ids_u, positions_u, "u", labels=True)
    shape = (len(observed[1]), len(update[1]), *[head.out_features] * vocab)
    found = head.weight.new_empty(shape)
    with _pack.evaluating(model), torch.no_grad():
        o, u = sides(model, observed, update)
        u.sum_logits(u.residuals())  # G = π − e_y
        if not vocab:
            o.sum_logits(-o.residuals())  # the row of A at the label: e_y − π
        for i, j, block in _blocks(o, u):
            found[i, j] = -log_softmax_jvp(o.logits[i], block[:, 0]) if vocab else -block[0, 0]
    return found


def _blocks(o: Side, u: Side) -> Iterator[tuple[int, int, Tensor]]:
    """Positions i and j, and the products (p, q) of the gradients of their combinations."""
    head = o.head
    # ∂z_v/∂W = e_v ⊗ h and ∂z_v/∂b = e_v.
    by_weight, by_bias = (p is not None and p.requires_grad for p in (head.weight, head.bias))
    for rows, columns, kernels, table_o, table_u in hidden_kernels(o, u):
        for a, i in enumerate(rows):
            for b, j in enumerate(columns):
                block = u.lift(o.lift(kernels[a, :, b]).T).T
                h_o, h_u = o.states[i], u.states[j]
                own = by_weight * (h_o @ h_u) + by_bias
                z_o, z_u = o.combinations(i), u.combinations(j)
                block = block + own * _products(z_o, z_u, head.weight)
                if by_weight and table_u is not None:
                    # A tied weight: what it does as a table, seen by it as output layer.
                    ids, gradients = table_u
                    block = block + _columns(z_o, ids, u.lift(gradients[b] @ h_o), len(head.weight))
                if by_weight and table_o is not None:
                    ids, gradients = table_o
                    block = (
                        block + _columns(z_u, ids, o.lift(gradients[a] @ h_u), len(head.weight)).T
                    )
                yield i, j, block


def _products(z_o: Tensor | None, z_u: Tensor | None, weight: Tensor) -> Tensor:
    """z_o z_uᵀ, where None is the identity."""
    if z_o is None and z_u is None:
        return torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
    if z_o is None or z_u is None:
        return z_u.T if z_o is None else z_o
    return z_o @ z_u.T


def _columns(z: Tensor | None, ids: Tensor, values: Tensor, v: int) -> Tensor:
    """Σ_t z[:, ids_t] ⊗ values[:, t]: (p, q) from (p, V) and (q, T)."""
    if z is None:
        return values.new_zeros(v, len(values)).index_add_(0, ids, values.T)
    return z[:, ids] @ values.T


def _head(model) -> nn.Linear:
    head = _pack.head(model)
    if not isinstance(head, nn.Linear):
        raise ValueError(
            f"the output layer is {type(head).__name__}: the kernel of positions needs a Linear"
        )
    params = [p for p in model.parameters() if p.requires_grad]
    if not params:
        raise ValueError("no parameter of the model has requires_grad: there is nothing to learn")
    half = {p.dtype for p in model.parameters()} - {torch.float32, torch.float64}
    if half:
        raise ValueError(f"the kernel needs float32 or float64 weights, got {half.pop()}")
    return head


def _sequence(model, ids, positions, side: str, labels: bool = False) -> tuple[Tensor, list[int]]:
    """Tokens and positions, checked."""
    table = model.get_input_embeddings().weight
    ids = torch.as_tensor(ids, device=table.device)
    if ids.ndim != 1 or len(ids) == 0 or ids.is_floating_point():
        raise ValueError(f"ids_{side} must be the tokens of one sequence, got {tuple(ids.shape)}")
    if ids.min() < 0 or ids.max() >= len(table):
        raise ValueError(f"ids_{side} must lie in 0 … {len(table) - 1}, got {ids.tolist()}")
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and len(ids) > context:
        raise ValueError(f"ids_{side} has {len(ids)} tokens, but the model reads {context}")
    count = len(ids) - labels
    positions = list(range(count)) if positions is None else [int(p) for p in positions]
    for p in positions:
        if not 0 <= p < count:
            why = ", as there is no token after the last" if labels else ""
            raise ValueError(f"positions_{side} must lie in 0 … {count - 1}{why}; got {p}")
    if not positions:
        raise ValueError(f"positions_{side} is empty: name at least one")
    return ids.long(), positions
