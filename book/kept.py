"""Records made of many runs: each run kept once it is finished, and all of them in two files."""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from lmdyn import lm
from lmdyn.lm.records import replacing, write_json


def begin(doc: str):
    """A command without options, on one thread: the tiny model and its tokenizer to begin with."""
    argparse.ArgumentParser(description=doc.split("\n")[0]).parse_args()
    torch.set_num_threads(1)
    return lm.load("tiny", device="cpu")


def keep(part: Path, recipe, arrays: dict[str, np.ndarray]) -> None:
    """Keep what a finished run found, with the recipe it was made by, as JSON can hold it."""
    _save(part, arrays | {"recipe": np.array(json.dumps(recipe))})


def kept(part: Path, recipe) -> dict[str, np.ndarray] | None:
    """What a finished run found; None if there is none that was made by this recipe."""
    if not part.is_file():
        return None
    with np.load(part, allow_pickle=False) as file:
        arrays = dict(file)
    return arrays if str(arrays.pop("recipe")) == json.dumps(recipe) else None


def write(out: Path, arrays: dict[str, np.ndarray], meta: dict) -> None:
    """The record: ``out.npz``, the numbers, and ``out.json``, how they were made."""
    _save(out.with_name(f"{out.name}.npz"), arrays)
    write_json(out.with_name(f"{out.name}.json"), meta)


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def packed(curves: np.ndarray) -> np.ndarray:
    """Curves (S, …), nats, in eighths of a nat, as differences along S, which pack well.

    NaN is 0: what is missing must be told elsewhere.
    """
    steps = np.diff(np.round(np.nan_to_num(curves) * 8).astype(int), axis=0, prepend=0)
    return steps.astype(np.int16 if abs(steps).max() < 2**15 else np.int32)


def unpacked(steps: np.ndarray) -> np.ndarray:
    return steps.cumsum(0) / np.float32(8)
