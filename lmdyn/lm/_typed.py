"""Dataclasses out of mappings, as YAML gives them: every key known, every value of its type."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import get_args, get_origin, get_type_hints

from lmdyn.checks import unknown

_WORDS = {
    str: "text",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    dict: "a mapping",
}


def build(cls, raw, where: str = "", also: Sequence[str] = ()):
    """A dataclass out of a mapping.

    Args:
        cls: the dataclass; its fields may be dataclasses, tuples of them, or "… | None".
        raw: the mapping.
        where: the dotted key under which it stands, for errors.
        also: keys that are read elsewhere, to suggest where an unknown one is near.

    Raises:
        ValueError: no mapping, an unknown key (with the nearest one), one that is missing, a value
            of another type, or what the dataclass itself refuses.
    """
    if not isinstance(raw, Mapping):
        raise ValueError(f"{where} must be a mapping, got {raw!r}")
    hints = get_type_hints(cls)
    known = {f.name: f for f in fields(cls)}
    for key in raw:
        if key not in known:
            there = [dot(where, name) for name in (*known, *also)]
            raise ValueError(unknown("recipe key", dot(where, key), there))
    for name, f in known.items():
        if name not in raw and f.default is MISSING and f.default_factory is MISSING:
            raise ValueError(f"the recipe has no {dot(where, name)!r}: give it")
    values = {key: _typed(value, hints[key], dot(where, key)) for key, value in raw.items()}
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}" if where else str(error)) from None


def dot(where: str, key) -> str:
    """The name of a key of what stands under ``where``."""
    return f"{where}.{key}" if where else str(key)


def _typed(value, kind, where: str):
    if get_origin(kind) is UnionType:  # some type or None
        if value is None:
            return None
        (kind,) = (k for k in get_args(kind) if k is not NoneType)
    if is_dataclass(kind):
        return build(kind, value, where)
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where} must be a list, got {value!r}")
        entry = get_args(kind)[0]
        return tuple(_typed(v, entry, f"{where}.{i}") for i, v in enumerate(value))
    if kind is float:
        value = _number(value)
    if kind is dict and isinstance(value, Mapping):
        return {str(key): _number(v) for key, v in value.items()}
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where} must be {_WORDS[kind]}, got {value!r}")
    return value


def _number(value):
    """YAML 1.1 reads 1e-5, without a dot, as text."""
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?e[-+]?\d+", value, re.IGNORECASE):
        return float(value)
    return float(value) if type(value) is int else value
