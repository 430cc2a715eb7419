"""What channel analysis finds: immutable records that every later stage reads and none changes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Side = Literal["out", "in"]
Role = Literal["producer", "follower", "consumer"]

NO_VERTEX = -1  # in Member.vertex: this channel is kept by every plan, or belongs to another group


@dataclass(frozen=True, eq=False)
class Member:
    """One side of one module whose channels go when vertices of the group go.

    Attributes
    ----------
    module : str
        Qualified name of the module.
    side : {"out", "in"}
        Which side of the module the channels are on. Normalisation layers and PReLU have only an out side.
    role : {"producer", "follower", "consumer"}
        A producer makes the channels (its filters are the vertices), a follower transforms each channel alone
        (normalisation, depthwise convolution), a consumer reads them.
    vertex : ndarray of int64, shape [channels of that side]
        The group's vertex each channel belongs to, or ``NO_VERTEX``.
    """

    module: str
    side: Side
    role: Role
    vertex: np.ndarray


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels that are removed together: ``size`` vertices, each a set of channels over all members.

    Attributes
    ----------
    name : str
        Name of the first producer, which is unique among groups.
    size : int
        Number of vertices, i.e. of removals the group offers in total.
    members : tuple of Member
        Producers first, then followers, then consumers, each in order of execution.
    stream : bool
        Whether an addition ties several layers together (a residual stream).
    """

    name: str
    size: int
    members: tuple[Member, ...]
    stream: bool = False

    @property
    def producers(self) -> tuple[Member, ...]:
        """The members that make the channels."""
        return tuple(m for m in self.members if m.role == "producer")


@dataclass(frozen=True)
class Layer:
    """Shape facts of one module with weights, as seen when the example inputs ran through it.

    Attributes
    ----------
    name : str
        Qualified module name.
    kind : {"conv", "conv_transpose", "linear", "norm", "prelu"}
        What it is; one- to three-dimensional convolutions share a kind.
    n_in, n_out : int
        Channels on each side (equal for norm and prelu).
    groups : int
        Convolution groups, 1 elsewhere.
    whole_groups : bool
        How a grouped convolution shrinks: whole groups go, in and out together (True: depthwise and many narrow
        groups), or every group loses the same share of its channels (False).
    kernel : int
        Weight elements per connected (output, input) channel pair; 1 for linear, norm and prelu.
    positions : int
        Output positions of all calls together, batch included: MACs = positions * n_out * n_in / groups * kernel.
        (For transposed convolutions: input positions, by the same formula.)
    tensors : int
        Parameter elements per output channel besides the weight matrix (bias; weight and bias of a norm).
    """

    name: str
    kind: Literal["conv", "conv_transpose", "linear", "norm", "prelu"]
    n_in: int
    n_out: int
    groups: int = 1
    whole_groups: bool = False
    kernel: int = 1
    positions: int = 0
    tensors: int = 0


@dataclass(frozen=True)
class Pin:
    """Channels that no plan removes, and why."""

    module: str
    channels: int
    reason: str


@dataclass(frozen=True, eq=False)
class ChannelAnalysis:
    """Everything the planning stages need to know about a model's channels.

    Attributes
    ----------
    groups : tuple of ChannelGroup
        The removable channels, in order of execution.
    layers : dict of str to Layer
        Every module whose size depends on channels, in order of execution.
    pins : tuple of Pin
        Producers' channels that stay, with the reason.
    fixed_macs : int
        MACs that no plan changes (matrix products of attention and the like).
    total_params : int
        Parameter elements of the whole model.
    unreached : tuple of str
        Modules with parameters that the example inputs never reached, in evaluation or training mode.
    widths : dict
        Module name to (output, input) channels, for every module of a kind that can be cut, followed or not.
    ignored : tuple of str
        Modules whose outputs were to stay.
    """

    groups: tuple[ChannelGroup, ...]
    layers: dict[str, Layer]
    pins: tuple[Pin, ...] = ()
    fixed_macs: int = 0
    total_params: int = 0
    unreached: tuple[str, ...] = ()
    widths: dict[str, tuple[int | None, int | None]] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
