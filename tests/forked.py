"""Several processes for a test."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import torch
from accelerate import PartialState

SCRIPT = """
import sys, torch
from importlib import import_module
from forked import child

import_module(sys.argv[1])  # once, for both
torch.multiprocessing.start_processes(child, sys.argv[1:], nprocs=2, start_method="fork")
"""


def forked(module: str, name: str, folder: Path) -> None:
    """Call ``module.name(rank, folder)`` in two processes that know of each other (gloo)."""
    launched(["-c", SCRIPT, module, name, str(folder)])


def launched(arguments: list[str], seconds: int = 300) -> str:
    """What Python prints with these arguments; no process that it starts outlives the call."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    options |= {"cwd": Path(__file__).parent, "start_new_session": True}
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, *arguments], env=environment, **options) as process:
        try:
            printed, errors = process.communicate(timeout=seconds)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, errors
    return printed


def child(rank: int, module: str, name: str, folder: str) -> None:
    """Work as one of two processes."""
    torch.set_num_threads(1)
    here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    here |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 0}  # asked for, and not used
    os.environ |= {key: str(value) for key, value in here.items()}
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    state = PartialState(cpu=True)
    assert (state.process_index, state.num_processes) == (rank, 2)
    getattr(import_module(module), name)(rank, Path(folder))
    state.destroy_process_group()
