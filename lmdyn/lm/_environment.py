"""Where and with what a number was made."""

import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch


def environment(device: torch.device) -> dict:
    """Date, command, versions and hardware, as JSON can hold them."""
    on_gpu = device.type == "cuda"
    cpu = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "hardware": torch.cuda.get_device_name(device) if on_gpu else cpu,
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("lmdyn", "torch", "transformers")},
    }
