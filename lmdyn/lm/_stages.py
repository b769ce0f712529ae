"""What a recipe says: the model, its data, and the stages that it is trained in."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields

import yaml

from lmdyn import losses
from lmdyn.checks import check_count, unknown
from lmdyn.lm._typed import dot
from lmdyn.lm.data import SPLITS
from lmdyn.lm.models import DTYPES
from lmdyn.lm.settings import PRECISIONS, Plan


@dataclass(frozen=True)
class Data:
    """The rows to learn.

    Attributes:
        source: as for `load_probes`: "world", "sample", "hh", "ultrafeedback" or a JSONL path.
        split: "train" or "test" alone; None for both.
        limit: the first so many rows.
        max_length: tokens of prompt and response together; the source's own if None.
        max_prompt: tokens that a long prompt is cut to; likewise.
    """

    source: str
    split: str | None = "train"
    limit: int | None = None
    max_length: int | None = None
    max_prompt: int | None = None

    def __post_init__(self):
        _check_split(self.split)
        for name in ("limit", "max_length", "max_prompt"):
            check_count(name, getattr(self, name), 1, optional=True)


@dataclass(frozen=True)
class Probes:
    """What is scored on the way.

    Attributes:
        source: as for `Data`; that of the data if None.
        split: "train" or "test" alone; None for both.
        limit: prompts of each split; all if None.
        types: the response types; all that there are if None.
    """

    source: str | None = None
    split: str | None = None
    limit: int | None = None
    types: tuple[str, ...] | None = None

    def __post_init__(self):
        _check_split(self.split)
        check_count("limit", self.limit, 1, optional=True)


@dataclass(frozen=True)
class Stage:
    """One run of `finetune`, whose settings are those that are not described here.

    Attributes:
        name: of the stage's folder; that of the loss if the recipe gives none.
        loss: a name that `lmdyn.losses.get` knows.
        hyper: hyperparameters of the loss, such as ``{beta: 0.1}``.
        both: the paper's extend: SFT on (x, y+) and on (x, y−), twice the rows.
        rounds: so many rounds of `finetune_on_policy`, ``epochs`` each.
        max_new_tokens: of what is sampled in a round.
        temperature: likewise.
    """

    name: str
    loss: str
    epochs: int
    lr: float
    batch_size: int
    hyper: dict = field(default_factory=dict)
    response: str = "chosen"
    both: bool = False
    rounds: int | None = None
    max_new_tokens: int = 64
    temperature: float = 1.0
    spare_valleys: bool = False
    optimizer: str = "adamw"
    weight_decay: float = 0.0
    accumulate: int = 1
    clip: float | None = 1.0
    warmup: int = 0
    max_steps: int | None = None
    probe_every: int | None = None
    save_every: int | None = None

    def __post_init__(self):
        _check_name(self.name)
        loss = self.get_loss()
        self.plan(1)
        check_count("rounds", self.rounds, 1, optional=True)
        check_count("save_every", self.save_every, 1, optional=True)
        check_count("max_new_tokens", self.max_new_tokens, 1)
        if self.both and loss.responses != ("chosen",):
            raise ValueError(f"both is for a loss of one response, such as sft, not {self.loss}")
        if self.both and (self.rounds or self.response != "chosen"):
            raise ValueError("both goes neither with rounds nor with response: leave those out")
        if self.spare_valleys and "rejected" not in loss.responses:
            raise ValueError(f"{self.loss} reads no rejected response: leave spare_valleys out")

    def get_loss(self) -> losses.Loss:
        """The loss with its hyperparameters."""
        return losses.get(self.loss, **self.hyper)

    def plan(self, n_rows: int, seed: int = 0, mixed_precision: str = "no") -> Plan:
        """What `finetune` will do with so many rows, in a round if there are rounds."""
        own = {f.name: getattr(self, f.name) for f in fields(Plan) if hasattr(self, f.name)}
        return Plan(n_rows=n_rows, seed=seed, mixed_precision=mixed_precision, **own)


@dataclass(frozen=True)
class Recipe:
    """Everything that a run depends on.

    Attributes:
        name: under which it is found.
        about: what it does, in a line.
        model: as for `load`.
        data: the rows to learn.
        stages: what is done with them, one after the other.
        probes: what is scored on the way; None for nothing.
        seed: of every stage.
        dtype: of the weights.
        mixed_precision: "no", or "bf16" to compute in bfloat16 with the weights as they are.
        gradient_checkpointing: compute activations a second time instead of keeping them.
        device: as for `load`; several processes take the devices that accelerate gives them.
    """

    name: str
    about: str
    model: str
    data: Data
    stages: tuple[Stage, ...]
    probes: Probes | None = None
    seed: int = 0
    dtype: str = "float32"
    mixed_precision: str = "no"
    gradient_checkpointing: bool = False
    device: str = "auto"

    def __post_init__(self):
        _check_name(self.name)
        if not self.stages:
            raise ValueError("stages is empty: name at least one")
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stages must differ in name, got {', '.join(names)}")
        for name, known in (("dtype", DTYPES), ("mixed_precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise ValueError(unknown(name, getattr(self, name), known))
        check_count("seed", self.seed, 0)
        for number, stage in enumerate(self.stages):
            if self.probes is None and stage.probe_every is not None:
                raise ValueError(
                    f"stages.{number}.probe_every without probes: give probes, or null for both"
                )

    def to_yaml(self) -> str:
        """The recipe in full, as `read` takes it."""
        plain = asdict(self)
        plain["stages"] = list(plain["stages"])
        if self.probes is not None and self.probes.types is not None:
            plain["probes"]["types"] = list(self.probes.types)
        return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)

    def differences(self, other: "Recipe") -> list[str]:
        """What a run of ``other`` would do otherwise: "key (was …, now …)"."""
        was, now = (dict(_flat(asdict(r))) for r in (other, self))
        return [
            f"{key} (was {was.get(key)!r}, now {now.get(key)!r})"
            for key in {**was, **now}
            if was.get(key) != now.get(key) and key not in ("name", "about", "device")
        ]


def _check_name(name: str) -> None:
    """Names become folders."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError(f"name must be of letters, digits, '.', '_', '-', got {name!r}")


def _check_split(split: str | None) -> None:
    if split is not None and split not in SPLITS:
        raise ValueError(f"split must be 'train', 'test' or null, got {split!r}")


def _flat(value, where: str = "") -> Iterator[tuple[str, object]]:
    """Dotted key, value; of everything that holds nothing further."""
    parts = list(value.items()) if isinstance(value, Mapping) else None
    if isinstance(value, list | tuple):
        parts = list(enumerate(value))
    if not parts:
        yield where, value
        return
    for key, part in parts:
        yield from _flat(part, dot(where, key))
