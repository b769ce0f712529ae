"""Work that several processes share out, so that each of them ends with all results."""

from collections.abc import Callable, Mapping

import numpy as np
from torch import distributed


def together(
    rows: np.ndarray,
    work: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    size: int,
    rank: int,
    n: int,
) -> dict[str, np.ndarray]:
    """Have every process work on some of the rows, and give each what all have found.

    Args:
        rows: the numbers of the rows; the process ``rank`` takes every n-th.
        work: some row numbers → floating arrays with one entry each. Not called without a row, if
            there are several processes.
        size: rows in the arrays that are returned.
        rank: this process's number, from 0.
        n: how many processes take part. All must call this, with the same rows.

    Returns:
        What `work` names → (size, …), NaN for other rows than these.

    Raises:
        ValueError: `work` has raised one in some process.
        RuntimeError: `work` has raised something else in another process.
    """
    mine = rows[rank::n]
    if n == 1:
        return _placed([(mine, work(mine))], size)
    try:
        part = mine, work(mine) if len(mine) else {}
    except Exception as error:  # the others must hear of it, or they would wait for ever
        kind = ValueError if isinstance(error, ValueError) else RuntimeError
        said = str(error) if kind is ValueError else f"{type(error).__name__}: {error}"
        part = kind(f"process {rank}, on every {n}th of the rows from {rank} on: {said}")
    parts = of_all(part)
    for part in parts:
        if isinstance(part, Exception):
            raise part
    return _placed(parts, size)


def of_all(value) -> list:
    """What each process passes, in their order. All must call this."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [value]
    values = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def _placed(parts, size: int) -> dict[str, np.ndarray]:
    whole = {}
    for rows, found in parts:
        for name, values in found.items():
            if name not in whole:
                whole[name] = np.full((size, *values.shape[1:]), np.nan, values.dtype)
            whole[name][rows] = values
    return whole
