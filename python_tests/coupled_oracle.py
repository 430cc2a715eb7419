"""Which weights go with a vertex, found by surgery: those that a model has and the model without the vertex has not."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from srr_ext.channels.records import ChannelGroup
from srr_ext.layers import cut_layers, kept_positions


def all_weights(model: nn.Module) -> Tensor:
    """Every weight of a model in one float64 row; its place in the row is its number."""
    return torch.cat([p.detach().cpu().double().flatten() for p in model.parameters()])


def numbered(model: nn.Module) -> nn.Module:
    """Copy a model and put into every weight its number."""
    twin = copy.deepcopy(model).cpu().double()
    start = 0
    for parameter in twin.parameters():
        parameter.data = torch.arange(start, start + parameter.numel()).view_as(parameter).double()
        start += parameter.numel()
    return twin


def weights_of(twin: nn.Module, group: ChannelGroup, vertex: int) -> list[int]:
    """Numbers of the weights that go with a vertex, slopes of PReLU left out.

    Those from the vertex to itself, in a layer that reads and makes channels of the group, are there twice.
    """
    small = cut_layers(twin, kept_positions([group], {group.name: np.delete(np.arange(group.size), vertex)}))
    before, after = (_numbers(model) for model in (twin, small))
    return sorted(before - after) + _from_itself(twin, group, vertex)


def _numbers(model: nn.Module) -> set[int]:
    slopes = {id(p) for m in model.modules() if isinstance(m, nn.PReLU) for p in m.parameters()}
    return {int(n) for p in model.parameters() if id(p) not in slopes for n in p.flatten().tolist()}


def _from_itself(twin: nn.Module, group: ChannelGroup, vertex: int) -> list[int]:
    sides = {(member.module, member.side): member for member in group.members}
    found = []
    for name in dict.fromkeys(member.module for member in group.members):
        made, read = sides.get((name, "out")), sides.get((name, "in"))
        if made is None or read is None or made.role == "follower":
            continue
        module = twin.get_submodule(name)
        groups = module.groups if isinstance(module, _ConvNd) else 1
        assert groups == 1 or not module.transposed
        weight = module.weight.transpose(0, 1) if isinstance(module, _ConvNd) and module.transposed else module.weight
        n_out, n_in = len(made.vertex) // groups, len(read.vertex) // groups  # per convolution group
        for out in np.flatnonzero(made.vertex == vertex):
            for source in np.flatnonzero(read.vertex == vertex):
                if out // n_out == source // n_in:
                    found += [int(n) for n in weight[out, source % n_in].flatten().tolist()]
    return found
