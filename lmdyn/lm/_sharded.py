"""Weights that several processes share out (FSDP): each holds a part, and all gather what they run.

Every process then has to pass through the layers as often as the others, in step with them.
"""

import os
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only

from lmdyn.lm.forward import head_is_last


def is_asked_for() -> bool:
    """Whether ``accelerate launch --use_fsdp`` started this process.

    Transformers must then not leave the weights of all processes but the first one empty.

    Raises:
        ValueError: DeepSpeed is asked for.
    """
    from accelerate.utils import disable_fsdp_ram_efficient_loading

    fsdp, deepspeed = (
        os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true"
        for name in ("FSDP", "DEEPSPEED")
    )
    if deepspeed:
        raise ValueError(
            "accelerate is set to DeepSpeed, which lmdyn does not train with: launch with "
            "--multi_gpu, or with --use_fsdp to share out the weights"
        )
    if fsdp:
        disable_fsdp_ram_efficient_loading()
    return fsdp


def is_sharded(model: nn.Module) -> bool:
    """Whether processes share out the weights."""
    return isinstance(model, FSDPModule)


def shard(model: nn.Module, device: torch.device) -> None:
    """Share out the weights of a model, layer by layer, in the precision that they have.

    Args:
        model: the same in all processes; a layer at a time comes to the device.
        device: of this process.

    Raises:
        ValueError: the model does not tell its layers.
    """
    if is_sharded(model):
        return
    names = getattr(model, "_no_split_modules", None)
    layers = [module for module in model.modules() if type(module).__name__ in (names or ())]
    if not layers:
        raise ValueError(
            f"{type(model).__name__} does not tell its layers (_no_split_modules), which FSDP "
            "needs: launch with --multi_gpu"
        )
    head_is_last(model)  # found out, once, while it is whole
    mesh = torch.distributed.init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for module in (*layers, model):
        fully_shard(module, mesh=mesh, reshard_after_forward=True)


def as_forward(model: nn.Module, function: Callable, *args, **kwargs):
    """Call a function that uses the model's parts, as if it were the model's forward pass.

    Where that begins, FSDP gathers the weights outside the layers, such as those of the head.
    """
    if not is_sharded(model):
        return function(*args, **kwargs)
    errors = []

    def passes():  # an error must not skip FSDP's end of the pass, which lets go of the weights
        try:
            return function(*args, **kwargs)
        except Exception as error:
            errors.append(error)

    model.passes = passes
    try:
        register_fsdp_forward_method(model, "passes")
        found = model.passes()
    finally:
        del model.passes
    if errors:
        raise errors[0]
    return found


def whole(state, keep: bool = True):
    """A state dict with every tensor whole, on the CPU. All processes must call this.

    Args:
        state: of a model or an optimizer.
        keep: whether this process wants the tensors; None stands in their place if not.
    """
    return tree_map_only(DTensor, partial(_whole, keep=keep), state)


def whole_weights(model: nn.Module, keep: bool = True) -> dict[str, Tensor]:
    """The model's state dict, as `whole` has it; tied weights stay one tensor."""
    named = model.state_dict(keep_vars=True)
    once = whole({id(tensor): tensor for tensor in named.values()}, keep)
    return {name: once[id(tensor)] for name, tensor in named.items()}


def _whole(tensor: DTensor, keep: bool) -> Tensor | None:
    tensor = tensor.detach().full_tensor()
    return tensor.cpu() if keep else None


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """This process's part of a tensor that is shared out as the other one is."""
    if not isinstance(other, DTensor) or tensor.shape != other.shape:
        return tensor
    return distribute_tensor(
        tensor.to(other.device), other.device_mesh, other.placements, src_data_rank=None
    )
