"""K between token positions: what position l of an update does to position m of an observation."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lmdyn.lm import forward
from lmdyn.lm._jvp import undisturbed
from lmdyn.lm._positions import columns, sides
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
    vocabulary of about a thousand: a position of the update costs as many backward and
    forward-mode passes as the model is wide, a hundred or so.

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
    with undisturbed(model), torch.no_grad():
        for j, blocks in columns(*sides(model, o, u)):
            k[:, j] = blocks.flatten(1).norm(dim=1) if norms else blocks
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
    for all tokens of two responses, is their `influence`. K is not formed: a backward and a
    forward-mode pass for each l, for models of any size.

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
    with undisturbed(model), torch.no_grad():
        o, u = sides(model, observed, update)
        labels = o.ids[torch.tensor(o.positions, device=o.ids.device) + 1]
        for j, dz in columns(o, u, u.residuals().unsqueeze(1)):  # G = π − e_y
            change = -log_softmax_jvp(o.logits, dz.squeeze(2))
            found[:, j] = change if vocab else change.gather(1, labels[:, None]).squeeze(1)
    return found


def _head(model) -> nn.Linear:
    head = forward.head(model)
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
