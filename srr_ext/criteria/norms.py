"""Selectors that need the weights alone: their L1 and L2 norms."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from srr_ext.channels.records import ChannelGroup
from srr_ext.criteria.base import SelectorContext, register_selector


@register_selector("l1")
def l1(groups: Sequence[ChannelGroup], context: SelectorContext) -> list[Tensor]:
    r"""Sum of absolute weights.

    Parameters
    ----------
    groups : sequence of ChannelGroup
        Groups to score.
    context : SelectorContext
        Gives the weights.

    Returns
    -------
    list of Tensor
        For each group, float64 [group.size], in the unit of the weights; higher = keep.

    Notes
    -----
    .. math:: s_j = \sum |W_j|

    over the weights of all channels, in all producers, that vertex :math:`j` stands for. Biases do not count.

    References
    ----------
    Li, Kadav, Durdanovic, Samet, Graf. Pruning filters for efficient ConvNets. ICLR 2017, arXiv 1608.08710.
    """
    return [
        context.vertex_sum(group, {m.module: context.weights(m.module).abs().sum(1) for m in group.producers})
        for group in groups
    ]


@register_selector("l2")
def l2(groups: Sequence[ChannelGroup], context: SelectorContext) -> list[Tensor]:
    r"""Euclidean norm of the weights, the control that comparisons of criteria usually include.

    Parameters
    ----------
    groups : sequence of ChannelGroup
        Groups to score.
    context : SelectorContext
        Gives the weights.

    Returns
    -------
    list of Tensor
        For each group, float64 [group.size], in the unit of the weights; higher = keep.

    Notes
    -----
    .. math:: s_j = \sqrt{\sum W_j^2}

    over the weights of all channels, in all producers, that vertex :math:`j` stands for. Biases do not count.

    References
    ----------
    Li, Kadav, Durdanovic, Samet, Graf. Pruning filters for efficient ConvNets. ICLR 2017, arXiv 1608.08710,
    section 4.4.
    """
    return [
        context.vertex_sum(group, {m.module: context.weights(m.module).square().sum(1) for m in group.producers}).sqrt()
        for group in groups
    ]
