"""Rows of a probe set: what one may hold, out of files and of the formats of TRL's trainers."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from lmdyn.lm.tokens import KEYS, begin_alike, common, is_ids, kind

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


def listed(dataset) -> list:
    """The rows of whatever holds some: a list, a `datasets.Dataset`, a dict of splits, pandas."""
    if isinstance(dataset, Mapping):
        parts = {name: [] if isinstance(x, str) else listed(x) for name, x in dataset.items()}
        if not all(isinstance(row, Mapping) for part in parts.values() for row in part or [None]):
            raise ValueError("the data must be a list of rows, or splits of such, got one dict")
        of = {name: SPLITS[not str(name).startswith("train")] for name in parts}
        return [{"split": of[name], **row} for name, part in parts.items() for row in part]
    if hasattr(dataset, "iloc"):
        return dataset.astype(object).where(dataset.notna(), None).to_dict("records")
    if isinstance(dataset, str | bytes) or not isinstance(dataset, Iterable):
        raise ValueError(f"the data must be a list of rows, got {type(dataset).__name__}")
    return list(dataset)


def read_file(path: Path) -> tuple[list, list[str]]:
    """The rows of a file, JSON lines or one JSON array, and a name for each in error messages."""
    rows, where, place = [], [], path.name
    try:
        text = path.read_text(encoding="utf-8-sig")
        if text.lstrip().startswith("["):
            rows = json.loads(text)
            where = [f"{path.name}, row {i}" for i in range(len(rows))]
        for number, line in enumerate([] if rows else text.split("\n"), 1):
            if line.strip():
                where.append(place := f"{path.name}, line {number}")
                rows.append(json.loads(line))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is not JSON: {error}") from None
    if not rows:
        raise ValueError(f"{path.name} holds no row")
    return rows, where


def checked(row, types: Sequence[str] | None, answered: bool = True) -> dict:
    """A row as lmdyn reads it: its prompt, its responses, and what the chat template is given.

    What is None, NaN or blank is missing, save a label, and so is a column that is no type, unless
    ``types`` names it or its name is nearly one. ``answered`` refuses a row without a response.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"it must be a dict such as {{'prompt': …}}, got {row!r:.60}")
    found = {key: _plain(value) for key, value in row.items()}
    found = _in_one_form({key: x for key, x in found.items() if not _is_missing(key, x)})
    names = dict.fromkeys([*KEYS, *TYPES, "response", *(types or ())])
    for key in found.keys() - names.keys() if types is None else ():
        if near := get_close_matches(str(key), TYPES, 1, 0.85):
            raise ValueError(f"unknown response type {key!r}: did you mean {near[0]!r}?")
    if not isinstance(found.get("split", ""), str) or found.get("split", "train") not in SPLITS:
        raise ValueError(f"split must be 'train' or 'test', got {found['split']!r}")
    kept = {key: found[key] for key in names if key in found}
    if answered and not kept.keys() - set(KEYS):
        raise ValueError("it has a prompt and no response, such as 'chosen'")
    return {k: x if k in KEYS[1:] else _value(x, k) for k, x in kept.items()}


def _plain(value):
    """Lists for arrays, as pandas and parquet hold them."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


def _is_missing(key, value) -> bool:
    if isinstance(value, str):
        return not value.strip() and key != "prompt"  # of a text to go on with
    return key != "label" and (value is None or (isinstance(value, float) and value != value))


def _in_one_form(row: dict) -> dict:
    """A prompt with its responses by type, whichever of TRL's formats the row has."""
    turns = row.get("messages", row.get("conversations"))
    if turns is not None and not row.keys() & {*TYPES, "completion"}:
        turns = _turns(turns, "messages")  # a prompt beside them is the first of them, as text
        return row | {"prompt": turns[:-1], "chosen": turns[-1:]}
    if {"chosen", "rejected"} <= row.keys():
        is_text = kind(row.get("prompt")) == "a text"
        if "prompt" not in row or (is_text and kind(row["chosen"]) == "a conversation"):
            return row | _implicit(row["chosen"], row["rejected"])
    if "prompt" in row and "completion" in row:
        label = row.get("label", True)
        if not isinstance(label, int | float) or label not in (True, False):
            raise ValueError(f"label must be true or false, got {label!r:.60}")
        return {"chosen" if label else "rejected": row["completion"]} | row
    if "prompt" in row:
        return row
    if kind(row.get("text")) == "a text":
        return row | {"prompt": "", "chosen": row["text"]}
    has = ", ".join(sorted(map(str, row))) or "nothing"
    raise ValueError(f"no prompt: it has {has}, and needs prompt, messages, or chosen and rejected")


def _implicit(chosen, rejected) -> dict:
    """What both begin with is the prompt, without the space at its end: as TRL has it."""
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise ValueError("chosen and rejected must both be texts or both conversations")
    if not isinstance(chosen, str):
        chosen, rejected = _turns(chosen, "chosen"), _turns(rejected, "rejected")
    n = common(chosen, rejected)
    n -= isinstance(chosen, str) and 0 < n and chosen[n - 1] == " "
    if not 0 < n < min(len(chosen), len(rejected)):
        raise ValueError("no prompt, and chosen and rejected do not part after one: give it")
    return {"prompt": chosen[:n], "chosen": chosen[n:], "rejected": rejected[n:]}


def _value(value, key: str):
    """A text, a conversation or token ids, checked; a response must end with what is said."""
    is_response = key != "prompt"
    if isinstance(value, str):
        if re.search("[\ud800-\udfff]", value):
            raise ValueError(f"{key!r} holds half a surrogate pair, which is no text")
        return value
    if is_ids(value) and (value or not is_response):
        return value
    turns = _turns(value, key)
    if is_response and turns[-1]["role"] != "assistant":
        raise ValueError(f"the last turn of {key!r} is the {turns[-1]['role']}'s: nothing to learn")
    return turns


def _turns(value, key: str) -> list[dict]:
    turns = [value] if isinstance(value, Mapping) else value
    if not isinstance(turns, list) or not turns or not all(isinstance(t, Mapping) for t in turns):
        told = "a text, or turns with role and content"
        raise ValueError(f"{key!r} must be {told}, got {value!r:.60}")
    names = {"from": "role", "value": "content"}
    turns = [{names.get(key, key): part for key, part in turn.items()} for turn in turns]
    if not all(isinstance(turn.get("role"), str) for turn in turns):
        raise ValueError(f"a turn of {key!r} has no role")
    return turns


def text_of(value, tokenizer) -> str:
    """A prompt or a response to show, without special tokens."""
    if isinstance(value, str):
        return value
    if is_ids(value):
        return tokenizer.decode(value, skip_special_tokens=True)
    return "\n".join(f"{turn['role']}: {turn.get('content') or ''}" for turn in value)


def said(value) -> str | None:
    """What a response says in words: its text, or that of a conversation's only turn."""
    if isinstance(value, str):
        return value
    content = None if is_ids(value) or len(value) > 1 else value[0].get("content")
    return content if isinstance(content, str) else None


def saying(value, text: str):
    """The same, with other words."""
    return text if isinstance(value, str) else [value[0] | {"content": text}]


def with_made_types(rows: Sequence[dict], tokenizer, seed: int) -> list[dict]:
    """Rows with the types that cost nothing: another chosen one, its words shuffled, random words.

    They are the words of all chosen responses; a text without spaces is taken apart into tokens.
    """
    draw, found = np.random.default_rng(seed), []
    pieces = [_pieces(said(row.get("chosen", ())) or "", tokenizer) for row in rows]
    pool = sorted({word for words, _ in pieces for word in words})
    for row, (words, gap) in zip(rows, pieces, strict=True):
        made, chosen, asked = {}, row.get("chosen"), kind(row["prompt"])
        others = [r["chosen"] for r in rows if r.get("chosen") not in (None, chosen)]
        if others := [other for other in others if kind(other) == asked]:
            made["irr_train"] = others[draw.integers(len(others))]
        if len(words) > 1:
            made["random_permute"] = saying(chosen, gap.join(draw.permutation(words)))
        if words:
            made["random_nonhum"] = saying(chosen, gap.join(draw.choice(pool, len(words))))
        found.append({name: begin_alike(row, x) for name, x in made.items()} | row)
    return found


def _pieces(text: str, tokenizer) -> tuple[list[str], str]:
    """The words of a text and what joins them; of one without spaces its tokens."""
    words = text.split()
    if 12 * len(words) > len(text):
        return words, " "
    if not getattr(tokenizer, "is_fast", False):
        return list(text), ""
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return [text[i:j] for i, j in dict.fromkeys(map(tuple, spans)) if i < j], ""
