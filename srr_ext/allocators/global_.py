"""One ranking over all groups: the least important vertex anywhere goes next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from srr_ext.allocators.base import Allocation, AllocatorContext, register_allocator
from srr_ext.allocators.merge import merge
from srr_ext.channels.records import ChannelGroup
from srr_ext.cost import CostModel, Target


@dataclass(frozen=True)
class GlobalRanking:
    r"""Remove the vertices whose importance, compared across groups, is least.

    Parameters
    ----------
    normalise : {"mean", "none"}, default "mean"
        Divide importance by the mean of its absolute values in the group, or compare it as it is. Without division,
        layers with many or large weights come out as important as a whole.

    Raises
    ------
    ValueError
        If ``normalise`` is anything else; when called, if the target is out of reach.

    Notes
    -----
    Priority of a removal :math:`-s_j`, or :math:`-s_j N / \sum_i |s_i|`.

    References
    ----------
    Molchanov, Tyree, Karras, Aila, Kautz. Pruning convolutional neural networks for resource efficient inference.
    ICLR 2017, arXiv 1611.06440 (global ranking of scores normalised per layer).
    """

    normalise: Literal["mean", "none"] = "mean"

    def __post_init__(self) -> None:
        """Check the option."""
        if self.normalise not in ("mean", "none"):
            raise ValueError(f"normalise must be 'mean' or 'none', got {self.normalise!r}")

    def __call__(
        self,
        groups: Sequence[ChannelGroup],
        importance: list[Tensor],
        cost: CostModel,
        target: Target,
        context: AllocatorContext,
    ) -> Allocation:
        """Return the vertices kept per group; see `Allocator`."""
        priorities = []
        for scores, schedule in zip(importance, context.schedules, strict=True):
            values = scores.numpy()
            scale = np.abs(values).mean() if self.normalise == "mean" else 1.0
            priorities.append(-values[schedule.order] / (scale or 1.0))  # all zero: no scale to divide by
        info = {"normalise": self.normalise}
        return Allocation(tuple(merge(groups, priorities, cost, target, context)), info)


global_ranking = register_allocator("global")(GlobalRanking())
