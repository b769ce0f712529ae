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
