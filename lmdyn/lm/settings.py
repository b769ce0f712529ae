"""The settings of a run, and what follows for each update."""

import math
from dataclasses import dataclass, fields

import numpy as np
import torch

from lmdyn.checks import check_count, check_known, check_number

OPTIMIZERS = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD, "rmsprop": torch.optim.RMSprop}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How `finetune` trains; a stage of a recipe has the same keys.

    Attributes:
        epochs: passes over the rows.
        lr: learning rate, after the warm-up.
        batch_size: rows in a forward pass, of all processes together.
        response: the response type that takes the place of the loss's ``chosen``.
        spare_valleys: let no gradient through the tokens of ``rejected`` that lie in a valley at
            that moment, π_y < ‖π‖² (see `lmdyn.squeeze_line`).
        optimizer: "adamw", "sgd" or "rmsprop", with PyTorch's defaults for the rest.
        weight_decay: decoupled for "adamw", added to the gradient for the others.
        accumulate: batches in an update.
        clip: scale the gradient down to this norm; None for no clipping.
        warmup: updates over which the learning rate grows linearly.
        max_steps: stop after so many updates, if the epochs have more.
        mixed_precision: "no", or "bf16" to compute in bfloat16 with the weights as they are.
        seed: of the order of the rows, and of dropout.
        probe_every: updates between two probings; an epoch if None.
        save_every: updates between two checkpoints; ``probe_every`` if None.
    """

    epochs: int
    lr: float
    batch_size: int
    response: str = "chosen"
    spare_valleys: bool = False
    optimizer: str = "adamw"
    weight_decay: float = 0.0
    accumulate: int = 1
    clip: float | None = 1.0
    warmup: int = 0
    max_steps: int | None = None
    mixed_precision: str = "no"
    seed: int = 0
    probe_every: int | None = None
    save_every: int | None = None

    def __post_init__(self):
        least = {"epochs": 1, "batch_size": 1, "accumulate": 1, "warmup": 0, "seed": 0}
        for name, n in least.items():
            check_count(name, getattr(self, name), n)
        for name in ("max_steps", "probe_every", "save_every"):
            check_count(name, getattr(self, name), 1, optional=True)
        check_number("lr", self.lr)
        check_number("weight_decay", self.weight_decay, zero=True)
        if self.clip is not None:
            check_number("clip", self.clip)
        check_known("optimizer", self.optimizer, OPTIMIZERS)
        check_known("mixed_precision", self.mixed_precision, ("no", "bf16"))


@dataclass(frozen=True, kw_only=True)
class Plan(Settings):
    """What every update of a run on ``n_rows`` rows does, known before it starts."""

    n_rows: int

    @classmethod
    def of(cls, n_rows: int, **settings) -> "Plan":
        """The plan for so many rows; ValueError for an unknown setting, with the nearest name."""
        for name, value in settings.items():
            check_known("setting", name, [field.name for field in fields(Settings)])
            settings[name] = value.item() if isinstance(value, np.generic) else value
        return cls(n_rows=n_rows, **settings)

    @property
    def per_epoch(self) -> int:
        """Updates in an epoch, which has a fresh order; the last may learn fewer rows."""
        return math.ceil(self.n_rows / (self.batch_size * self.accumulate))

    @property
    def updates(self) -> int:
        return min(self.epochs * self.per_epoch, self.max_steps or math.inf)

    def examples(self, update: int) -> int:
        """How many rows ``update`` updates have learned, repetitions counted."""
        epoch, within = divmod(update, self.per_epoch)
        return epoch * self.n_rows + min(within * self.batch_size * self.accumulate, self.n_rows)

    def rows(self, update: int) -> list[int]:
        """The rows of an update, in an order that depends on the epoch and the seed alone."""
        epoch, within = divmod(update, self.per_epoch)
        order = np.random.default_rng((self.seed, epoch)).permutation(self.n_rows).tolist()
        size = self.batch_size * self.accumulate
        return order[within * size : (within + 1) * size]

    def is_probed(self, update: int) -> bool:
        return update % (self.probe_every or self.per_epoch) == 0 or update == self.updates

    @property
    def probings(self) -> int:
        return sum(map(self.is_probed, range(self.updates + 1)))

    def is_saved(self, update: int) -> bool:
        return update % (self.save_every or self.probe_every or self.per_epoch) == 0

    def lr_at(self, update: int) -> float:
        """Linear over the first ``warmup`` updates, then constant."""
        return self.lr * min(1.0, (update + 1) / (self.warmup + 1))
