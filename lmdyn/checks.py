"""Input checks that modules share: each error names what is wrong and what to do."""

import math
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from numbers import Integral, Real

import torch
from torch import Tensor


def described(value) -> str:
    """What was given, in an error: dtype and shape of a tensor, or the type."""
    tensor = isinstance(value, Tensor)
    return f"{value.dtype} {tuple(value.shape)}" if tensor else type(value).__name__


def check_finite(values: Tensor, name: str, or_minus: bool = False) -> None:
    """Refuse anything but finite floating-point values with a last axis, ``or_minus`` infinity."""
    if not isinstance(values, Tensor) or not values.is_floating_point() or values.ndim == 0:
        told = described(values)
        raise ValueError(f"{name} must be a floating-point tensor (..., V), got {told}")
    fine = values.isfinite() | values.isneginf() if or_minus else values.isfinite()
    if bad := (~fine).nonzero().tolist():
        told = f"{len(bad)} NaN or infinite, the first at index {tuple(bad[0])}"
        raise ValueError(f"{name} must be finite: {told}")


def check_logits(logits: Tensor, name: str = "logits") -> None:
    """Refuse what gives no distribution; −inf, probability zero, must not fill a row."""
    check_finite(logits, name, or_minus=True)
    if bad := logits.isneginf().all(-1).nonzero().tolist():
        raise ValueError(f"{name} must be finite somewhere: all are -inf at index {tuple(bad[0])}")


def as_labels(y: int | Tensor, like: Tensor) -> Tensor:
    """Labels 0 … V − 1 as int64 on the device of ``like`` (..., V)."""
    y, v = torch.as_tensor(y, device=like.device), like.shape[-1]
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise ValueError(f"labels must be integers, got {y.dtype}")
    if bad := y[(y < 0) | (y >= v)].tolist():
        raise ValueError(f"label {bad[0]} is out of range: there are V = {v} labels")
    return y.long()


def check_count(name: str, value, least: int, optional: bool = False) -> None:
    """Refuse anything but an integer of at least ``least``, or None if ``optional``."""
    fine = isinstance(value, Integral) and not isinstance(value, bool) and value >= least
    if not (fine or (optional and value is None)):
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


def is_number(value) -> bool:
    """Whether it is a finite number, of Python or NumPy."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def check_number(name: str, value, zero: bool = False) -> None:
    """Refuse anything but a finite number above zero, or with ``zero`` of at least zero."""
    if not is_number(value) or value < 0 or (value == 0 and not zero):
        least = "of at least 0" if zero else "above 0"
        raise ValueError(f"{name} must be a finite number {least}, got {value!r}")


def check_same_vocabulary(model, ref) -> None:
    """Refuse a reference model that reads other tokens."""
    ours, theirs = (len(m.get_input_embeddings().weight) for m in (model, ref))
    if ours != theirs:
        told = f"ref knows {theirs} tokens and the model {ours}"
        raise ValueError(f"{told}: pass the model before training, which reads the same tokens")


def check_different(encoded: Sequence, keys: Mapping[str, str], loss) -> None:
    """Refuse rows that a loss would push up and down at once; ``keys`` is its names → types."""
    one, other = keys.get("chosen"), keys.get("rejected")
    for i, row in enumerate(encoded if one and other else ()):
        if row.responses[one] == row.responses[other]:
            told = f"so {type(loss).__name__} has nothing to tell apart: leave the row out"
            raise ValueError(f"rows[{i}]: {one} and {other} are the same tokens, {told}")


def check_texts(name: str, texts, n: int | None = None) -> None:
    """Refuse anything but a list of at least one text, and of ``n`` if given."""
    if isinstance(texts, str) or not len(texts):
        raise ValueError(f"{name} must be a list of at least one text")
    if n is not None and len(texts) != n:
        raise ValueError(f"{name} must be {n} texts, got {len(texts)}")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"{name}[{i}] must be a text, got {type(text).__name__}")


def trainable(model) -> dict[str, Tensor]:
    """The parameters that an update moves, by name; a ValueError if there is none."""
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not found:
        raise ValueError("no parameter of the model has requires_grad: there is nothing to learn")
    return found


def check_known(kind: str, name: str, known: Iterable[str]) -> None:
    """Refuse a name that is not among those known."""
    if name not in known:
        raise ValueError(unknown(kind, name, known))


def broadcast(**shapes: Sequence[int]) -> torch.Size:
    """The common shape of leading axes, whose names the ValueError tells if there is none."""
    try:
        return torch.broadcast_shapes(*shapes.values())
    except RuntimeError:
        told = ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())
        raise ValueError(f"leading axes do not fit: {told}") from None


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The message for a name that is not known: the nearest one, and all if they are not many."""
    known = list(known)
    near = get_close_matches(str(name), known, 1, 0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    names = ", ".join(known) or "none"
    if len(known) > 50:  # a model's parameters
        names = f"{known[0]}, {known[1]} and {len(known) - 2} more"
    return f"unknown {kind} {name!r}: {hint}There is {names}"


def differences(was, now, key: str = "") -> list[str]:
    """Where nested dicts and lists differ: "dotted.key (was …, now …)" for each place."""
    if isinstance(was, list) and isinstance(now, list):
        was, now = dict(enumerate(was)), dict(enumerate(now))
    if isinstance(was, dict) and isinstance(now, dict):
        parts = [(was.get(k), now.get(k), f"{key}.{k}" if key else str(k)) for k in {**was, **now}]
        return [line for part in parts for line in differences(*part)]
    return [] if was == now else [f"{key} (was {was!r}, now {now!r})"]


def check_resumed(folder, differ: Sequence[str], resume: bool) -> None:
    """Refuse a folder that holds a run; with ``resume``, one of a run that differs in something."""
    if not resume:
        how = "pass resume=True (--resume) to go on with it, or another out (--out)"
        raise ValueError(f"{folder} holds a run already: {how}")
    if differ:
        how = "resume with what it began with, or choose another out (--out)"
        raise ValueError(f"{folder} is a run of another recipe: {', '.join(differ)}; {how}")
