"""What scores before and after training say about the kernel: the paper's LBK and SignDelta.

Scores follow the log-prob of the response's own tokens, not of the whole vocabulary, so A enters
by its row of the label, (e_y − π)ᵀ. A step of size η on the sum of the losses of the updates u,
each with G_l = c(π_l − e_{y_l}), c = 1 for SFT, changes

    Δ log π(y_o|x_o) = −η Σ_u Σ_{m,l} (e_{y_m} − π_m)ᵀ K_{m,l}(o, u) G_l(u) + O(η²),

and by Cauchy-Schwarz over tokens and vocabulary, with ρ = Σ_l ‖π_l − e_{y_l}‖²,

    LBK(o) = (Δ log π(y_o|x_o))² / (ρ_o Σ_u ρ_u)  ≤  η² ‖K(o, ·)‖²  + O(η³).
"""

import numpy as np

from lmdyn.checks import unknown

FORMS = ("exact", "reference")


def lbk(
    before,
    after=None,
    *,
    learned: str = "chosen",
    rows=None,
    form: str = "exact",
    per_row: bool = False,
) -> np.ndarray:
    """A lower bound of η²‖K‖² from how much the log-probs moved.

    ``form="exact"`` is (Δ log π)² / (ρ_o Σ_u ρ_u), with ρ = Σ_l ‖π_l − e_{y_l}‖² before the step,
    summed over the rows of a type in numerator and denominator unless ``per_row``. K is the
    block of the kernel between all tokens of the observation and of the updates, in spectral norm.

    ``form="reference"`` is what the reference's notebook plots as LBK: ‖Δ log π‖ over the rows,
    divided by the mean ‖G‖ and by a root of the mean ‖A‖_F; no squares, the values *after* the
    step, and ‖A‖_F = √(V·(mean_l ‖π_l‖)² + V − 2) from the mean of the norms. It is no bound.

    Args:
        before: `Scores`, or a `Trajectory` of S probings.
        after: the `Scores` after the step; with a trajectory, nothing.
        learned: the type of response that the updates learn by SFT.
        rows: which prompts they learn; without it, those of a trajectory's split "train", or all.
            The bound assumes that each is learned once between two probings, at the same η.
        form: "exact" or "reference".
        per_row: one value for each observed response.

    Returns:
        (R,) for two scores, (S − 1, R) for a trajectory; with ``per_row`` (N, R), (S − 1, N, R).
        NaN where no row has the type.

    Raises:
        ValueError: an unknown form or type, scores of other rows or types, or without what the
            form needs.
    """
    delta, updates = _change(before, after, learned, rows, form)
    n = np.asarray(before.n_tokens, dtype=float)
    if form == "reference":
        scale = _reference_scale(before, after, learned, updates, per_row)
        moved = abs(delta) if per_row else np.sqrt(_sum(delta**2))
        return _result(moved / scale, after)
    residual_sq = _series(before, after, "prob_sq") - 2 * _series(before, after, "label_prob") + 1
    rho = (n * residual_sq)[:-1]
    g = np.nansum(rho[:, updates, before.types.index(learned)], axis=1)
    if per_row:
        return _result(delta**2 / (rho * g[:, None, None]), after)
    return _result(_sum(delta**2) / (_sum(rho) * g[:, None]), after)


def sign_delta(
    before,
    after=None,
    *,
    learned: str = "chosen",
    rows=None,
    form: str = "exact",
    per_row: bool = False,
) -> np.ndarray:
    """The mean change of log π(y|x) over the rows: in which direction the updates pull (nats).

    ``form="reference"`` divides it as `lbk` is divided there; the sign stays. Arguments, shapes
    and errors are those of `lbk`; ``learned`` and ``rows`` only matter there.
    """
    delta, updates = _change(before, after, learned, rows, form)
    mean = delta if per_row else _mean(delta)
    if form == "reference":
        mean = mean / _reference_scale(before, after, learned, updates, per_row)
    return _result(mean, after)


def _change(before, after, learned, rows, form) -> tuple[np.ndarray, np.ndarray]:
    """Δ log π (S − 1, N, R), and the indices of the rows that are learned."""
    if form not in FORMS:
        raise ValueError(unknown("form", form, FORMS))
    if learned not in before.types:
        raise ValueError(unknown("response type", learned, before.types))
    logp = _series(before, after, "logp")
    if len(logp) < 2:
        raise ValueError(f"a change needs two probings, got {len(logp)}")
    if rows is None:
        split = np.asarray(getattr(before, "split", [""] * logp.shape[1]))
        rows = np.flatnonzero(split != "test")
    return np.diff(logp, axis=0), np.asarray(rows)


def _series(before, after, name: str) -> np.ndarray:
    """(S, N, R): the statistic of a trajectory, or of two scores."""
    parts = [before] if after is None else [before, after]
    for part in parts:
        if getattr(part, name, None) is None:
            raise ValueError(f"{type(part).__name__} has no {name!r}: score with stats=True")
    arrays = [np.asarray(getattr(part, name), dtype=float) for part in parts]
    if after is None and arrays[0].ndim != 3:
        raise ValueError("one score shows no change: give the scores before and after")
    if after is None:
        return arrays[0]
    if before.types != after.types or arrays[0].shape != arrays[1].shape:
        raise ValueError("the scores before and after must be of the same rows and types")
    return np.stack(arrays)


def _reference_scale(before, after, learned, updates, per_row) -> np.ndarray:
    """What the reference divides by: a root of the mean ‖A‖_F, and the mean ‖G‖."""
    v = before.vocab_size
    a = np.sqrt(v * _series(before, after, "prob_norm")[1:] ** 2 + v - 2)
    g = _series(before, after, "residual_norm")[1:, updates, before.types.index(learned)]
    g = _mean(g[..., None])  # (S − 1, 1)
    return np.sqrt(a) * g[..., None] if per_row else np.sqrt(_mean(a)) * g


def _sum(values: np.ndarray) -> np.ndarray:
    """(S, R) over the rows that have the type; NaN where none has."""
    return np.where(np.isnan(values).all(1), np.nan, np.nansum(values, axis=1))


def _mean(values: np.ndarray) -> np.ndarray:
    return _sum(values) / np.maximum((~np.isnan(values)).sum(1), 1)


def _result(values: np.ndarray, after) -> np.ndarray:
    return values if after is None else values[0]
