"""Each method of a benchmark in a process of its own, for its time and its peak memory."""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch


def parser(doc: str, methods: Iterable[str], device: bool = True) -> argparse.ArgumentParser:
    """The options that these benchmarks share; of a device, if they can have another."""
    found = argparse.ArgumentParser(description=doc.splitlines()[0])
    found.add_argument("--rows", default="sample", help="a source of load_probes, or JSONL file")
    found.add_argument("--model", default="smollm2-135m")
    if device:
        found.add_argument("--device", default="auto")
    found.add_argument("--method", choices=methods, help=argparse.SUPPRESS)
    found.add_argument("--out", help=argparse.SUPPRESS)
    return found


def begin(parser: argparse.ArgumentParser, run: Callable, main: Callable) -> None:
    """``main`` what the user has started, or ``run`` the method that `found_by` wants."""
    options = parser.parse_args()
    (run if options.method else main)(options)


def found_by(method: str) -> dict[str, np.ndarray]:
    """What ``run`` saves to ``options.out`` in a process of its own, with the same options."""
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/{method}.npz"
        command = [sys.executable, sys.argv[0], "--method", method, "--out", out, *sys.argv[1:]]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        with np.load(out) as file:
            return dict(file)


def start_memory(device: torch.device) -> float:
    """What is held now, in megabytes; the peak is counted from here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    return _line_of_status("VmRSS")


def peak_memory(device: torch.device) -> float:
    """The most that was held, in megabytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return _line_of_status("VmHWM")


def _line_of_status(field: str) -> float:
    """Linux's account of this process, in megabytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))
