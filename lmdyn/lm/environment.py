"""Where and with what a number was made, and the versions that lmdyn works with."""

import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from packaging.specifiers import SpecifierSet

RANGES = {"transformers": ">=5.4", "trl": ">=1.16,<2"}  # as in pyproject.toml


def environment(device: torch.device) -> dict:
    """Date, command, versions and hardware, as JSON can hold them."""
    in_notebook = "ipykernel" in sys.modules  # its command line names a file of the moment
    script = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    on_gpu = device.type == "cuda"
    cpu = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "in a notebook" if in_notebook else script,
        "hardware": torch.cuda.get_device_name(device) if on_gpu else cpu,
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("lmdyn", "torch", "transformers")},
    }


def out_of_range(package: str) -> str | None:
    """What is wrong with the version of a package and what to do, or None."""
    try:
        found = version(package)
    except PackageNotFoundError:
        return None
    if SpecifierSet(RANGES[package]).contains(found, prereleases=True):
        return None
    return (
        f"{package} {found} is out of range: lmdyn works with {package}{RANGES[package]}, so "
        f"pip install '{package}{RANGES[package]}'"
    )
