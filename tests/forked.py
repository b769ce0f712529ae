"""Several processes for a test."""

import os
import signal
import subprocess
import sys
import traceback
from contextlib import suppress
from pathlib import Path

SCRIPT = """
import sys
from importlib import import_module
from pathlib import Path
from forked import fork

module, name, folder = sys.argv[1:]
work = getattr(import_module(module), name)
sys.exit(fork(work, Path(folder)))
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


def fork(work, folder: Path, n: int = 2) -> int:
    """Run ``work`` in n children, which need no imports again; 0 if all came to their end."""
    pids = [_child(work, folder, rank, n) for rank in range(n)]
    ends = [os.wait() for _ in pids[:1]]
    if ends[0][1]:  # the others might wait for it for ever
        for pid in set(pids) - {ends[0][0]}:
            os.kill(pid, signal.SIGKILL)
    ends += [os.wait() for _ in pids[1:]]
    return int(any(status for _, status in ends))


def _child(work, folder: Path, rank: int, n: int) -> int:
    if pid := os.fork():
        return pid
    code = 1
    try:
        import torch
        from accelerate import PartialState

        torch.set_num_threads(1)
        here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n}
        here |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 0}  # asked for, and not used
        os.environ |= {name: str(value) for name, value in here.items()}
        store = f"file://{folder / 'store'}"
        torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=n)
        state = PartialState(cpu=True)
        assert (state.process_index, state.num_processes) == (rank, n)
        work(rank, folder)
        state.destroy_process_group()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
