"""What one row of a probe set may hold, and reading rows from a file."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from lmdyn.checks import unknown

# The response types of the paper's probing data, in the order that every table here follows.
TYPES = {
    "chosen": "the preferred response, y+",
    "chosen_initial": "the base model's own answer",
    "chosen_selfr": "chosen, rephrased by the model itself",
    "chosen_gptsemantic": "chosen in other words, the same meaning",
    "chosen_gptformat": "the form of chosen with another meaning",
    "rejected": "the dispreferred response, y−",
    "reject_gptsemantic": "rejected in other words, the same meaning",
    "reject_gptformat": "the form of rejected with another meaning",
    "irr_train": "the chosen answer to another training prompt",
    "irr_test": "the chosen answer to a held-out prompt",
    "irr_hum": "a fluent sentence that has nothing to do with the prompt",
    "random_permute": "the words of chosen, shuffled",
    "random_nonhum": "random words",
}
SPLITS = ("train", "test")
NEEDED = ("prompt", "chosen")


def checked(row, types: Sequence[str] | None, drop_empty: bool, where: str) -> dict[str, str]:
    """The texts of one row under the known keys; what is None counts as missing.

    Args:
        row: a dict with ``prompt``, ``chosen`` and other response types.
        types: keys to read beside those of the paper; if None, no others may be there.
        drop_empty: take an empty response as missing.
        where: the row's name, for the error.

    Raises:
        ValueError: what is no dict, an unknown, missing, empty or non-text entry.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"{where} must be a dict with 'prompt' and 'chosen', got {row!r:.60}")
    keys = dict.fromkeys(["prompt", "split", *TYPES, *(types or ())])
    for key in row:
        if types is None and key not in keys:
            raise ValueError(
                f"{where}: {unknown('response type', key, TYPES)}; "
                "pass types=[…] to read only those"
            )
    texts = {key: row[key] for key in keys if row.get(key) is not None}
    for key in NEEDED:
        if key not in texts:
            raise ValueError(f"{where} has no {key!r}: every row needs 'prompt' and 'chosen'")
    for key, text in list(texts.items()):
        if not isinstance(text, str):
            raise ValueError(f"{where}: {key!r} must be text, got {type(text).__name__}")
        if drop_empty and key not in NEEDED and not text.strip():
            del texts[key]
        elif not text.strip():
            raise ValueError(
                f"{where}: {key!r} is empty: write something there, or leave the key out "
                "(drop_empty=True does it)"
            )
    if texts.get("split", "train") not in SPLITS:
        raise ValueError(f"{where}: split must be 'train' or 'test', got {texts['split']!r}")
    return texts


def read_jsonl(path: Path) -> tuple[list, list[str]]:
    """The rows of a JSONL file, and a name for each in error messages."""
    rows, where = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if line.strip():
            where.append(f"{path.name}, line {number}")
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"{where[-1]} is not JSON: {error}") from None
    if not rows:
        raise ValueError(f"{path.name} has no row")
    return rows, where
