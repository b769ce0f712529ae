"""Run the book's notebooks in place: `python book/execute.py [NOTEBOOK …]` (all by default).

Leaves each notebook as it is committed: executed top to bottom by kernel ``python3``, without
timestamps or machine-specific metadata; what it asks Colab for, such as a GPU, stays. Stops at a
cell that fails or writes to stderr.
"""

import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
COLAB = ("accelerator", "colab")  # the hardware that a notebook asks Colab for


def plain(metadata: dict) -> dict:
    """What is kept of a notebook's metadata."""
    kept = {key: metadata[key] for key in COLAB if key in metadata}
    return {"kernelspec": KERNEL, "language_info": {"name": "python"}} | kept


def execute(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata = plain(notebook.metadata)
    start = time.perf_counter()
    client = NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute()
    seconds = time.perf_counter() - start
    for number, cell in enumerate(notebook.cells, 1):
        cell.id = f"cell-{number}"  # stable ids keep diffs small
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                raise SystemExit(f"{path}, cell {number}, writes to stderr:\n{output['text']}")
    notebook.metadata = plain(notebook.metadata)
    temporary = path.with_suffix(".tmp")
    nbformat.write(notebook, temporary)
    temporary.replace(path)
    print(f"{path.name}: {seconds:.1f} s")


if __name__ == "__main__":
    named = [Path(name) for name in sys.argv[1:]]
    for path in named or sorted(Path(__file__).parent.glob("*.ipynb")):
        execute(path)
