"""The plan of a run: which rows each update learns, and with which learning rate."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from lmdyn._check import unknown

OPTIMIZERS = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD, "rmsprop": torch.optim.RMSprop}
PRECISIONS = ("no", "bf16")


@dataclass(frozen=True)
class Plan:
    """What every update of a run does, known before it starts: see `finetune` for the settings.

    Attributes:
        n_rows: how many rows there are to learn.
    """

    n_rows: int
    epochs: int
    lr: float
    batch_size: int
    optimizer: str
    weight_decay: float
    accumulate: int
    clip: float | None
    warmup: int
    max_steps: int | None
    mixed_precision: str
    seed: int
    probe_every: int | None

    def __post_init__(self):
        for name in ("epochs", "batch_size", "accumulate"):
            check_count(name, getattr(self, name), 1)
        for name in ("warmup", "seed"):
            check_count(name, getattr(self, name), 0)
        for name in ("max_steps", "probe_every"):
            check_count(name, getattr(self, name), 1, optional=True)
        _check_number("lr", self.lr)
        _check_number("weight_decay", self.weight_decay, zero=True)
        if self.clip is not None:
            _check_number("clip", self.clip)
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(unknown("optimizer", self.optimizer, OPTIMIZERS))
        if self.mixed_precision not in PRECISIONS:
            raise ValueError(unknown("mixed_precision", self.mixed_precision, PRECISIONS))

    @cached_property
    def per_epoch(self) -> int:
        """Updates in an epoch; the last may learn fewer rows."""
        return math.ceil(self.n_rows / (self.batch_size * self.accumulate))

    @cached_property
    def updates(self) -> int:
        """Updates in the whole run."""
        total = self.epochs * self.per_epoch
        return total if self.max_steps is None else min(total, self.max_steps)

    def examples(self, update: int) -> int:
        """How many rows ``update`` updates have learned, repetitions counted."""
        epoch, within = divmod(update, self.per_epoch)
        return epoch * self.n_rows + min(within * self.batch_size * self.accumulate, self.n_rows)

    def batches(self, update: int) -> list[list[int]]:
        """The rows of an update, in the batches that pass through the model one by one.

        Every epoch has an order of its own, which depends on the seed and the epoch alone: a
        run that goes on needs no memory of it.
        """
        epoch, within = divmod(update, self.per_epoch)
        order = np.random.default_rng((self.seed, epoch)).permutation(self.n_rows).tolist()
        size = self.batch_size * self.accumulate
        rows = order[within * size : (within + 1) * size]
        return [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]

    def rows(self, update: int) -> list[int]:
        """All the rows of an update, in the order of `batches`."""
        return [row for batch in self.batches(update) for row in batch]

    def is_probed(self, update: int) -> bool:
        """Whether the probes are scored after ``update`` updates."""
        return update % (self.probe_every or self.per_epoch) == 0 or update == self.updates

    def lr_at(self, update: int) -> float:
        """Linear over the first ``warmup`` updates, then constant."""
        return self.lr * min(1.0, (update + 1) / (self.warmup + 1))

    def randomness(self, update: int, process: int) -> int:
        """The seed of what an update draws (dropout)."""
        return int(np.random.default_rng((self.seed, update, process)).integers(2**63))


def check_count(name: str, value, least: int, optional: bool = False) -> None:
    """Refuse anything but an integer of at least ``least``."""
    if optional and value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


def _check_number(name: str, value, zero: bool = False) -> None:
    fine = isinstance(value, int | float) and math.isfinite(value)
    if not fine or value < 0 or (value == 0 and not zero):
        least = "of at least 0" if zero else "above 0"
        raise ValueError(f"{name} must be a finite number {least}, got {value!r}")
