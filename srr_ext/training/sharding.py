"""Networks whose weights are divided among processes: fully sharded data parallelism, for what does not fit into a GPU.

The sharding itself is torch's (FSDP2): a layer's weights are gathered when it computes, and let go afterwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn

from srr_ext.copying import copy_model
from srr_ext.processes import Processes

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

_LARGE = 1 << 16  # weights of a layer that is gathered alone; smaller ones are not worth a collective of their own


def sharded(model: nn.Module, processes: Processes, device: torch.device) -> nn.Module:
    """Return a copy whose parameters are divided among all processes; all of them call this with equal networks.

    Parameters
    ----------
    model : nn.Module
        An ordinary network, on the CPU say; it is left as it is.
    processes : Processes
        This one and the others.
    device : torch.device
        Where the shares are to be. No process ever holds all weights there: layers of 65,536 weights or more are
        gathered one at a time, what is left stays gathered while the network computes.

    Returns
    -------
    nn.Module
        Its forward pass is for all processes to call, equally often.
    """
    from torch.distributed.device_mesh import init_device_mesh  # here and below: these take a second
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (processes.count,))
    copy = copy_model(model)
    for module in copy.modules():
        if module is not copy and sum(p.numel() for p in module.parameters(recurse=False)) >= _LARGE:
            fully_shard(module, mesh=mesh)
    fully_shard(copy, mesh=mesh)
    return copy


@torch.no_grad()
def gather_into(model: nn.Module, source: nn.Module) -> None:
    """Give an ordinary network the weights and buffers of one that is divided, tensor by tensor.

    The network can then be analysed, planned for and cut on the CPU, though no GPU could hold it. All processes call
    this, and each gets all weights.

    Parameters
    ----------
    model : nn.Module
        Of the same architecture; its tensors change in place, where they are.
    source : nn.Module
        Divided by `sharded`, or by ``torch.distributed.fsdp.fully_shard``.

    Raises
    ------
    ValueError
        Their tensors differ in name or shape.
    """
    mine, theirs = model.state_dict(), source.state_dict()
    for name in mine | theirs:
        if name not in mine or name not in theirs or mine[name].shape != theirs[name].shape:
            raise ValueError(f"source is another network than model: they differ in {name}; make both by the same code")
    for name, tensor in theirs.items():
        mine[name].copy_(whole(tensor))


def whole(value: Any) -> Any:
    """Return a divided tensor in one piece, on the CPU, in every process; anything else as it is."""
    return value.full_tensor().cpu() if is_divided(value) else value


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """Return a tensor that every process has, divided as another one is, if that is."""
    if not is_divided(other):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    placed = tensor.to(other.to_local().device)
    return distribute_tensor(placed, other.device_mesh, other.placements, src_data_rank=None)


def share(tensor: Tensor) -> Tensor:
    """Return the part of a divided tensor that is here; another tensor as it is."""
    return tensor.to_local() if is_divided(tensor) else tensor


def check_shardable(processes: Processes, **others: object) -> None:
    """Refuse what a divided network cannot be trained with.

    Raises
    ------
    ValueError
        It says what.
    """
    if processes.count == 1:
        raise ValueError("shard is for several processes; start them with torchrun, or leave it out")
    for name, other in others.items():
        if other:
            raise ValueError(
                f"shard goes without {name}, which needs all weights in every process; leave one of them out"
            )


def is_sharded(model: nn.Module) -> bool:
    """Whether its parameters are divided among processes."""
    return any(is_divided(p) for p in model.parameters())


def is_divided(value: Any) -> TypeGuard[DTensor]:
    """Whether this is a tensor of which processes hold parts."""
    return hasattr(value, "full_tensor")
