"""Recipes: a model, its data and the stages it is trained in, in YAML, checked and run."""

from lmdyn.lm.recipes.estimate import dry_run
from lmdyn.lm.recipes.reading import catalogue, read
from lmdyn.lm.recipes.running import run
from lmdyn.lm.recipes.schema import Data, Probes, Recipe, Stage, extend

__all__ = [
    "Data",
    "Probes",
    "Recipe",
    "Stage",
    "catalogue",
    "dry_run",
    "extend",
    "read",
    "run",
]
