"""What an allocator is, what it is given, what it returns, and how it is found by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from srr_ext.allocators.schedule import Schedule
from srr_ext.calibration import Calibration
from srr_ext.channels.records import ChannelGroup
from srr_ext.cost import CostModel, Target
from srr_ext.criteria import SelectorContext
from srr_ext.graph import Distance
from srr_ext.progress import Progress
from srr_ext.registry import Registry

NodeOrder = Literal["selector", "random", "degree"]


@dataclass(frozen=True)
class Allocation:
    """What an allocator decided.

    Attributes
    ----------
    counts : tuple of int
        Vertices kept, per group.
    info : dict
        How it came about, as plain values that JSON can hold. `srr` gives ``gamma`` and figures on redundancy.
    """

    counts: tuple[int, ...]
    info: dict[str, Any] = field(default_factory=dict)


class AllocatorContext(SelectorContext):
    """What an allocator may ask for: all that a selector may, and the options of the plan.

    Parameters
    ----------
    model : nn.Module
        The dense model.
    example_inputs : Tensor, tuple or dict
        Arguments of one forward pass.
    seed : int
        Seed of everything random.
    schedules : sequence of Schedule
        For each group, the order in which its vertices would go, and where that has to stop.
    gamma : float or "auto"
        Distance threshold of filter graphs.
    distance : {"rms", "euclidean"}
        What is compared with it, see `srr_ext.graph.group_graphs`.
    node_order : {"selector", "random", "degree"}
        Order in which redundancy trajectories remove vertices.
    data : Calibration, optional
        For methods that look at images.
    progress : Progress, optional
        Where long stages report; silent by default.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        seed: int,
        *,
        schedules: Sequence[Schedule],
        gamma: float | Literal["auto"] = "auto",
        distance: Distance = "rms",
        node_order: NodeOrder = "selector",
        data: Calibration | None = None,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(model, example_inputs, seed, data=data, progress=progress)
        self.schedules = tuple(schedules)
        self.gamma = gamma
        self.distance = distance
        self.node_order = node_order


class Allocator(Protocol):
    """Says how many vertices each group keeps."""

    def __call__(
        self,
        groups: Sequence[ChannelGroup],
        importance: list[Tensor],
        cost: CostModel,
        target: Target,
        context: AllocatorContext,
        /,
    ) -> Allocation | list[int]:
        """Return the number of vertices kept per group, with or without a record of how it came about.

        ``importance`` is the selector's, float64 [group.size] per group, on the CPU.
        """
        ...


_registry: Registry[Allocator] = Registry("allocator", "srr_ext.allocators")
register_allocator = _registry.register
get_allocator = _registry.get
available_allocators = _registry.available
