"""Recipes: a model, its data and the stages it is trained in, read from YAML and checked.

A file gives the keys of `Recipe`, and two more: ``extends``, the name or path of another recipe
(or a list of them) whose keys it changes; and ``defaults``, what every stage has that does not
say otherwise. A list is changed by number: ``stages: {1: {lr: 1e-5}}``, or ``stages.1.lr=1e-5`` on
the command line.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import get_args, get_origin, get_type_hints

import yaml

from lmdyn import losses
from lmdyn._check import unknown
from lmdyn.lm._plan import PRECISIONS, Plan, check_count
from lmdyn.lm.data import SPLITS
from lmdyn.lm.models import DTYPES

FOLDER = Path(__file__).parent / "recipes"
KINDS = ("sft", "dpo", "extend")  # what the paper does with every model and dataset
ON_T4 = ("pythia-410m", "qwen1.5-0.5b")  # what fits, see recipes/device/t4.yaml


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
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise ValueError(f"name must be of letters, digits, '.', '_', '-', got {self.name!r}")
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
        names = [f.name for f in fields(Plan) if f.name not in ("n_rows", "seed")]
        own = {name: getattr(self, name) for name in names if name != "mixed_precision"}
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
                raise ValueError(f"stages.{number}.probe_every without probes: give probes too")

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


def catalogue() -> dict[str, tuple[Path, ...]]:
    """Name → the files that make the recipe, each changing the ones before."""
    found = {file.stem: (file,) for file in sorted(FOLDER.glob("*.yaml"))}
    for model in sorted((FOLDER / "model").glob("*.yaml")):
        for data in sorted((FOLDER / "data").glob("*.yaml")):
            for kind in KINDS:
                name = f"{model.stem}-{data.stem}-{kind}"
                files = (FOLDER / f"paper-{kind}.yaml", model, data)
                found[name] = files
                if model.stem in ON_T4:
                    found[f"{name}-t4"] = (*files, FOLDER / "device" / "t4.yaml")
    return found


def read(name: str | Path, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        name: one of `catalogue`, or the path of a YAML file.
        changes: "key=value", the key dotted (``stages.0.lr=1e-5``), the value as in YAML.

    Raises:
        ValueError: an unknown recipe or key (with the nearest name), a file that is no mapping, a
            value of a wrong type or out of range; it names the key.

    Example:
        >>> read("tiny-dpo", ["stages.1.hyper.beta=0.5"]).stages[1].get_loss()
        DPO(beta=0.5, label_smoothing=0.0)
    """
    raw = _found(str(name), Path.cwd(), ())
    raw = {**raw, "name": raw.get("name", Path(name).stem if _is_path(str(name)) else str(name))}
    for change in changes:
        key, equals, value = change.partition("=")
        if not key or not equals:
            raise ValueError(f"a change is key=value, such as seed=1, got {change!r}")
        raw = _overlay(raw, _nested(key.split("."), _parse(value, change)), "")
    return _build(Recipe, _with_defaults(raw), "")


def _is_path(name: str) -> bool:
    return name.endswith((".yaml", ".yml")) or "/" in name


def _found(name: str, beside: Path, seen: tuple[str, ...]) -> dict:
    """The keys of a recipe by its name or path, with all that it extends."""
    known = catalogue()
    if name in known:
        files = known[name]
    elif _is_path(name) and (beside / name).expanduser().is_file():
        files = ((beside / name).expanduser().resolve(),)
    elif _is_path(name):
        raise ValueError(
            f"there is no recipe {name}: `python -m lmdyn recipes` lists those by name"
        )
    else:
        short = unknown("recipe", name, known).split("There is")[0].strip()
        raise ValueError(f"{short} `python -m lmdyn recipes` lists them")
    raw: dict = {}
    for file in files:
        if str(file) in seen:
            raise ValueError(f"{file.name} extends itself: mend its 'extends'")
        own = _parse_file(file)
        extends = own.pop("extends", [])
        if not isinstance(extends, str | list):
            raise ValueError(f"{file.name}: extends must be a name or a list, got {extends!r}")
        for base in [extends] if isinstance(extends, str) else extends:
            raw = _overlay(raw, _found(str(base), file.parent, (*seen, str(file))), "")
        raw = _overlay(raw, own, "")
    return raw


def _parse_file(file: Path) -> dict:
    raw = _parse(file.read_text(encoding="utf-8"), file.name)
    if not isinstance(raw, dict):
        kind = "empty" if raw is None else f"one {type(raw).__name__}"
        raise ValueError(f"{file.name} is {kind}: a recipe is a mapping, lines of 'key: value'")
    return raw


def _parse(text: str, where: str):
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ValueError(f"{where}{line} is not YAML: {problem}") from None


def _nested(keys: Sequence[str], value):
    return {keys[0]: _nested(keys[1:], value)} if keys else value


def _overlay(base, change, where: str):
    """``base`` with the keys of ``change`` put in; a list is changed by number."""
    if isinstance(base, list) and isinstance(change, Mapping):
        base = list(base)
        for key, value in change.items():
            if not str(key).isdecimal() or int(key) >= len(base):
                raise ValueError(f"{where} has no entry {key!r}: there is 0 to {len(base) - 1}")
            base[int(key)] = _overlay(base[int(key)], value, f"{where}.{key}")
        return base
    if isinstance(base, Mapping) and isinstance(change, Mapping):
        parts = {key: _overlay(base.get(key), change[key], _dot(where, key)) for key in change}
        return {**base, **parts}
    return change


def _with_defaults(raw: dict) -> dict:
    """Every stage in full; a stage has the name of its loss if it gives none."""
    raw = dict(raw)
    defaults, stages = raw.pop("defaults", None) or {}, raw.get("stages")
    if not isinstance(defaults, Mapping):
        raise ValueError(f"defaults must be a mapping, got {defaults!r}")
    if isinstance(stages, list):
        full = [{**defaults, **s} if isinstance(s, Mapping) else s for s in stages]
        named = [s if not isinstance(s, dict) else {"name": s.get("loss"), **s} for s in full]
        raw["stages"] = named
    if raw.get("mixed_precision") is False:
        raw["mixed_precision"] = "no"  # which YAML reads as false
    return raw


def _build(cls, raw, where: str):
    """A dataclass out of a mapping, every value of its type."""
    if not isinstance(raw, Mapping):
        raise ValueError(f"{where} must be a mapping, got {raw!r}")
    hints = get_type_hints(cls)
    known = {f.name: f for f in fields(cls)}
    extra = () if where else ("extends", "defaults")
    for key in raw:
        if key not in known:
            raise ValueError(unknown("recipe key", _dot(where, key), _dotted(known, extra, where)))
    for name, f in known.items():
        if name not in raw and f.default is MISSING and f.default_factory is MISSING:
            raise ValueError(f"the recipe has no {_dot(where, name)!r}: give it")
    values = {key: _typed(value, hints[key], _dot(where, key)) for key, value in raw.items()}
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}" if where else str(error)) from None


def _dotted(known, extra, where: str) -> list[str]:
    return [_dot(where, name) for name in (*known, *extra)]


def _typed(value, kind, where: str):
    if get_origin(kind) is UnionType:  # some type or None
        if value is None:
            return None
        (kind,) = (k for k in get_args(kind) if k is not NoneType)
    if is_dataclass(kind):
        return _build(kind, value, where)
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where} must be a list, got {value!r}")
        entry = get_args(kind)[0]
        return tuple(_typed(v, entry, f"{where}.{i}") for i, v in enumerate(value))
    if kind is float:
        value = _number(value)
    if kind is dict and isinstance(value, Mapping):
        return {key: _number(v) for key, v in value.items()}
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where} must be {_WORDS[kind]}, got {value!r}")
    return value


_WORDS = {str: "text", int: "an integer", float: "a number", bool: "true or false"}
_WORDS[dict] = "a mapping"


def _number(value):
    """YAML 1.1 reads 1e-5, without a dot, as text."""
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?e[-+]?\d+", value, re.IGNORECASE):
        return float(value)
    return float(value) if type(value) is int else value


def _check_split(split: str | None) -> None:
    if split is not None and split not in SPLITS:
        raise ValueError(f"split must be 'train', 'test' or null, got {split!r}")


def _dot(where: str, key) -> str:
    return f"{where}.{key}" if where else str(key)


def _flat(value, where: str = "") -> Iterator[tuple[str, object]]:
    """Dotted key, value; of everything that holds nothing further."""
    parts = value.items() if isinstance(value, Mapping) else None
    if isinstance(value, list | tuple):
        parts = enumerate(value)
    if not parts:
        yield where, value
        return
    for key, part in parts:
        yield from _flat(part, _dot(where, key))
