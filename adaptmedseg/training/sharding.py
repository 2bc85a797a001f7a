"""Weights, gradients and optimiser states shared out between processes: FSDP (Zhao et al. 2023, arXiv:2304.11277).

By torch's `fully_shard`, which works on CPUs too; Accelerate's own way to it takes GPUs alone.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from adaptmedseg.modules.vit import EncoderBlock


def shard(forward: nn.Module, device: torch.device, count: int) -> FSDPModule:
    """Share a module's parameters between `count` processes, in place; the encoder's blocks are gathered one by one."""
    mesh = init_device_mesh(device.type, (count,))
    forward.to(device)
    for block in [module for module in forward.modules() if isinstance(module, EncoderBlock)]:
        fully_shard(block, mesh=mesh)
    return cast(FSDPModule, fully_shard(forward, mesh=mesh))


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, shared out or not: a call of every process together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def like(own: Tensor, tensor: Tensor) -> Tensor:
    """A whole tensor, shared out as one of the same shape is; one of another shape, such as a count, as it is."""
    if isinstance(own, DTensor) and own.shape == tensor.shape:
        return distribute_tensor(tensor.to(own.device), own.device_mesh, own.placements)
    return tensor
