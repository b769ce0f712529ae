"""Who moves whom: the first-order effect of every update on every response, pair by pair."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from lmdyn import losses
from lmdyn.lm.data import ProbeSet, as_probes, with_all
from lmdyn.lm.forward import bar, undisturbed
from lmdyn.lm.influence._gradients import Block, Gradients, inner_products
from lmdyn.lm.tokens import Format, encode
from lmdyn.lm.ways import check_fits


def influence(
    model,
    tokenizer,
    updates: ProbeSet | Iterable[Mapping[str, str]],
    probes: ProbeSet | Iterable[Mapping[str, str]],
    loss: str | losses.Loss = "sft",
    *,
    types: Sequence[str] | None = None,
    by_response: bool = False,
    format: Format | None = None,
    ref: Mapping[str, Sequence[float]] | None = None,
    memory: float = 8e9,
    progress: bool | None = None,
) -> np.ndarray:
    """What one SGD step on each update does to log π of each response, to first order (Eq. 5).

    Entry [u, o, r] is −⟨∇_θ L_u, ∇_θ log π(y_o,r | x_o)⟩, over the parameters with
    ``requires_grad``: multiplied by the learning rate, the change of the log-prob in nats. It is
    equation 5 summed over all tokens of both sequences, with A, K and G contracted. Exact for any
    model, from the inputs and output gradients of each layer: no gradient over all parameters is
    held for any example. The model is left as it was; dropout is off.

    Args:
        model: a Hugging Face causal language model.
        tokenizer: its tokenizer.
        updates: N_u rows to learn from, with the responses that the loss reads.
        probes: N_o rows to observe.
        loss: a name of `lmdyn.losses`, or a loss: of a row, as `Loss.value` has it.
        types: the R response types to observe, in this order; those of ``probes`` if not given.
        by_response: keep apart what each of the S responses that the loss reads does, in the order
            of ``loss.responses``: −c⟨∇_θ log π(y_u), ∇_θ log π(y_o)⟩ with its coefficient c, for a
            preference loss the pull of y+ and the push of y−.
        format: how the texts become tokens; each probe set's own if not given.
        ref: for a loss with a reference model: response name → (N_u,) log-probs under it, nats.
            The model's own if not given, as at the start of a finetuning run.
        memory: bytes of activations to hold, up to three quarters of them for updates. What does
            not fit is taken in blocks; for each block of updates all probes pass the model again.
        progress: whether to show a bar; None shows it for work of more than ten seconds.

    Returns:
        (N_u, N_o, R) float64, nats per unit learning rate; NaN where a row lacks the type.
        With ``by_response`` (N_u, S, N_o, R), which adds up to the former over axis 1.

    Raises:
        ValueError: as in `load_probes` and `encode`, an unknown loss, an update without a
            response that the loss reads, a sequence beyond the model's context, log-probs that are
            NaN or infinite, no trainable parameter.

    Example:
        >>> model, tokenizer = load("tiny")  # doctest: +SKIP
        >>> rows = load_probes("world", types=["chosen", "rejected"], limit=8)  # doctest: +SKIP
        >>> influence(model, tokenizer, rows[:4], rows[4:]).shape  # doctest: +SKIP
        (4, 4, 2)
    """
    loss = losses.get(loss)
    reader = f"the loss {type(loss).__name__}"
    updates = with_all(as_probes(updates, format=format), loss.responses, reader, "updates")
    probes = as_probes(probes, types, format)
    ours, theirs = encode(tokenizer, updates), encode(tokenizer, probes)
    logps, products = gradient_products(
        model, ours, theirs, loss.responses, probes.types, memory, progress
    )
    own = {name: torch.from_numpy(logps[:, i]) for i, name in enumerate(loss.responses)}
    lengths = {name: torch.tensor([len(e.responses[name]) for e in ours]) for name in own}
    given = {n: torch.as_tensor(x, dtype=torch.float64) for n, x in (ref or own).items()}
    c = torch.stack([*loss.coefficients(own, given, lengths).values()], 1)
    parts = -c.numpy()[:, :, None, None] * products
    return parts if by_response else parts.sum(1)


def gradient_products(model, ours, theirs, names, types, memory=8e9, progress=None):
    """log π of the responses ``names`` of ours, (N_u, S), and ⟨∇ log π(y_u), ∇ log π(y_o)⟩.

    Both sides are `Encoded` rows. The products are (N_u, S, N_o, R), NaN where a row of theirs
    lacks the type.
    """
    check_fits(model, ours)
    check_fits(model, theirs)
    logps = np.empty((len(ours), len(names)))
    products = np.full((*logps.shape, len(theirs), len(types)), np.nan)
    pairs = products.reshape(logps.size, -1)
    total = len(pairs) * sum(len(e.responses) for e in theirs)
    with undisturbed(model), bar("influence", "pair", progress, total) as shown:
        gradients = Gradients(model, [*ours, *theirs])
        for u in gradients.blocks(ours, 0.75 * memory):
            at_u = _places(u, names, "updates")
            logps.flat[at_u] = [*u.logps.values()]
            for o in gradients.blocks(theirs, memory - u.nbytes):
                found = inner_products(u, o).numpy()
                pairs[np.ix_(at_u, _places(o, types, "probes"))] = found
                shown.update(found.size)
    return logps, products


def _places(block: Block, names: Sequence[str], what: str) -> list[int]:
    """Where its responses stand in (rows · names,), after a check that they can be used."""
    for (row, name), logp in block.logps.items():
        if not np.isfinite(logp):
            why = "the model's weights or its precision cannot be used"
            why = "the model rules it out, so it has no gradient" if logp == -np.inf else why
            raise ValueError(f"{what}[{row}]: log π of {name!r} is {logp}: {why}")
    return [row * len(names) + names.index(name) for row, name in block.logps]
