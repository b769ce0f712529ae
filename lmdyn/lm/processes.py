"""Several processes (``accelerate launch``), which share out rows (DDP), or weights too (FSDP2)."""

from collections.abc import Callable

import numpy as np
from accelerate import PartialState
from accelerate.utils import disable_fsdp_ram_efficient_loading, gather_object, parse_flag_from_env
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor


def place(model: nn.Module) -> PartialState:
    """Bring the model, or this process's part of it, to its device; one process moves nothing.

    `Accelerator.prepare` shards on GPUs alone, where no test could hold two processes against one.
    """
    if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        remedy = "launch with --multi_gpu, or with --use_fsdp to share out the weights"
        raise ValueError(f"accelerate is set to DeepSpeed, which is not supported: {remedy}")
    process = PartialState()
    if process.num_processes == 1 or is_sharded(model):
        return process
    if not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        model.to(process.device)
        return process
    names = model._no_split_modules or ()  # else the model is gathered as one
    layers = [module for module in model.modules() if type(module).__name__ in names]
    disable_fsdp_ram_efficient_loading()  # each process will load all weights of a checkpoint
    mesh = distributed.init_device_mesh(process.device.type, (process.num_processes,))
    for module in (*layers, model):
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    return process


def is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)


def whole(tensor: Tensor) -> Tensor:
    """The tensor, of which each process may have a part. All processes must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def as_forward(model: nn.Module, function: Callable, *args, **kwargs):
    """Call a function that uses the model's parts, as if it were the model's forward pass.

    There FSDP gathers the weights outside the layers, such as those of the head.
    """
    if not is_sharded(model):
        return function(*args, **kwargs)
    model.passes = lambda: function(*args, **kwargs)
    register_fsdp_forward_method(model, "passes")
    try:
        return model.passes()
    finally:
        del model.passes
        for module in filter(is_sharded, model.modules()):
            module.reshard()  # as the end of the pass has done, unless it failed


def together(
    model: nn.Module, rows: np.ndarray, work: Callable, size: int, share: bool = True
) -> dict[str, np.ndarray]:
    """Have each process work on some of the rows, and give all of them what any has found.

    Args:
        model: what they work with; each on all rows, in step, if its weights are shared out.
        rows: row numbers, the same in all processes, of ``size``.
        work: some row numbers → name → floating array with one entry each.
        share: False if each must work on all rows.

    Returns:
        What `work` names → (size, …), NaN for other rows. If `work` fails in one process, all
        raise: a ValueError if it was one, else a RuntimeError.
    """
    process, full = PartialState(), {}
    rank, n = process.process_index, process.num_processes
    if n == 1 or not share or is_sharded(model):
        parts = [(rows, work(rows), None)]
    else:
        mine, found, failure = rows[rank::n], {}, None
        try:
            found = work(mine) if len(mine) else {}
        except Exception as error:  # the others must hear of it, or they would wait for ever
            kind = ValueError if isinstance(error, ValueError) else RuntimeError
            said = f"{type(error).__name__}: {error}"
            failure = kind(f"process {rank}, which has every {n}th row from {rank} on: {said}")
        parts = gather_object([(mine, found, failure)])
    for some, found, failure in parts:
        if failure:
            raise failure
        for name, values in found.items():
            missing = np.full((size, *values.shape[1:]), np.nan, values.dtype)
            full.setdefault(name, missing)[some] = values
    return full
