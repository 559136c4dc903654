"""A model and its optimizer spread over several processes (FSDP), and back as whole tensors."""

from collections.abc import Iterable, Mapping

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def apply_fsdp(fabric: Fabric, model: nn.Module, layers: Iterable[nn.Module]) -> None:
    """Leaves each process a slice of every parameter; a layer is whole only while it computes.

    Does nothing unless Fabric was launched with `--strategy fsdp`. Call it before the optimizer is
    made, which then updates the slices.
    """
    if not isinstance(fabric.strategy, ModelParallelStrategy):
        return
    mesh = init_device_mesh(fabric.device.type, (fabric.world_size,))
    for module in (*layers, model):
        fully_shard(module, mesh=mesh, reshard_after_forward=True)


def whole(tensor: Tensor) -> Tensor:
    """Returns a tensor with the slices of every process. All of them must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather(fabric: Fabric, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns whole tensors in the main memory of rank 0, and nothing on the others.

    All processes must call it. One tensor at a time is whole on their devices.
    """
    gathered = {}
    for name, tensor in tensors.items():
        complete = whole(tensor.detach())
        if fabric.is_global_zero:
            gathered[name] = complete.cpu()
    return gathered


def slice_like(tensor: Tensor, owner: Tensor) -> Tensor:
    """Returns what this process keeps of a whole tensor: its slice, if `owner` is sharded so."""
    if not isinstance(owner, DTensor) or tensor.shape != owner.shape:
        return tensor
    # Every process has the whole tensor, so nothing needs to be sent.
    return distribute_tensor(
        tensor.to(owner.device), owner.device_mesh, owner.placements, src_data_rank=None
    )


def slice_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Returns of whole `optimizer.PARAMETER.KEY` tensors what this process keeps of them."""
    owners = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        name: slice_like(tensor, owners[int(name.split(".")[1])])
        for name, tensor in tensors.items()
    }
