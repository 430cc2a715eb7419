"""How each kind of module loses channels: its tensors are cut along their sides, its attributes follow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from srr_ext.channels.records import NO_VERTEX, ChannelGroup, Side
from srr_ext.copying import copy_model

Positions = np.ndarray  # int64, increasing channel positions on one side of a module


def channels_of(module: nn.Module, side: Side) -> int | None:
    """Return how many channels a module has on a side; None if it is of no kind that can be cut there."""
    if isinstance(module, _ConvNd):
        return module.in_channels if side == "in" else module.out_channels
    if isinstance(module, nn.Linear):
        return module.in_features if side == "in" else module.out_features
    if isinstance(module, _NormBase) and side == "out":
        return module.num_features
    if isinstance(module, nn.PReLU) and side == "out":
        return module.num_parameters
    return None


def widths_of(model: nn.Module) -> dict[str, tuple[int | None, int | None]]:
    """Output and input channels of every module of a kind that can be cut; None for a side it does not have."""
    both = {name: (channels_of(m, "out"), channels_of(m, "in")) for name, m in model.named_modules()}
    return {name: sides for name, sides in both.items() if sides != (None, None)}


def kept_positions(groups: Iterable[ChannelGroup], kept: Mapping[str, np.ndarray]) -> dict[tuple[str, Side], Positions]:
    """Channel positions that stay on every side of every module, for sides that lose any.

    Parameters
    ----------
    groups : iterable of ChannelGroup
        All groups of the model; those that ``kept`` does not name stay whole.
    kept : mapping of group name to int array
        Vertices that stay.
    """
    stay: dict[tuple[str, Side], np.ndarray] = {}
    for group in groups:
        if group.name not in kept:
            continue
        alive = np.zeros(group.size, dtype=bool)
        alive[np.asarray(kept[group.name], dtype=np.int64)] = True
        for member in group.members:
            here = (member.vertex == NO_VERTEX) | alive[member.vertex]
            key = (member.module, member.side)
            stay[key] = stay[key] & here if key in stay else here
    return {key: np.flatnonzero(mask) for key, mask in stay.items() if not mask.all()}


def cut_layers(model: nn.Module, sides: Mapping[tuple[str, Side], Positions], *, rehearse: bool = False) -> nn.Module:
    """Copy a model and keep only the given channels of the given sides.

    Parameters
    ----------
    model : nn.Module
        The model.
    sides : mapping of (module name, side) to positions
        Channels that stay; other sides stay whole.
    rehearse : bool, default False
        Give the copy the right shapes over the original's memory, with the first weights instead of the right ones:
        nothing is copied, and the result is for finding out whether it runs.

    Raises
    ------
    ValueError
        If a module is missing, of another kind, or its channels do not allow the cut.
    """
    small = copy_model(model, share_parameters=rehearse)
    modules = dict(small.named_modules())
    for name in dict.fromkeys(name for name, _ in sides):
        if name not in modules:
            raise ValueError(f"layer {name!r}: the model has no such module")
        try:
            _cut_module(modules[name], sides.get((name, "in")), sides.get((name, "out")), rehearse)
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from None
    return small


def _cut_module(module: nn.Module, kept_in: Positions | None, kept_out: Positions | None, rehearse: bool) -> None:
    for side, kept in (("in", kept_in), ("out", kept_out)):
        _check(module, cast(Side, side), kept)
    for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        tensor.data = cut_tensor(module, name, tensor.data, kept_in, kept_out, rehearse=rehearse)
    _update_attributes(module, kept_in, kept_out)


def cut_tensor(
    module: nn.Module,
    name: str,
    tensor: Tensor,
    kept_in: Positions | None,
    kept_out: Positions | None,
    *,
    rehearse: bool = False,
) -> Tensor:
    """Cut a tensor shaped like the module's tensor ``name`` (before the cut): the tensor itself, or optimiser state."""
    if isinstance(module, (_ConvNd, nn.Linear)) and name == "weight":
        blocks = _weight_blocks(module, kept_in, kept_out)
        if rehearse:
            return tensor[: sum(len(rows) for rows, _ in blocks), : len(blocks[0][1])]
        cut = torch.cat([_take(_take(tensor, 0, rows), 1, columns) for rows, columns in blocks])
    elif kept_out is not None and tensor.ndim == 1 and len(tensor) == channels_of(module, "out"):
        cut = tensor[: len(kept_out)] if rehearse else _take(tensor, 0, kept_out)
    else:
        return tensor
    return cut.contiguous(memory_format=_memory_format(tensor))


def _weight_blocks(
    module: _ConvNd | nn.Linear, kept_in: Positions | None, kept_out: Positions | None
) -> list[tuple[Positions, Positions]]:
    """Rows and columns of the weight that stay, per convolution group that stays."""
    transposed = isinstance(module, _ConvTransposeNd)
    n_in, n_out = cast(int, channels_of(module, "in")), cast(int, channels_of(module, "out"))
    kept_in = np.arange(n_in) if kept_in is None else kept_in
    kept_out = np.arange(n_out) if kept_out is None else kept_out
    blocks = []
    for ins, outs in blocks_left(module, kept_in, kept_out):
        # A transposed weight is [n_in, n_out / groups, ...], the others are [n_out, n_in / groups, ...].
        rows, columns, width = (ins, outs, n_out) if transposed else (outs, ins, n_in)
        blocks.append((rows, columns % (width // _groups(module))))
    return blocks


def _take(tensor: Tensor, dim: int, positions: Positions) -> Tensor:
    """Select along a dimension, unless everything stays."""
    return tensor if len(positions) == tensor.shape[dim] else tensor.index_select(dim, _index(positions, tensor))


def mask_layers(model: nn.Module, sides: Mapping[tuple[str, Side], Positions]) -> nn.Module:
    """Copy a model and set to zero, instead of cutting, what makes the output channels that would go."""
    twin = copy_model(model)
    modules = dict(twin.named_modules())
    for (name, side), kept in sides.items():
        module = modules[name]
        if side == "out" and not isinstance(module, nn.PReLU):  # any slope keeps zero at zero
            zero_outputs(module, np.setdiff1d(np.arange(channels_of(module, "out") or 0), kept))
    return twin


def zero_outputs(module: nn.Module, gone: Positions) -> None:
    """Set to zero, in place, what makes the given output channels: filters, biases, normalisation."""
    for name, tensor in module.named_parameters(recurse=False):
        if isinstance(module, _ConvTransposeNd) and name == "weight":
            per_group = module.out_channels // module.groups
            rows = tensor.data.unflatten(0, (module.groups, -1))  # [groups, n_in / groups, n_out / groups, ...]
            for channel in gone.tolist():
                rows[channel // per_group, :, channel % per_group] = 0
        elif len(tensor) == channels_of(module, "out"):
            tensor.data[_index(gone, tensor)] = 0


def blocks_left(module: nn.Module, kept_in: Positions, kept_out: Positions) -> list[tuple[Positions, Positions]]:
    """Kept input and output positions of every convolution group that stays (one for ungrouped layers).

    Raises
    ------
    ValueError
        If the groups that stay would differ in size.
    """
    groups = _groups(module)
    n_in, n_out = cast(int, channels_of(module, "in")), cast(int, channels_of(module, "out"))
    blocks = []
    for group in range(groups):
        ins = kept_in[kept_in // (n_in // groups) == group]
        outs = kept_out[kept_out // (n_out // groups) == group]
        if len(ins) or len(outs):
            blocks.append((ins, outs))
    sizes = {(len(ins), len(outs)) for ins, outs in blocks}
    if len(sizes) != 1 or 0 in next(iter(sizes)):
        raise ValueError(f"its {groups} groups would keep unequal or no channels: (inputs, outputs) {sorted(sizes)}")
    return blocks


def _update_attributes(module: nn.Module, kept_in: Positions | None, kept_out: Positions | None) -> None:
    if isinstance(module, _ConvNd):
        ins = np.arange(module.in_channels) if kept_in is None else kept_in
        outs = np.arange(module.out_channels) if kept_out is None else kept_out
        groups = len(blocks_left(module, ins, outs))
        module.in_channels, module.out_channels, module.groups = len(ins), len(outs), groups
    elif isinstance(module, nn.Linear):
        module.in_features = module.in_features if kept_in is None else len(kept_in)
        module.out_features = module.out_features if kept_out is None else len(kept_out)
    elif isinstance(module, _NormBase) and kept_out is not None:
        module.num_features = len(kept_out)
    elif isinstance(module, nn.PReLU) and kept_out is not None:
        module.num_parameters = len(kept_out)


def _check(module: nn.Module, side: Side, kept: Positions | None) -> None:
    if kept is None:
        return
    channels = channels_of(module, side)
    if channels is None:
        raise ValueError(f"a {type(module).__name__} has no {side} channels to cut")
    if len(kept) == 0:
        raise ValueError(f"none of its {channels} {side} channels would stay")
    if kept[0] < 0 or kept[-1] >= channels or bool((np.diff(kept) <= 0).any()):
        raise ValueError(f"expected increasing {side} channel indices in [0, {channels}), got {kept[0]} to {kept[-1]}")


def _groups(module: nn.Module) -> int:
    return module.groups if isinstance(module, _ConvNd) else 1


def _index(positions: Positions, tensor: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(positions)).to(tensor.device)


def _memory_format(tensor: Tensor) -> torch.memory_format:
    if tensor.ndim == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    if tensor.ndim == 5 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last_3d):
        return torch.channels_last_3d
    return torch.contiguous_format
