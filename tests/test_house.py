"""The library stays small, its imports point one way, and none of it imports the book."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINES = 8000  # docstrings included
FILES = sorted((ROOT / "lmdyn").rglob("*.py"))
TREES = {file: ast.parse(file.read_text(encoding="utf-8")) for file in FILES}
MODULES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for file in FILES
}


def length(file):
    return len(file.read_text(encoding="utf-8").splitlines())


def body(function):
    """Lines of a function's body, docstring aside."""
    statements = function.body[ast.get_docstring(function) is not None :]
    return statements[-1].end_lineno - statements[0].lineno + 1 if statements else 0


def imports(module):
    """The modules of the library that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(TREES[MODULES[module]]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = names & set(MODULES)
            found |= modules if len(modules) == len(names) else modules | {node.module}
    return found & set(MODULES)


def test_the_library_is_small():
    assert sum(map(length, FILES)) <= LINES
    assert len(FILES) <= 50
    assert not [str(file) for file in FILES if length(file) > 350]


def test_a_function_fits_on_a_screen():
    functions = [
        (file.name, node.name, body(node))
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert not [found for found in functions if found[2] > 40]


def test_no_import_goes_in_a_circle():
    graph = {module: imports(module) - {module} for module in MODULES}
    for package in ("lmdyn", "lmdyn.lm"):  # they gather the public names: nobody reads them back
        graph[package] = set()
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"imports in a circle: {' -> '.join(error.args[1])}")


def test_a_private_module_is_read_by_its_own_room_alone():
    for module in MODULES:
        for other in imports(module):
            parent, _, name = other.rpartition(".")
            if name.startswith("_") and name != "__main__":
                assert module == parent or module.startswith(f"{parent}."), (module, other)


def test_the_library_never_imports_the_book():
    ours = {path.stem for path in (ROOT / "book").glob("*.py")}
    ours |= {path.name for path in (ROOT / "book").iterdir() if path.is_dir()}
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
                assert not {name.split(".")[0] for name in names[:1]} & ours, file


@pytest.mark.slow
def test_importing_lmdyn_needs_torch_and_numpy_alone():
    heavy = {"IPython", "accelerate", "datasets", "gguf", "ipywidgets", "matplotlib", "mlxtend"}
    heavy |= {"omegaconf", "openai", "pandas", "scipy", "transformers"}
    code = f"import sys, lmdyn; print(sorted({heavy!r} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
