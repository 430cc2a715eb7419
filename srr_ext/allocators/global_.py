"""One ranking over all groups: the least important vertex anywhere goes next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from torch import Tensor

from srr_ext.allocators.base import Allocation, AllocatorContext, register_allocator
from srr_ext.allocators.merge import merge
from srr_ext.channels.records import ChannelGroup
from srr_ext.cost import CostModel, Target

Normalise = Literal["none", "mean", "sum", "l2", "max", "gaussian"]


@dataclass(frozen=True)
class GlobalRanking:
    r"""Remove the vertices whose importance, compared across groups, is least.

    Parameters
    ----------
    normalise : {"mean", "none", "sum", "l2", "max", "gaussian"}, default "mean"
        How importance is made comparable across groups, see below. With "none", layers with many or large weights come
        out as important as a whole; with "sum" and "l2", wide layers come out as unimportant.

    Raises
    ------
    ValueError
        If ``normalise`` is anything else; when called, if the target is out of reach.

    Notes
    -----
    Priority of the removal of vertex :math:`j`, of a group with importances :math:`s_1 \ldots s_N`:

    ========== ==============================================================================
    none       :math:`-s_j`
    mean       :math:`-s_j / (\sum_i |s_i| / N)`
    sum        :math:`-s_j / \sum_i |s_i|`
    l2         :math:`-s_j / \sqrt{\sum_i s_i^2}`, the one of the paper
    max        :math:`-s_j / \max_i |s_i|`
    gaussian   :math:`-(s_j - \mu) / \sigma`, with :math:`\sigma^2 = \sum_i (s_i - \mu)^2 / N`
    ========== ==============================================================================

    A group whose divisor is zero has importances that are all zero, or for "gaussian" all equal; its priorities are 0.

    References
    ----------
    Molchanov, Tyree, Karras, Aila, Kautz. Pruning convolutional neural networks for resource efficient inference.
    ICLR 2017, arXiv 1611.06440 (global ranking of scores normalised per layer).
    """

    normalise: Normalise = "mean"

    def __post_init__(self) -> None:
        """Check the option."""
        if self.normalise not in get_args(Normalise):
            raise ValueError(f"normalise must be one of {', '.join(get_args(Normalise))}, got {self.normalise!r}")

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
            priorities.append(-self._normalised(scores.numpy())[schedule.order])
        info = {"normalise": self.normalise}
        return Allocation(tuple(merge(groups, priorities, cost, target, context)), info)

    def _normalised(self, values: np.ndarray) -> np.ndarray:
        """Return importance as it is compared across groups, float64 [group.size]."""
        if self.normalise == "gaussian":
            constant = values.min() == values.max()  # the rounded mean of equal numbers may differ from them
            return np.zeros_like(values) if constant else (values - values.mean()) / values.std()
        sizes = np.abs(values)
        scale = {
            "none": 1.0,
            "mean": sizes.mean(),
            "sum": sizes.sum(),
            "l2": np.sqrt(np.square(sizes).sum()),
            "max": sizes.max(),
        }[self.normalise]
        return values / (scale or 1.0)


global_ranking = register_allocator("global")(GlobalRanking())
