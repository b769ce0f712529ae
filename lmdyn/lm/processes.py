"""Several processes (``accelerate launch``): they share out rows, or weights, and all get all.

With copies of the weights (DDP) each works on its rows; where the weights are shared out (FSDP2),
all pass through the layers in step, on the same rows.
"""

from collections.abc import Callable, Mapping

import numpy as np
from accelerate import Accelerator
from accelerate.utils import (
    GradientAccumulationPlugin,
    disable_fsdp_ram_efficient_loading,
    gather_object,
    parse_flag_from_env,
)
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor


def accelerator() -> Accelerator:
    """This process among the others; ValueError if DeepSpeed is asked for.

    accelerate has one precision and one accumulation for the whole life of the process. They are
    not read: every run has its own, in its settings.
    """
    if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        remedy = "launch with --multi_gpu, or with --use_fsdp to share out the weights"
        raise ValueError(f"accelerate is set to DeepSpeed, which is not supported: {remedy}")
    process = Accelerator(gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1))
    process.scaler = None
    return process


def place(model: nn.Module, process: Accelerator) -> None:
    """Bring the model, or this process's part of it, to its device; one process moves nothing.

    `Accelerator.prepare` shards on GPUs alone, so that no test could hold two processes against
    one on a CPU: here every layer is sharded, in the precision that it has, on either. ValueError
    if the model is to be sharded and does not tell its layers.
    """
    if process.num_processes == 1 or is_sharded(model):
        return
    if not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        model.to(process.device)
        return
    names = model._no_split_modules or ()
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        reason = f"{type(model).__name__} does not tell its layers (_no_split_modules)"
        raise ValueError(f"{reason}, which FSDP needs: launch with --multi_gpu")
    disable_fsdp_ram_efficient_loading()  # each process will load all weights of a checkpoint
    mesh = distributed.init_device_mesh(process.device.type, (process.num_processes,))
    for module in (*layers, model):
        fully_shard(module, mesh=mesh, reshard_after_forward=True)


def is_sharded(model: nn.Module) -> bool:
    """Whether processes share out the weights."""
    return isinstance(model, FSDPModule)


def whole(tensor: Tensor) -> Tensor:
    """The tensor, of which each process may have a part. All processes must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def as_forward(model: nn.Module, function: Callable, *args, **kwargs):
    """Call a function that uses the model's parts, as if it were the model's forward pass.

    Where that begins, FSDP gathers the weights outside the layers, such as those of the head.
    """
    if not is_sharded(model):
        return function(*args, **kwargs)
    model.passes = lambda: function(*args, **kwargs)
    try:
        register_fsdp_forward_method(model, "passes")
        return model.passes()
    except BaseException:
        for module in filter(is_sharded, model.modules()):
            module.reshard()  # as the end of the pass would have done
        raise
    finally:
        del model.passes


def together(
    rows: np.ndarray, work: Callable[[np.ndarray], Mapping], size: int, rank: int, n: int
) -> dict[str, np.ndarray]:
    """Have every process work on some of the rows, and give each what all have found.

    Args:
        rows: row numbers, the same in all processes; each takes every n-th.
        work: some row numbers → floating arrays with one entry each; not called without a row.
        size: rows in the arrays that are returned.
        rank: this process's number, from 0, among the ``n`` that all call this.

    Returns:
        What `work` names → (size, …), NaN for other rows. If `work` fails in one process, all
        raise: a ValueError if it was one, else a RuntimeError.
    """
    if n == 1:
        parts = [(rows, work(rows), None)]
    else:
        mine, found, failure = rows[rank::n], {}, None
        try:
            found = work(mine) if len(mine) else {}
        except Exception as error:  # the others must hear of it, or they would wait for ever
            kind = ValueError if isinstance(error, ValueError) else RuntimeError
            said = error if kind is ValueError else repr(error)
            failure = kind(f"process {rank}, on every {n}th of the rows from {rank} on: {said}")
        parts = gather_object([(mine, found, failure)])
    full = {}
    for some, found, failure in parts:
        if failure:
            raise failure
        for name, values in found.items():
            missing = np.full((size, *values.shape[1:]), np.nan, values.dtype)
            full.setdefault(name, missing)[some] = values
    return full
