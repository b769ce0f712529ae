import subprocess
import sys
import tomllib
from pathlib import Path

import lmdyn

ROOT = Path(__file__).parent.parent


def test_importing_lmdyn_needs_torch_and_numpy_alone():
    heavy = {"IPython", "ipywidgets", "matplotlib", "mlxtend", "pandas", "scipy", "transformers"}
    code = f"import sys, lmdyn; print(sorted({heavy!r} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_every_public_name_is_in_the_api_reference():
    page = (ROOT / "book" / "api.md").read_text(encoding="utf-8")
    documented = {line.split(":: ")[1] for line in page.splitlines() if line.startswith(".. auto")}
    assert set(lmdyn.__all__) <= documented


def test_files_beside_the_code_are_installed_with_it():
    with (ROOT / "pyproject.toml").open("rb") as file:
        patterns = tomllib.load(file)["tool"]["setuptools"]["package-data"]["lmdyn"]
    beside = [p for p in (ROOT / "lmdyn").iterdir() if p.is_file() and p.suffix != ".py"]
    left_out = [p.name for p in beside if not any(p.match(pattern) for pattern in patterns)]
    assert left_out == []
