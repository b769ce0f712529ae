import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import lmdyn
import lmdyn.lm

ROOT = Path(__file__).parent.parent


def test_every_public_name_is_in_the_api_reference():
    page = (ROOT / "book" / "api.md").read_text(encoding="utf-8")
    documented = {
        line.split(":: ")[1].removeprefix("lmdyn.")
        for line in page.splitlines()
        if line.startswith((".. auto", ".. data", ".. currentmodule"))
    }
    assert {*lmdyn.__all__, *lmdyn.lm.__all__} <= documented


@pytest.mark.slow
def test_lm_without_transformers_says_what_to_install():
    code = "import sys; sys.modules['transformers'] = None; import lmdyn.lm"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode and "pip install 'lmdyn[lm]'" in run.stderr.splitlines()[-1]


def test_another_transformers_is_refused_with_the_range(monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "4.57.1")
    with pytest.raises(ImportError, match=r"transformers>=5\.4.* transformers==4\.57\.1"):
        importlib.reload(lmdyn.lm)


def test_ranges_of_versions_are_those_that_pip_reads():
    with open(ROOT / "pyproject.toml", "rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    (declared,) = (line for line in extras["lm"] if Requirement(line).name == "transformers")
    code = (ROOT / "lmdyn" / "lm" / "__init__.py").read_text(encoding="utf-8")
    assert f'require_version("{declared}")' in code


def test_the_torch_that_is_asked_for_has_what_is_used():
    """FSDPModule is public since 2.6, AdamW's decoupled_weight_decay there since 2.7."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        core = map(Requirement, tomllib.load(file)["project"]["dependencies"])
    (torch,) = (line.specifier for line in core if line.name == "torch")
    assert "2.7.0" in torch and "2.6.0" not in torch


def test_files_beside_the_code_are_installed_with_it():
    with (ROOT / "pyproject.toml").open("rb") as file:
        data = tomllib.load(file)["tool"]["setuptools"]["package-data"]
    installed = {
        path
        for package, patterns in data.items()
        for pattern in patterns
        for path in ROOT.joinpath(*package.split(".")).glob(pattern)
    }
    beside = {p for p in (ROOT / "lmdyn").rglob("*") if p.is_file() and p.suffix != ".py"}
    assert {p for p in beside if "__pycache__" not in p.parts} == installed
