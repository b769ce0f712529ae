"""Where and with what a number was made, and the versions that lmdyn works with."""

import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch
from packaging.specifiers import SpecifierSet

RANGES = {"transformers": ">=5.4", "trl": ">=1.16,<2"}  # as in pyproject.toml


def environment(device: torch.device) -> dict:
    """Date, command, versions and hardware, as JSON can hold them."""
    script = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])  # in a notebook, of its kernel
    cpu = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "in a notebook" if "ipykernel" in sys.modules else script,
        "hardware": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("lmdyn", "torch", "transformers")},
    }


def out_of_range(package: str) -> str | None:
    """What is wrong with the version of an installed package and what to do, or None."""
    found, fit = version(package), RANGES[package]
    if SpecifierSet(fit).contains(found, prereleases=True):
        return None
    works = f"lmdyn works with {package}{fit}, so pip install '{package}{fit}'"
    return f"{package} {found} is out of range: {works}"
