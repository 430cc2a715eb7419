"""All weights that go with a vertex, as one: their norm, and multiplying them by a factor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from srr_ext.channels.records import ChannelGroup
from srr_ext.filters import arrange
from srr_ext.layers import channels_of


class CoupledWeights:
    r"""The weights that leave a model when vertices of a group do, vertex by vertex.

    Of vertex j these are the filters and biases of its channels in all producers, the scales and shifts of the
    normalisations and the filters and biases of the depthwise convolutions that follow, and the weights with which all
    consumers read it. At zero, they say nothing and hear nothing: the vertex can then be removed without any change of
    the outputs. Running statistics and the slopes of PReLU are not among them, as no value of these makes a difference
    then.

    Parameters
    ----------
    group : ChannelGroup
        The group.
    model : nn.Module
        The model it was found in; its parameters are looked up anew in every call, wherever it has been moved.

    Notes
    -----
    Vertices overlap where a group feeds itself: a layer that reads and makes its channels has weights from each to each
    other, which belong to both, and from each to itself, which count twice in the norm.
    """

    def __init__(self, group: ChannelGroup, model: nn.Module) -> None:
        self.group = group
        self._parts = tuple(_parts(group, model))
        owner = np.concatenate([part.vertex for part in self._parts])
        # -1 is the last entry of a row of numbers, where a neutral one is put: 0 for norms, 1 for factors.
        places = arrange(torch.arange(len(owner))[:, None] + 1, owner, group.size) - 1  # [size, most channels]
        self._indices = {torch.device("cpu"): (torch.from_numpy(owner), places)}

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that hold the weights, by qualified name."""
        return {f"{part.path}.{part.name}": getattr(part.module, part.name) for part in self._parts}

    def norms(self, dtype: torch.dtype | None = None) -> Tensor:
        """Euclidean norm of the weights of each vertex.

        Parameters
        ----------
        dtype : torch.dtype, optional
            In which to add up; default that of the weights.

        Returns
        -------
        Tensor, shape [group.size]
            On the device of the first producer, added up in the same order in every call.
        """
        parts = [part.norms(dtype) for part in self._parts]
        device = parts[0].device
        of_channels = torch.cat([norms.to(device) for norms in parts])
        _, places = self._on(device)
        return torch.linalg.vector_norm(pad(of_channels, (0, 1))[places], 2, 1)

    def scale_(self, factors: Tensor) -> None:
        """Multiply the weights of each vertex by a factor, in place.

        Parameters
        ----------
        factors : Tensor, shape [group.size]
            One per vertex. Channels that belong to none stay as they are.
        """
        owner, _ = self._on(factors.device)
        of_channels = pad(factors, (0, 1), value=1.0)[owner]
        for part, mine in zip(self._parts, of_channels.split([len(p.vertex) for p in self._parts]), strict=True):
            part.scale_(mine)

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._indices:
            owner, places = self._indices[torch.device("cpu")]
            self._indices[device] = (owner.to(device), places.to(device))
        return self._indices[device]


@dataclass(frozen=True, eq=False)
class _Part:
    """One parameter of a member: the weights of one side's channels, or one number for each.

    Attributes
    ----------
    path : str
        Of the module.
    module : nn.Module
        Whose parameter it is.
    name : str
        Of the parameter.
    lane : int
        Which dimension of the view counts the channels of a convolution group; 0 where there is one number per channel.
    vertex : ndarray of int64, shape [channels]
        The vertex of each channel, or negative.
    """

    path: str
    module: nn.Module
    name: str
    lane: int
    vertex: np.ndarray

    def view(self) -> Tensor:
        """[channels], or [convolution groups, rows, columns, *kernel] of a matrix of weights."""
        tensor: Tensor = getattr(self.module, self.name).detach()
        if self.lane == 0:
            return tensor
        groups = self.module.groups if isinstance(self.module, _ConvNd) else 1
        return tensor.unflatten(0, (groups, -1))

    def norms(self, dtype: torch.dtype | None) -> Tensor:
        """Of each channel, [channels]."""
        view = self.view()
        if self.lane == 0:
            return view.abs().to(dtype or view.dtype)
        others = [dim for dim in range(1, view.ndim) if dim != self.lane]
        return torch.linalg.vector_norm(view, 2, others, dtype=dtype).flatten()

    def scale_(self, factors: Tensor) -> None:
        """Multiply each channel by a factor."""
        view = self.view()
        shape = [size if dim in (0, self.lane) else 1 for dim, size in enumerate(view.shape)]
        view.mul_(factors.to(view.device).view(shape))


def _parts(group: ChannelGroup, model: nn.Module) -> Iterator[_Part]:
    """Go through the parameters whose channels are vertices of the group."""
    followers = {member.module for member in group.members if member.role == "follower"}
    for member in group.members:
        module = model.get_submodule(member.module)
        if isinstance(module, nn.PReLU) or (member.side == "in" and member.module in followers):
            continue  # whose weights are those of its outputs, one convolution group for each vertex
        for name, parameter in module.named_parameters(recurse=False):
            if name == "weight" and isinstance(module, (_ConvNd, nn.Linear)):
                rows_are_inputs = isinstance(module, _ConvTransposeNd)
                lane = 1 if rows_are_inputs == (member.side == "in") else 2
                yield _Part(member.module, module, name, lane, member.vertex)
            elif member.side == "out" and parameter.ndim == 1 and len(parameter) == channels_of(module, "out"):
                yield _Part(member.module, module, name, 0, member.vertex)
