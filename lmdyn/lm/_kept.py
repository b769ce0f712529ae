"""Answers that cost something, in a file: one line each, written as they come."""

import json
import os
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

# The first line of the file says what the answers depend on, then each has a line. A line counts
# once its newline is there.


class Kept:
    """Answers by key, and the file that has each of them before the next is asked for.

    Args:
        path: the file to begin or to go on from, its folder is made if need be; None for none.
        header: what the answers depend on, as JSON can hold it.
        read: an entry of the file → its key and answer; it raises ValueError, KeyError or
            TypeError for one that is neither.
        what: what an answer is called, in messages.
        others: key of ``header`` → what a file holds that differs there, in messages.

    Attributes:
        answers: key → answer, all there are so far.

    Raises:
        ValueError: the file has another header or none, or a line that is no answer.
        OSError: the file cannot be read or written.
    """

    def __init__(
        self,
        path: str | Path | None,
        header: Mapping,
        read: Callable[[Mapping], tuple[Hashable, Any]],
        what: str,
        others: Mapping[str, str],
    ):
        self.answers: dict[Hashable, Any] = {}
        self._path = None if path is None else Path(path)
        self._read, self._what, self._others = read, what, others
        if self._path is not None:
            self._open(header)

    def add(self, entry: Mapping) -> None:
        """Keep one more answer, in the file at once.

        Raises:
            OSError: it cannot be written there, for instance because the disk is full.
        """
        key, answer = self._read(entry)
        if self._path is not None:
            try:
                with self._path.open("ab") as file:
                    file.write(_line(entry))
            except OSError as error:
                why = f"{error.strerror}; make room, and the same call goes on where it was"
                raise OSError(error.errno, why, str(self._path)) from None
        self.answers[key] = answer

    def _open(self, header: Mapping) -> None:
        first = _line(header)
        content = self._path.read_bytes() if self._path.exists() else b""
        if first.startswith(content):  # no file yet, or one whose first line was cut short
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_bytes(first)
            return
        if not content.startswith(first):
            raise ValueError(
                f"{self._path} holds {self._other(content, header)}: pass another file"
            )
        whole = content.rfind(b"\n") + 1
        if whole < len(content):  # the last line was cut short: it is asked again
            os.truncate(self._path, whole)
        for number, line in enumerate(content[:whole].splitlines()[1:], 2):
            try:
                key, answer = self._read(json.loads(line))
            except (ValueError, KeyError, TypeError):
                raise ValueError(
                    f"{self._path}, line {number} is no {self._what}: {line[:80]!r}; delete that "
                    "line, and it is asked again"
                ) from None
            self.answers[key] = answer

    def _other(self, content: bytes, header: Mapping) -> str:
        """What a file holds that does not begin with this header."""
        try:
            found = json.loads(content.split(b"\n", 1)[0])
            differs = [key for key in header if found[key] != header[key]]
        except (ValueError, KeyError, TypeError):
            return f"something else than {self._what}s"
        return ", ".join(self._others[key] for key in differs)


def _line(entry: Mapping) -> bytes:
    return json.dumps(entry, sort_keys=True).encode() + b"\n"
