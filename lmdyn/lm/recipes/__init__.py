"""Recipes: a model, its data and the stages it is trained in, in YAML, checked and run."""

from lmdyn.lm.recipes.recipe import Recipe, Stage, catalogue, extend, read
from lmdyn.lm.recipes.running import dry_run, run

__all__ = ["Recipe", "Stage", "catalogue", "dry_run", "extend", "read", "run"]
