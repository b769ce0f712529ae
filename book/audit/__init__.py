"""What a chapter claims: one module a chapter, its claims as functions, and their table.

A function takes what the chapter computed and returns rows of its `ClaimTable`. Guarantees and
trends are told apart: a guarantee has no exception, a trend has a share. The paper's claims are
reproduced or not; those of this book are found or not; its slips are corrected.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from show import Table

MARKS = {"not testable here": "○", "not": "✗", "violated": "✗", "partly": "◐"}


class ClaimTable(Table):
    """Verdict first, then the claim, with what supports it in smaller type below.

    Args:
        rows: one string for each name in ``header``: the claim first, the verdict last.
        header: by default claim, paper, here, verdict; or claim, here, verdict where rows have
            three entries, as the claims of this book have.
    """

    def __init__(self, rows: Iterable[Sequence[object]], header: Sequence[str] = ()):
        rows = [tuple(row) for row in rows]
        short = rows and len(rows[0]) == 3
        names = tuple(header) or ("claim", *(() if short else ("paper",)), "here", "verdict")
        self.claims = Table(rows, names).rows
        super().__init__([self._told(names, *row) for row in self.claims], ("verdict", "claim"))

    @staticmethod
    def _told(names: Sequence[str], claim: str, *others: str) -> tuple[str, str]:
        *sources, verdict = others
        said = [f"{n}: {s}" for n, s in zip(names[1:-1], sources, strict=True) if s]
        small = f"<br><small>{'<br>'.join(said)}</small>" if said else ""
        mark = next((MARKS[start] for start in MARKS if verdict.startswith(start)), "✓")
        return f"{mark} {verdict}", claim + small

    def __repr__(self) -> str:
        return "\n".join(f"{claim}: {verdict}" for claim, *_, verdict in self.claims)


def guarantee(holds: bool) -> str:
    """The verdict on a statement that allows no exception."""
    return "guarantee, holds" if holds else "violated"


def trend(*parts: bool, word: str = "reproduced") -> str:
    """The verdict on an observation: all its parts came out, some did, or none."""
    if not parts:
        raise ValueError("a trend needs at least one part: pass the conditions that were checked")
    return word if all(parts) else "partly" if any(parts) else f"not {word}"


def found(*parts: bool) -> str:
    """`trend`, for what this book claims and the paper does not."""
    return trend(*parts, word="found")


def slip(confirmed: bool) -> str:
    """The verdict on an error in the paper, its code or its data: it is one, or it is none."""
    return "a slip, corrected" if confirmed else "not a slip"


def spread(values, digits: int = 2, sign: bool = False) -> str:
    """The smallest and the largest, as text; one number if both read alike."""
    values = np.asarray(values)  # tensors, too
    low, high = (f"{v:{'+' if sign else ''}.{digits}f}" for v in (values.min(), values.max()))
    return low if low == high else f"{low} to {high}"
