"""What a recipe may say: its keys, their types and their defaults."""

import re
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from omegaconf import OmegaConf

from lmdyn import losses
from lmdyn.checks import check_count, check_number, unknown
from lmdyn.lm.data import PAPERS, SPLITS, ProbeSet, as_probes, load_probes, with_all
from lmdyn.lm.models import DTYPES
from lmdyn.lm.settings import Plan, Settings
from lmdyn.lm.tokens import begin_alike

SHARED = ("seed", "mixed_precision")  # settings that a recipe may give once, for all its stages


@dataclass(frozen=True)
class Data:
    """The rows to learn: ``source``, ``split`` and ``limit`` as for `load_probes`; ``max_length``
    and ``max_prompt`` as for `Format`, the source's own if None."""

    source: str
    split: Literal["train", "test"] | None = "train"
    limit: int | None = None
    max_length: int | None = None
    max_prompt: int | None = None

    def __post_init__(self):
        for name in ("limit", "max_length", "max_prompt"):
            check_count(name, getattr(self, name), 1, optional=True)


@dataclass(frozen=True)
class Probes:
    """What is scored on the way: as for `Data`, its source if None, ``limit`` prompts a split."""

    source: str | None = None
    split: Literal["train", "test"] | None = None
    limit: int | None = None
    types: list[str] | None = None

    def __post_init__(self):
        check_count("limit", self.limit, 1, optional=True)


@dataclass(frozen=True, kw_only=True)
class Stage(Settings):
    """One run of `finetune`: all its settings, and these.

    Attributes:
        loss: a name that `lmdyn.losses.get` knows.
        hyper: hyperparameters of the loss, such as ``{beta: 0.1}``.
        name: of the stage's folder; that of the loss if None.
        both: the paper's extend, see `extend`.
        rounds: so many rounds of `finetune_on_policy`, ``epochs`` each.
        max_new_tokens: of what is sampled in a round.
        temperature: likewise.
    """

    loss: str
    hyper: dict[str, Any] = field(default_factory=dict)
    name: str | None = None
    both: bool = False
    rounds: int | None = None
    max_new_tokens: int = 64
    temperature: float = 1.0

    def __post_init__(self):
        if self.mixed_precision == "False":  # what YAML makes of no
            object.__setattr__(self, "mixed_precision", "no")
        super().__post_init__()
        if self.name is None:
            object.__setattr__(self, "name", self.loss)
        _check_name(self.name)
        check_count("rounds", self.rounds, 1, optional=True)
        check_count("max_new_tokens", self.max_new_tokens, 1)
        check_number("temperature", self.temperature, zero=True)
        responses = self.get_loss().responses
        if self.both and responses != ("chosen",):
            raise ValueError(f"both is for a loss of one response, such as sft, not {self.loss}")
        if self.both and (self.rounds or self.response != "chosen"):
            raise ValueError("both goes neither with rounds nor with response: leave those out")
        if self.spare_valleys and "rejected" not in responses:
            raise ValueError(f"{self.loss} reads no rejected response: leave spare_valleys out")

    def get_loss(self) -> losses.Loss:
        """The loss with its hyperparameters."""
        given = {k: float(v) if type(v) is int else v for k, v in self.hyper.items()}
        return losses.get(self.loss, **given)

    def keys(self) -> dict[str, str]:
        """What the loss calls a response → its type in the rows."""
        return {n: self.response if n == "chosen" else n for n in self.get_loss().responses}

    def settings(self) -> dict[str, Any]:
        """What `finetune` takes of it."""
        return {f.name: getattr(self, f.name) for f in fields(Settings)}

    def plan(self, n_rows: int) -> Plan:
        """What `finetune` will do with so many rows, in a round if there are rounds."""
        return Plan(n_rows=n_rows, **self.settings())

    def rows(self, rows: ProbeSet) -> ProbeSet:
        """What it learns of the recipe's rows, with the responses that it reads."""
        if self.both:
            return extend(rows)
        # In rounds rejected is sampled.
        return rows if self.rounds else with_all(rows, list(self.keys().values()), self.loss)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that a run depends on.

    Attributes:
        name: under which it is found.
        about: what it does, in a line.
        model: as for `load`; so are ``dtype`` and ``device``. Several processes take the devices
            that accelerate gives them.
        data: the rows to learn.
        stages: what is done with them, one after the other.
        probes: what is scored on the way; None for nothing.
        gradient_checkpointing: compute activations a second time instead of keeping them.
    """

    name: str
    about: str
    model: str
    data: Data
    stages: list[Stage]
    probes: Probes | None = None
    dtype: str = "float32"
    gradient_checkpointing: bool = False
    device: str = "auto"

    def __post_init__(self):
        _check_name(self.name)
        names = [stage.name for stage in self.stages]
        if not names:
            raise ValueError("stages is empty: name at least one")
        if len(set(names)) < len(names):
            raise ValueError(f"stages must differ in name, got {', '.join(names)}")
        if self.dtype not in DTYPES:
            raise ValueError(unknown("dtype", self.dtype, DTYPES))
        for i, stage in enumerate(self.stages):
            if self.probes is None and stage.probe_every is not None:
                raise ValueError(f"stages.{i}.probe_every without probes: give both, or neither")

    def load_rows(self) -> ProbeSet:
        """The rows to learn; of the paper's files those alone that have both responses.

        One rejected response of the paper's HH is blank. A row of anybody else's that lacks one
        is refused by the stage that reads it.
        """
        rows = load_probes(self.data.source, split=self.data.split, limit=self.data.limit)
        if self.data.source in PAPERS:
            rows = rows[[i for i, row in enumerate(rows) if "rejected" in row]]
        return self._cut(rows)

    def load_probe_rows(self) -> ProbeSet | None:
        """What is scored on the way."""
        if (wanted := self.probes) is None:
            return None
        found = load_probes(wanted.source or self.data.source, wanted.types, split=wanted.split)
        if wanted.limit is not None:
            parts = [found.split(name).rows[: wanted.limit] for name in SPLITS]
            found = ProbeSet(sum(parts, ()), found.types, found.format)
        return self._cut(found)

    def _cut(self, rows: ProbeSet) -> ProbeSet:
        lengths = {name: getattr(self.data, name) for name in ("max_length", "max_prompt")}
        given = {name: value for name, value in lengths.items() if value is not None}
        return replace(rows, format=replace(rows.format, **given))

    def to_yaml(self) -> str:
        """The recipe in full, as `read` takes it."""
        plain = asdict(self)
        for key in SHARED:  # above the stages where they agree, so that one change reaches all
            if len({stage[key] for stage in plain["stages"]}) == 1:
                *_, plain[key] = [stage.pop(key) for stage in plain["stages"]]
        return OmegaConf.to_yaml(plain)

    def differences(self, other: "Recipe") -> list[str]:
        """What a run of ``other`` would do otherwise: "key (was …, now …)"."""
        was, now = _flat(asdict(other)), _flat(asdict(self))
        return [
            f"{key} (was {was.get(key)!r}, now {now.get(key)!r})"
            for key in was | now
            if was.get(key) != now.get(key) and key not in ("name", "about", "device")
        ]


def extend(rows: ProbeSet, interleaved: bool = False) -> ProbeSet:
    """The paper's extend: the chosen and the rejected response of each row, both as ``chosen``.

    Args:
        rows: with both responses.
        interleaved: each rejected response right after its chosen one, as the book's records have
            them, instead of all chosen ones first. It decides what a seed puts into an update.

    Raises:
        ValueError: a row without one of them.
    """
    pairs = with_all(rows, ["chosen", "rejected"], "both")
    as_is = pairs.format.as_written
    said = [(r["chosen"], r["rejected"] if as_is else begin_alike(r, r["rejected"])) for r in pairs]
    order = [(i, k) for i in range(len(pairs)) for k in (0, 1)]
    order = order if interleaved else sorted(order, key=lambda at: at[1])
    learn = [{"prompt": pairs[i]["prompt"], "chosen": said[i][k]} for i, k in order]
    return as_probes(learn, ["chosen"], pairs.format)


def _check_name(name: str) -> None:
    """Names become folders."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError(f"name must be of letters, digits, '.', '_', '-', got {name!r}")


def _flat(value, key: str = "") -> dict[str, Any]:
    """Dotted key → value."""
    if not isinstance(value, dict | list):
        return {key: value}
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    flat = [_flat(part, f"{key}.{name}" if key else str(name)) for name, part in parts]
    return {k: v for part in flat for k, v in part.items()}
