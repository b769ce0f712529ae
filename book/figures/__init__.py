"""The book's own figures; `lmdyn.plots` has those that a run's report draws too, and the style.

A figure draws what it is given and computes nothing. Every function takes ``ax=None`` (a new figure
if absent) and returns the Axes it drew on, so that a reader can add to it.
"""

from figures.labels import (
    gain_by_probability,
    label_changes,
    probabilities,
    push_field,
    pushes,
    share_map,
)
from figures.numbers import (
    agreement,
    class_matrix,
    clouds,
    images,
    predicted_measured,
    ranking,
    rates,
    remainder,
    shares,
    table,
    tables,
    tradeoff,
)
from figures.tokens import by_type, next_tokens, token_bars, who_sees_whom
from figures.triangle import simplex, simplex_arrows, simplex_contours

__all__ = [
    "agreement",
    "by_type",
    "class_matrix",
    "clouds",
    "gain_by_probability",
    "images",
    "label_changes",
    "next_tokens",
    "predicted_measured",
    "probabilities",
    "push_field",
    "pushes",
    "ranking",
    "rates",
    "remainder",
    "share_map",
    "shares",
    "simplex",
    "simplex_arrows",
    "simplex_contours",
    "table",
    "tables",
    "token_bars",
    "tradeoff",
    "who_sees_whom",
]
