"""The judgements on a list of pairs, and their file: one line each, written as they come."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from lmdyn.lm._verdict import VERDICTS, Judge

# The first line of the file says whose judgements these are, then each has a line:
# {"row": 0, "shown first": "a", "verdict": "second"}. A line counts once its newline is there.


class Judgements:
    """Verdicts of one judge on N pairs of answers, each in two orders.

    Args:
        path: the file to begin or to go on from, its folder is made if need be; None for none.
        judge: its description tells its file from another judge's.
        texts: "prompts", "a" and "b" → N texts.

    Attributes:
        verdicts: (row, which answer was shown first, "a" or "b") → verdict, all there are so far.

    Raises:
        ValueError: the file is of another judge, other prompts or answers, or something else; a
            line is no judgement; there is a path, and the judge has no description.
    """

    def __init__(self, path: str | Path | None, judge: Judge, texts: Mapping[str, Sequence[str]]):
        self.verdicts: dict[tuple[int, str], str] = {}
        self._path = None if path is None else Path(path)
        if self._path is not None:
            description = getattr(judge, "description", None)
            if description is None:
                raise ValueError(
                    "the judge has no description: a file needs it to tell its verdicts from those "
                    "of another judge"
                )
            digests = {name: _digest(values) for name, values in texts.items()}
            self._open({"judge": description, **digests}, len(texts["prompts"]))

    def add(self, row: int, shown: str, verdict: str) -> None:
        """Keep one more verdict, in the file at once."""
        if self._path is not None:
            with self._path.open("ab") as file:
                file.write(_line({"row": row, "shown first": shown, "verdict": verdict}))
        self.verdicts[row, shown] = verdict

    def preferred(self, row: int) -> tuple[str, str]:
        """Whom the judge prefers, "a", "b" or "tie": with a shown first, with b shown first."""
        place = {"first": 0, "second": 1}
        with_a, with_b = self.verdicts[row, "a"], self.verdicts[row, "b"]
        return (
            "tie" if with_a == "tie" else "ab"[place[with_a]],
            "tie" if with_b == "tie" else "ba"[place[with_b]],
        )

    def _open(self, header: Mapping, n: int) -> None:
        first = _line(header)
        content = self._path.read_bytes() if self._path.exists() else b""
        if first.startswith(content):  # no file yet, or one whose first line was cut short
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_bytes(first)
            return
        if not content.startswith(first):
            raise ValueError(f"{self._path} holds {_other(content, header)}: pass another file")
        whole = content.rfind(b"\n") + 1
        if whole < len(content):  # the last line was cut short: it is asked again
            os.truncate(self._path, whole)
        for number, line in enumerate(content[:whole].splitlines()[1:], 2):
            key, verdict = self._read(line, number, n)
            self.verdicts[key] = verdict

    def _read(self, line: bytes, number: int, n: int) -> tuple[tuple[int, str], str]:
        try:
            entry = json.loads(line)
            row, shown, verdict = entry["row"], entry["shown first"], entry["verdict"]
        except (ValueError, KeyError, TypeError):
            row = shown = verdict = None
        if row not in range(n) or shown not in ("a", "b") or verdict not in VERDICTS:
            raise ValueError(
                f"{self._path}, line {number} is no judgement: {line[:80]!r}; delete that line, "
                "and it is asked again"
            )
        return (row, shown), verdict


def _line(entry: Mapping) -> bytes:
    return json.dumps(entry, sort_keys=True).encode() + b"\n"


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()[:16]


def _other(content: bytes, header: Mapping) -> str:
    """What a file holds that does not begin with this header."""
    try:
        found = json.loads(content.split(b"\n", 1)[0])
        differs = [key for key in header if found[key] != header[key]]
    except (ValueError, KeyError, TypeError):
        return "something else than judgements"
    names = {"judge": "another judge's verdicts", "prompts": "verdicts on other prompts"}
    return ", ".join(names.get(key, f"verdicts on other answers {key}") for key in differs)
