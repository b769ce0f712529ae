"""Read a recipe: by name or path, with all that it extends, every key known and of its type.

A file gives the keys of `Recipe`, and four more: ``extends``, the name or path of another recipe
(or a list of them) whose keys it changes; ``seed``, ``mixed_precision`` and ``defaults``, what
every stage has that does not say otherwise. A list is changed by number:
``stages: {1: {lr: 1e-5}}``, or ``stages.1.lr=1e-5`` on the command line.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lmdyn.lm.recipes.schema import SHARED, Recipe, Stage

FOLDER = Path(__file__).parent
KINDS = ("sft", "dpo", "extend")  # what the paper does with every model and dataset
ON_T4 = ("pythia-410m", "qwen1.5-0.5b")  # what fits, see device/t4.yaml


def catalogue() -> dict[str, tuple[Path, ...]]:
    """Name → the files that make the recipe, each changing the ones before."""
    found = {file.stem: (file,) for file in sorted(FOLDER.glob("*.yaml"))}
    for model in sorted((FOLDER / "model").glob("*.yaml")):
        for data in sorted((FOLDER / "data").glob("*.yaml")):
            for kind in KINDS:
                name, files = f"{model.stem}-{data.stem}-{kind}", (model, data)
                found[name] = (FOLDER / f"paper-{kind}.yaml", *files)
                if model.stem in ON_T4:
                    found[f"{name}-t4"] = (*found[name], FOLDER / "device" / "t4.yaml")
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
    name = str(name)
    raw = _load(name, Path.cwd(), ())
    raw.setdefault("name", Path(name).name.removesuffix(".yaml"))
    for change in changes:
        key, equals, _ = change.partition("=")
        if not key or not equals:
            raise ValueError(f"a change is key=value, such as seed=1, got {change!r}")
        with _one_line(f"{change}: "):
            raw.merge_with_dotlist([change])
    shared = {key: raw.pop(key) for key in SHARED if key in raw}
    defaults = raw.pop("defaults", None) or {}
    if OmegaConf.is_list(raw.get("stages")):
        parts = [(shared, defaults, stage) for stage in raw.stages]
        raw.stages = [_typed(Stage, f"stages.{i}.", *some) for i, some in enumerate(parts)]
    return _typed(Recipe, "", raw)


def _files(name: str, beside: Path) -> tuple[Path, ...]:
    """The files of a recipe, by name or path."""
    known, path = catalogue(), (beside / name).expanduser().resolve()
    if name in known or path.is_file():
        return known.get(name) or (path,)
    near = get_close_matches(name, known, 1, 0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(
        f"unknown recipe {name!r}: {hint}Give the path of a YAML file, or one of the names that "
        "`python -m lmdyn recipes` lists"
    )


def _load(name: str, beside: Path, seen: tuple[Path, ...]) -> DictConfig:
    """The keys of a recipe, with all that it extends, as they are written."""
    raw = OmegaConf.create()
    for file in _files(name, beside):
        if file in seen:
            raise ValueError(f"{file.name} extends itself: mend its 'extends'")
        with _one_line(f"{file.name}: "):
            own = OmegaConf.create(file.read_text(encoding="utf-8"))
            if not OmegaConf.is_dict(own):
                raise ValueError("a list, where a recipe is a mapping, lines of 'key: value'")
            extends = own.pop("extends", [])
            bases = [extends] if isinstance(extends, str) else list(extends)
        for base in bases:
            inherited = _load(str(base), file.parent, (*seen, file))
            inherited.pop("name", None)  # each has its own
            raw = _changed(raw, inherited)
        raw = _changed(raw, own)
    return raw


def _changed(raw: DictConfig, own: DictConfig) -> DictConfig:
    if OmegaConf.is_list(raw.get("stages")) and OmegaConf.is_dict(own.get("stages")):
        for number, stage in own.pop("stages").items():  # OmegaConf takes no mapping for a list
            with _one_line(""):
                OmegaConf.update(raw, f"stages.{number}", stage)
    return OmegaConf.merge(raw, own)


def _typed(cls, where: str, *parts):
    """A dataclass out of mappings, each changing the ones before."""
    with _one_line(where):
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), *parts))


@contextmanager
def _one_line(where: str) -> Iterator[None]:
    """Whatever YAML, OmegaConf or a dataclass refuses, as a ValueError that names the key."""
    try:
        yield
    except yaml.YAMLError as error:
        raise ValueError(f"{where}not YAML: {' '.join(str(error).split())}") from None
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        key = getattr(error, "full_key", None) or ""
        where = f"{where}{key}".replace("[", ".").replace("]", "").rstrip(".: ")
        message = str(error).splitlines()[0]
        raise ValueError(f"{where}: {message}" if where else message) from None
