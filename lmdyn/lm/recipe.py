"""Recipes: a model, its data and the stages it is trained in, read from YAML and checked.

A file gives the keys of `Recipe`, and two more: ``extends``, the name or path of another recipe
(or a list of them) whose keys it changes; and ``defaults``, what every stage has that does not
say otherwise. A list is changed by number: ``stages: {1: {lr: 1e-5}}``, or ``stages.1.lr=1e-5`` on
the command line.
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

import yaml

from lmdyn.lm._stages import Data, Probes, Recipe, Stage
from lmdyn.lm._typed import build, dot

__all__ = ["Data", "Probes", "Recipe", "Stage", "catalogue", "read"]

FOLDER = Path(__file__).parent / "recipes"
KINDS = ("sft", "dpo", "extend")  # what the paper does with every model and dataset
ON_T4 = ("pythia-410m", "qwen1.5-0.5b")  # what fits, see recipes/device/t4.yaml


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
    return build(Recipe, _with_defaults(raw), also=("defaults",))


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
        near = get_close_matches(name, known, 1, 0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown recipe {name!r}: {hint}`python -m lmdyn recipes` lists them")
    raw: dict = {}
    for file in files:
        if str(file) in seen:
            raise ValueError(f"{file.name} extends itself: mend its 'extends'")
        own = _parse_file(file)
        extends = own.pop("extends", [])
        if not isinstance(extends, str | list):
            raise ValueError(f"{file.name}: extends must be a name or a list, got {extends!r}")
        for base in [extends] if isinstance(extends, str) else extends:
            inherited = _found(str(base), file.parent, (*seen, str(file)))
            inherited.pop("name", None)  # each has its own
            raw = _overlay(raw, inherited, "")
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
        parts = {key: _overlay(base.get(key), change[key], dot(where, key)) for key in change}
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
