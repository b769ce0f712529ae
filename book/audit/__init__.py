"""The table that closes a chapter: claim, paper, here, verdict.

Guarantees and trends are told apart: a guarantee has no exception, a trend has a share.
"""

from collections.abc import Iterable, Sequence


class ClaimTable:
    """Rows of (claim, paper, here, verdict), shown as a table in a notebook.

    Args:
        rows: one string for each column. ``$…$`` is left for the page to typeset.
        header: the names of the columns: the claim first, the verdict last.

    Raises:
        ValueError: a row that does not have one entry for each column.
    """

    def __init__(
        self,
        rows: Iterable[Sequence[str]],
        header: Sequence[str] = ("claim", "paper", "here", "verdict"),
    ):
        self.header = tuple(header)
        self.rows = [tuple(str(cell) for cell in row) for row in rows]
        for number, row in enumerate(self.rows, 1):
            if len(row) != len(self.header):
                raise ValueError(f"row {number} has {len(row)} entries, not {len(self.header)}")

    def _repr_markdown_(self) -> str:
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        return "\n".join(
            "| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines
        )

    def __repr__(self) -> str:
        return "\n".join(f"{claim}: {verdict}" for claim, *_, verdict in self.rows)


def guarantee(holds: bool) -> str:
    """The verdict on a statement that allows no exception."""
    return "guarantee, holds" if holds else "violated"


def trend(*parts: bool) -> str:
    """The verdict on an observation: all its parts came out, some did, or none."""
    if not parts:
        raise ValueError("a trend needs at least one part: pass the conditions that were checked")
    return "reproduced" if all(parts) else "partly" if any(parts) else "not reproduced"
