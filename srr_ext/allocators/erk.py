"""Shares to keep as in sparse training: the fewer weights a layer has for its width, the more of it stays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import numpy as np
from torch import Tensor

from srr_ext.allocators.base import Allocation, AllocatorContext, register_allocator
from srr_ext.allocators.merge import merge
from srr_ext.channels.records import ChannelGroup
from srr_ext.cost import CostModel, Target


@register_allocator("erk")
def erk(
    groups: Sequence[ChannelGroup], importance: list[Tensor], cost: CostModel, target: Target, context: AllocatorContext
) -> Allocation:
    r"""Keep of every group a share in proportion to the density that Erdos-Renyi-Kernel gives to its layers.

    Parameters
    ----------
    groups : sequence of ChannelGroup
        The groups to prune.
    importance : list of Tensor
        Not used: only shapes count.
    cost : CostModel
        What the target is about.
    target : Target
        Where to stop.
    context : AllocatorContext
        Gives the model and the order of removal within each group.

    Returns
    -------
    Allocation
        Vertices kept per group. ``info`` has ``densities``: for each name, the density before scaling.

    Raises
    ------
    ValueError
        If the target is out of reach.

    Notes
    -----
    A layer with a kernel of :math:`k_h \times k_w` has the density

    .. math:: d = \frac{n_{in} + n_{out} + k_h + k_w}{n_{in} \, n_{out} \, k_h \, k_w},

    the share of its *weights* that stays, up to a common factor :math:`\epsilon`. To take it as the share of the
    *channels* that stays is an adaptation of ours: :math:`\min(1, \epsilon d)` of every group, with the largest
    :math:`\epsilon` that meets the target, so the next vertex goes from the group with the largest
    :math:`(N - k) / (N d)`. For the layers of a coupled group, numerators and denominators are summed (ours), which is
    the density of all of them together. :math:`n_{in}` of a grouped convolution is that of one of its groups.

    References
    ----------
    Evci, Gale, Menick, Castro, Elsen. Rigging the lottery: making all tickets winners. ICML 2020, arXiv 1911.11134.
    """
    densities = [_density(group, context) for group in groups]
    shares = [np.arange(g.size, 0, -1) / (g.size * d) for g, d in zip(groups, densities, strict=True)]
    counts = merge(groups, shares, cost, target, context)
    return Allocation(tuple(counts), {"densities": {group.name: d for group, d in zip(groups, densities, strict=True)}})


def _density(group: ChannelGroup, context: AllocatorContext) -> float:
    """ERK density of the weights of all producers of a group, before scaling."""
    shapes = [cast(Tensor, context.model.get_submodule(m.module).weight).shape for m in group.producers]
    return sum(sum(shape) for shape in shapes) / sum(math.prod(shape) for shape in shapes)
