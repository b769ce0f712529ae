"""What a run refuses: pairs that say nothing, a foreign reference, numbers that are not finite."""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from lmdyn.lm.processes import of_all
from lmdyn.lm.tokens import Encoded


def check_same_vocabulary(model, ref) -> None:
    """Refuse a reference model that reads other tokens."""
    ours, theirs = (len(m.get_input_embeddings().weight) for m in (model, ref))
    if ours != theirs:
        raise ValueError(
            f"ref knows {theirs} tokens and the model {ours}: the reference must read the same "
            "tokens, as the model before training does"
        )


def check_different(encoded: Sequence[Encoded], keys: Mapping[str, str], loss) -> None:
    """Refuse pairs that a loss would push up and down at once."""
    if not {"chosen", "rejected"} <= set(keys):
        return
    for i, row in enumerate(encoded):
        if row.responses[keys["chosen"]] == row.responses[keys["rejected"]]:
            raise ValueError(
                f"rows[{i}]: {keys['chosen']} and {keys['rejected']} are the same tokens, so "
                f"{type(loss).__name__} has nothing to tell apart: leave the row out"
            )


def check_finite(update: int, rows: list[int], values: list[float], norm: float) -> None:
    """Refuse to make an update whose loss or gradient is not finite."""
    bad = [
        (row, value) for row, value in zip(rows, values, strict=True) if not math.isfinite(value)
    ]
    if bad:
        what = "the loss is " + ", ".join(f"{value} in rows[{row}]" for row, value in bad)
    elif not math.isfinite(norm):
        what = f"the gradient of {_named(rows)} is not finite"
    else:
        return
    raise FloatingPointError(f"update {update + 1} is not made: {what}; lower lr, or mend the rows")


def check_weights(weights: Sequence[Tensor], update: int, rows: list[int]) -> None:
    """Refuse weights that the last update has spoilt, in whichever process."""
    if not all(of_all(all(bool(weight.isfinite().all()) for weight in weights))):
        raise FloatingPointError(
            f"update {update}, on {_named(rows)}, made weights that are not finite: lower lr"
        )


def _named(rows: list[int]) -> str:
    return ", ".join(f"rows[{row}]" for row in rows)
