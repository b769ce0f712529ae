"""What a chapter tells: sentences with computed numbers, and tables, as text of the page."""

import re
from collections.abc import Iterable, Sequence

from IPython.display import Markdown


def minus(text: str) -> str:
    """The text with the true minus sign before numbers; hyphens and exponents stay."""
    return re.sub(r"(?<![\w^{-])-(?=[\d.])", "−", text)


def say(*sentences: str) -> Markdown:
    """Sentences of the page that hold computed numbers."""
    return Markdown(minus(" ".join(sentences)))


class Table:
    """Rows under a header, as a table of the page. ``$…$`` and ``{term}`` are typeset there.

    Raises:
        ValueError: a row that does not have one entry for each column.
    """

    def __init__(self, rows: Iterable[Sequence[object]], header: Sequence[str]):
        self.header = tuple(header)
        self.rows = [tuple(minus(str(cell)) for cell in row) for row in rows]
        for number, row in enumerate(self.rows, 1):
            if len(row) != len(self.header):
                raise ValueError(f"row {number} has {len(row)} entries, not {len(self.header)}")

    def _repr_markdown_(self) -> str:
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        return "\n".join(
            "| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines
        )

    def __repr__(self) -> str:
        return "\n".join(" · ".join(row) for row in (self.header, *self.rows))
