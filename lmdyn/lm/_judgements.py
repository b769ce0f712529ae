"""The judgements on a list of pairs, and their file."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from lmdyn.lm._kept import Kept
from lmdyn.lm._verdict import VERDICTS, Judge

# The first line of the file says whose judgements these are, then each has a line:
# {"row": 0, "shown first": "a", "verdict": "second"}.

_OTHERS = {
    "judge": "another judge's verdicts",
    "prompts": "verdicts on other prompts",
    "a": "verdicts on other answers a",
    "b": "verdicts on other answers b",
}


class Judgements:
    """Verdicts of one judge on N pairs of answers, each in two orders.

    Args:
        path: the file to begin or to go on from, its folder is made if need be; None for none.
        judge: its description tells its file from another judge's.
        texts: "prompts", "a" and "b" → N texts.

    Raises:
        ValueError: the file is of another judge, other prompts or answers, or something else; a
            line is no judgement; there is a path, and the judge has no description.
    """

    def __init__(self, path: str | Path | None, judge: Judge, texts: Mapping[str, Sequence[str]]):
        description = getattr(judge, "description", None)
        if path is not None and description is None:
            raise ValueError(
                "the judge has no description: a file needs it to tell its verdicts from those "
                "of another judge"
            )
        self._n = len(texts["prompts"])
        header = {"judge": description, **{name: _digest(of) for name, of in texts.items()}}
        self._kept = Kept(path, header, self._read, "judgement", _OTHERS)

    @property
    def verdicts(self) -> dict[tuple[int, str], str]:
        """(row, which answer was shown first, "a" or "b") → verdict, all there are so far."""
        return self._kept.answers

    def add(self, row: int, shown: str, verdict: str) -> None:
        """Keep one more verdict, in the file at once."""
        self._kept.add({"row": row, "shown first": shown, "verdict": verdict})

    def preferred(self, row: int) -> tuple[str, str]:
        """Whom the judge prefers, "a", "b" or "tie": with a shown first, with b shown first."""
        place = {"first": 0, "second": 1}
        with_a, with_b = self.verdicts[row, "a"], self.verdicts[row, "b"]
        return (
            "tie" if with_a == "tie" else "ab"[place[with_a]],
            "tie" if with_b == "tie" else "ba"[place[with_b]],
        )

    def _read(self, entry: Mapping) -> tuple[tuple[int, str], str]:
        row, shown, verdict = entry["row"], entry["shown first"], entry["verdict"]
        if row not in range(self._n) or shown not in ("a", "b") or verdict not in VERDICTS:
            raise ValueError("no judgement")
        return (row, shown), verdict


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()[:16]
