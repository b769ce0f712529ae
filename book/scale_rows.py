"""The rows of the record at scale: what is learned, and what is probed."""

import hashlib
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import numpy as np

import record
from lmdyn import lm
from lmdyn.lm.data import ProbeSet, as_probes
from scale_runs import PAIR, Size


class Data(NamedTuple):
    """Rows to learn, probes and their groups, and the hash of all."""

    train: ProbeSet
    probes: ProbeSet
    group: np.ndarray
    sha256: str


@cache
def read(source: str, size: Size) -> Data:
    """Train, test and tune rows of the file's first 500, in an order that never changes."""
    every = lm.load_probes(source)
    rows = [dict(row) for row in every[:500] if "rejected" in row]
    digest = hashlib.sha256("".join(row["prompt"] + row["chosen"] for row in rows).encode())
    groups = {"train": size.train, "test": size.test, "tune": size.tune}
    group = np.repeat(list(groups), list(groups.values()))
    if len(rows) < len(group):
        raise ValueError(f"{source} has {len(rows)} rows with a pair, and {len(group)} are needed")
    rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[: len(group)]]
    for row, name in zip(rows, group, strict=True):
        row["split"] = "train" if name == "train" else "test"
    known, rest = rows[: size.train + size.test], rows[size.train + size.test :]
    record.answer_others(known)
    train, test = known[: size.train], known[size.train :]
    whole = train[: size.watched[0]] + test[: size.watched[1]]
    bare = ("prompt", "split", *PAIR)
    watched = whole + [{k: row[k] for k in bare} for row in test[size.watched[1] :] + rest]
    form = replace(size.format, prompt_keeps=every.format.prompt_keeps)
    learn = as_probes([{k: row[k] for k in bare} for row in train], format=form)
    group = np.concatenate([group[: size.watched[0]], group[size.train :]])
    types = every.types if any(size.watched) else PAIR
    return Data(learn, as_probes(watched, types, form), group, digest.hexdigest())
