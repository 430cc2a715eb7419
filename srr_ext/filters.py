"""From modules to filter matrices: one row per channel, or per vertex of a coupled group."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor, nn

from srr_ext import _native
from srr_ext.channels.records import ChannelGroup
from srr_ext.ops import has_kernels
from srr_ext.transfers import to_device

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def channel_weights(module: nn.Module) -> Tensor:
    """Weights of each output channel of a module, one row per channel.

    Parameters
    ----------
    module : nn.Module
        A one- to three-dimensional (transposed) convolution, grouped or not, or a linear layer.

    Returns
    -------
    Tensor, shape [n_out, fan_in]
        Detached, in the module's dtype and on its device; a view of the weight wherever its memory layout allows
        (convolutions with contiguous weights, linear layers), a copy elsewhere. ``fan_in`` is the number of weights
        that reach one output channel: inputs per group times kernel elements.

    Raises
    ------
    TypeError
        If the module is of another kind.
    """
    if isinstance(module, (*_CONVOLUTIONS, nn.Linear)):
        return module.weight.detach().flatten(1)
    if isinstance(module, _TRANSPOSED):
        weight = module.weight.detach()  # [n_in, n_out / groups, *kernel]
        groups, per_group = module.groups, weight.shape[1]
        split = weight.reshape(groups, weight.shape[0] // groups, per_group, -1)  # [groups, in, out, kernel]
        return split.transpose(1, 2).reshape(groups * per_group, -1)
    raise TypeError(f"module must be a (transposed) convolution or a linear layer, got {type(module).__name__}")


def planning_device(model: nn.Module) -> torch.device:
    """Where a plan for a model is computed: on the device of its first parameter, so that no weight leaves it.

    A device that this build has no kernels for is left for the CPU.

    Warns
    -----
    RuntimeWarning
        If it is.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    if has_kernels(device):
        return device
    if _native.AVAILABLE:  # otherwise importing the package has warned already
        warnings.warn(
            f"the model is on {device}, which this build ({_native.build_info()['build']}) has no kernels for: filter "
            "graphs are computed on the CPU, which gives the same answers later",
            RuntimeWarning,
            stacklevel=2,
        )
    return torch.device("cpu")


def filter_matrix(group: ChannelGroup, model: nn.Module, device: torch.device | None = None) -> Tensor:
    """Matrix whose rows are compared by the filter graph of a group.

    A group made by one producer with one channel per vertex has the producer's own filters as rows. In any other group
    a row is the concatenation, over producers and over the channels that the vertex has in each, of those channels'
    filters divided by their norm, so that no producer outweighs another because its weights are larger. A channel that
    a vertex lacks in some producer counts as zeros, and a zero filter stays zero.

    Parameters
    ----------
    group : ChannelGroup
        The group.
    model : nn.Module
        The model the group was found in.
    device : torch.device, optional
        Where the matrix is to be; default where the group's first producer is.

    Returns
    -------
    Tensor of float32, shape [group.size, fan_in]
        A view of the weights where these are there, contiguous and float32, and each channel is its own vertex, in
        order.

    Raises
    ------
    ValueError
        If the group has no producer.
    """
    weights = _producer_weights(group, model, device)
    vertices = [member.vertex for member in group.producers]
    if len(weights) == 1 and _is_simple(vertices[0], group.size):
        return _select(weights[0].float(), vertices[0], group.size)
    return torch.cat([arrange(_unit_rows(w), v, group.size) for w, v in zip(weights, vertices, strict=True)], 1)


def filter_parts(group: ChannelGroup) -> int:
    """Return how many channels' filters stand side by side in a row of the group's filter matrix; 1 if it is simple."""
    return sum(int(np.bincount(m.vertex[m.vertex >= 0]).max(initial=0)) for m in group.producers)


def raw_filters(group: ChannelGroup, model: nn.Module, device: torch.device | None = None) -> Tensor:
    """All weights that make each vertex: like `filter_matrix`, but never normalised and in float64.

    Parameters
    ----------
    group : ChannelGroup
        The group.
    model : nn.Module
        The model the group was found in.
    device : torch.device, optional
        Where the result is to be; default where the group's first producer is.

    Returns
    -------
    Tensor of float64, shape [group.size, fan_in]
        One row per vertex.

    Raises
    ------
    ValueError
        If the group has no producer.
    """
    weights = _producer_weights(group, model, device)
    rows = [arrange(w.double(), m.vertex, group.size) for w, m in zip(weights, group.producers, strict=True)]
    return torch.cat(rows, 1)


def arrange(rows: Tensor, vertex: np.ndarray, size: int) -> Tensor:
    """Put the rows of the channels of each vertex side by side.

    Parameters
    ----------
    rows : Tensor, shape [n_channels, columns]
        One row per channel.
    vertex : ndarray of int64, shape [n_channels]
        The vertex of each channel; negative for none.
    size : int
        Number of vertices.

    Returns
    -------
    Tensor, shape [size, most channels of a vertex * columns]
        Zeros where a vertex has fewer channels than another. Each row goes to a place of its own, so the result does
        not depend on the order of writes.
    """
    channels = np.flatnonzero(vertex >= 0)
    channels = channels[np.argsort(vertex[channels], kind="stable")]  # by vertex, then by position
    owner = vertex[channels]
    counts = np.bincount(owner, minlength=size)
    place = np.arange(len(channels)) - (np.cumsum(counts) - counts)[owner]
    arranged = rows.new_zeros(size, int(counts.max(initial=0)), rows.shape[1])
    to_vertex, to_place, from_channel = to_device(torch.from_numpy(np.stack([owner, place, channels])), rows.device)
    arranged[to_vertex, to_place] = rows[from_channel]
    return arranged.flatten(1)


def _producer_weights(group: ChannelGroup, model: nn.Module, device: torch.device | None) -> list[Tensor]:
    if not group.producers:
        raise ValueError(f"group {group.name!r} has no producer, hence no filters")
    weights = [channel_weights(model.get_submodule(member.module)) for member in group.producers]
    return [weight.to(device or weights[0].device) for weight in weights]


def _unit_rows(rows: Tensor) -> Tensor:
    """Divide rows by their norms, in float64 because tiny float32 weights square to zero; zero rows stay zero."""
    rows = rows.double()
    norms = rows.norm(dim=1, keepdim=True)
    return torch.where(norms > 0, rows / norms, 0).float()


def _is_simple(vertex: np.ndarray, size: int) -> bool:
    """Whether every vertex has exactly one of these channels."""
    return bool((np.bincount(vertex[vertex >= 0], minlength=size) == 1).all())


def _select(rows: Tensor, vertex: np.ndarray, size: int) -> Tensor:
    """Rows in order of vertex, for channels that are one vertex each; without a copy if they are in order already."""
    if np.array_equal(vertex, np.arange(size)):
        return rows
    channels = np.flatnonzero(vertex >= 0)
    channels = channels[np.argsort(vertex[channels])]
    return rows.index_select(0, to_device(torch.from_numpy(channels), rows.device))
