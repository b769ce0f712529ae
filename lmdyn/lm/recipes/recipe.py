"""What a recipe may say, and how it is read from YAML.

A file has the keys of `Recipe`, which may be dotted (``stages.1.lr: 1e-5``); ``extends``, the name
or path of a recipe that it changes; ``seed``, ``mixed_precision`` and ``defaults`` for stages.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lmdyn import losses
from lmdyn.checks import check_count, check_number, differences, unknown
from lmdyn.lm.data import PAPERS, ProbeSet, as_probes, load_probes, read_by, with_all
from lmdyn.lm.rows import SPLITS
from lmdyn.lm.settings import Settings
from lmdyn.lm.tokens import KEYS, begin_alike

FOLDER = Path(__file__).parent
KINDS = ("sft", "dpo", "extend")  # what the paper does with every model and dataset
ON_T4 = ("pythia-410m", "qwen1.5-0.5b")  # what fits, see device/t4.yaml
SHARED = ("seed", "mixed_precision")  # what a recipe may give once, for all its stages


@dataclass(frozen=True, kw_only=True)
class Probes:
    """Rows as `load_probes` gives them, the first ``limit`` of each split."""

    source: str | None = None  # that of the data if None
    split: Literal["train", "test"] | None = None
    limit: int | None = None
    types: list[str] | None = None

    def __post_init__(self):
        check_count("limit", self.limit, 1, optional=True)


@dataclass(frozen=True, kw_only=True)
class Data(Probes):
    """The rows to learn; probes have the same lengths and ``format``, see `Format`."""

    source: str = field()  # must be given
    split: Literal["train", "test"] | None = "train"
    max_length: int | None = None
    max_prompt: int | None = None  # of what has the paper's format
    format: Literal["training", "paper"] | None = None  # that of the source if None


@dataclass(frozen=True, kw_only=True)
class Stage(Settings):
    """One run of `finetune`, with all its settings."""

    loss: str  # a name that `lmdyn.losses.get` knows
    hyper: dict[str, Any] = field(default_factory=dict)  # of the loss, such as {beta: 0.1}
    name: str | None = None  # of its folder; that of the loss if None
    both: bool = False  # learn `extend` of the rows
    rounds: int | None = None  # so many of `finetune_on_policy`, each of ``epochs``
    max_new_tokens: int = 64  # sampled in a round
    temperature: float = 1.0  # likewise

    def __post_init__(self):
        if self.mixed_precision == "False":  # what YAML makes of no
            object.__setattr__(self, "mixed_precision", "no")
        super().__post_init__()
        object.__setattr__(self, "name", self.name or self.loss)
        check_count("rounds", self.rounds, 1, optional=True)
        check_count("max_new_tokens", self.max_new_tokens, 1)
        check_number("temperature", self.temperature, zero=True)
        responses = self.get_loss().responses
        if self.both and (responses, self.response, self.rounds) != (("chosen",), "chosen", None):
            raise ValueError("both is for a loss of one response, without rounds and response")
        if self.spare_valleys and "rejected" not in responses:
            raise ValueError(f"{self.loss} reads no rejected response: leave spare_valleys out")

    def get_loss(self) -> losses.Loss:
        return losses.get(self.loss, **self.hyper)

    def settings(self) -> dict[str, Any]:
        """Those of `finetune`."""
        return {of.name: getattr(self, of.name) for of in fields(Settings)}

    def rows(self, rows: ProbeSet) -> ProbeSet:
        """What it learns of the recipe's rows: the responses that its loss reads, in order."""
        if self.both:
            return extend(rows)
        if self.rounds:  # they sample rejected
            return rows
        return read_by(self.get_loss(), rows, chosen=self.response)[0]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that a run depends on."""

    name: str
    about: str
    model: str  # as for `load`, like dtype and device
    data: Data
    stages: list[Stage]  # one after the other
    probes: Probes | None = None  # what is scored on the way
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    gradient_checkpointing: bool = False  # compute activations again instead of keeping them
    device: str = "auto"  # of one process; several take those that accelerate gives them

    def __post_init__(self):
        if not self.stages:
            raise ValueError("stages must be at least one")
        for i, stage in enumerate(self.stages):
            if self.probes is None and stage.probe_every is not None:
                raise ValueError(f"stages.{i}.probe_every without probes: give both, or neither")

    def load(self, which: Probes) -> ProbeSet:
        """The rows of ``data`` or ``probes``."""
        found = load_probes(which.source or self.data.source, which.types, split=which.split)
        rows = [row for name in SPLITS for row in found.split(name).rows[: which.limit]]
        if which is self.data and which.source in PAPERS:  # a rejected response of HH is blank
            rows = [row for row in rows if "rejected" in row]
        form = {"max_length": self.data.max_length, "max_prompt": self.data.max_prompt}
        form["name"] = self.data.format or found.format.name
        return replace(found, rows=tuple(rows), format=replace(found.format, **form))

    def to_yaml(self) -> str:
        """The recipe in full, as `read` takes it."""
        plain = asdict(self)
        for key in SHARED:  # above the stages where they agree, so that one change reaches all
            if len({stage[key] for stage in plain["stages"]}) == 1:
                *_, plain[key] = [stage.pop(key) for stage in plain["stages"]]
        return OmegaConf.to_yaml(plain)

    def differences(self, other: "Recipe") -> list[str]:
        """What a run of ``other`` would do otherwise: "key (was …, now …)"."""
        free = {"name": None, "about": None, "device": None}
        return differences(asdict(other) | free, asdict(self) | free)


def extend(rows: ProbeSet) -> ProbeSet:
    """The paper's extend: the chosen response of every row, then the rejected, as ``chosen``."""
    pairs = with_all(rows, ["chosen", "rejected"], "both")
    form, learn = pairs.format, []
    for name, row in product(("chosen", "rejected"), pairs):
        alike = form.name == "paper" and not form.as_written
        said = begin_alike(row, row[name]) if alike else row[name]
        learn.append({key: row[key] for key in KEYS if key in row} | {"chosen": said})
    return as_probes(learn, ["chosen"], form)


def catalogue() -> dict[str, tuple[Path, ...]]:
    """Name → the files that make the recipe, each changing those before."""
    found = {file.stem: (file,) for file in sorted(FOLDER.glob("*.yaml"))}
    parts = (sorted((FOLDER / part).glob("*.yaml")) for part in ("model", "data"))
    for model, data, kind in product(*parts, KINDS):
        name = f"{model.stem}-{data.stem}-{kind}"
        found[name] = (FOLDER / f"paper-{kind}.yaml", model, data)
        if model.stem in ON_T4:
            found[f"{name}-t4"] = (*found[name], FOLDER / "device" / "t4.yaml")
    return found


@contextmanager
def naming(where: str = "") -> Iterator[None]:
    """What YAML, OmegaConf or a dataclass refuses inside, as one line that names where and key."""
    try:
        yield
    except (yaml.YAMLError, OmegaConfBaseException, TypeError, ValueError, AssertionError) as error:
        key = (getattr(error, "full_key", None) or "").replace("[", ".").replace("]", "")
        where = f"{where}{key}".rstrip(".: ")
        message = " ".join(str(error).split("\n    full_key")[0].split())
        message = message or "a recipe is a mapping, lines of 'key: value'"
        if isinstance(error, yaml.YAMLError):
            message = f"not YAML: {message}"
        elif isinstance(error, IndexError):
            message = f"there are {len(error.parent_node)} of them, counted from 0"
        raise ValueError(f"{where}{': ' if where else ''}{message}") from None


@naming()
def read(name: str | Path, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        name: one of `catalogue`, or the path of a YAML file.
        changes: "key=value", the key dotted (``stages.0.lr=1e-5``), the value as in YAML.
    """
    *bases, own = _files(str(name), Path.cwd())
    raw = OmegaConf.create()
    for part in (*bases, {"name": Path(name).name.removesuffix(".yaml")}, own):
        for key, value in part.items():
            OmegaConf.update(raw, str(key), value)
    for change in changes:
        with naming(f"{change}: "):
            if "=" not in change:
                raise ValueError("a change is key=value, such as seed=1")
            raw.merge_with_dotlist([change])
    shared = {key: raw.pop(key) for key in SHARED if key in raw}
    shared = OmegaConf.merge(shared, raw.pop("defaults", None) or {})
    for i, stage in enumerate(raw.stages if OmegaConf.is_list(raw.get("stages")) else ()):
        with naming(f"stages.{i}."):
            raw.stages[i] = OmegaConf.to_object(OmegaConf.merge(Stage, shared, stage))
    return OmegaConf.to_object(OmegaConf.unsafe_merge(Recipe, raw))


def _files(name: str, beside: Path, above: tuple[Path, ...] = ()) -> Iterator[DictConfig]:
    """What the files of a recipe say, each after the one that it extends."""
    known, path = catalogue(), (beside / name).expanduser().resolve()
    if name not in known and not path.is_file():
        raise ValueError(f"{unknown('recipe', name, known)}, or the path of a YAML file")
    for file in known.get(name, (path,)):
        with naming(f"{file.name}: "):
            own = OmegaConf.create(file.read_text(encoding="utf-8"))
            if not OmegaConf.is_dict(own):
                raise ValueError("a list, where a recipe is a mapping, lines of 'key: value'")
            if file in above:
                raise ValueError("it extends itself: mend its 'extends'")
        if "extends" in own:
            yield from _files(str(own.pop("extends")), file.parent, (*above, file))
        yield own
