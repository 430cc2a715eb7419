"""How much the loss changes, to first order, when a channel is removed: the two Taylor criteria."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from srr_ext.channels.records import ChannelGroup
from srr_ext.criteria.base import SelectorContext, register_selector
from srr_ext.criteria.gates import mean_change


@register_selector("taylor2016")
def taylor2016(groups: Sequence[ChannelGroup], context: SelectorContext) -> list[Tensor]:
    r"""Absolute product of activation and gradient, per image.

    Parameters
    ----------
    groups : sequence of ChannelGroup
        Groups to score.
    context : SelectorContext
        Gives the model and batches of (inputs, targets).

    Returns
    -------
    list of Tensor
        For each group, float64 [group.size], without unit, of Euclidean norm 1 (or all 0); higher = keep.

    Raises
    ------
    ValueError
        If there are no calibration data, or their loss has no gradient or cannot be differentiated.

    Warns
    -----
    UserWarning
        If no gradient reaches a group.

    Notes
    -----
    .. math:: t_j = \frac{1}{n} \sum_{i=1}^{n} \Bigl| \frac{1}{M} \sum_{p=1}^{M}
              a_{ijp} \frac{\partial L}{\partial a_{ijp}} \Bigr|, \qquad s_j = t_j / \lVert t \rVert_2

    over images :math:`i` and positions :math:`p`. The division by the norm cancels the number of positions. For ReLU
    it does not matter whether :math:`a` is taken before it or behind: where it is negative before, the gradient is 0.
    Here it is taken before, behind the normalisation if there is one; for other activation functions this differs from
    the paper. In a coupled group the products of all channels that vertex :math:`j` stands for are added up before the
    absolute value is taken, which makes it the first-order change of removing them all (ours; the paper has no
    coupled layers).

    References
    ----------
    Molchanov, Tyree, Karras, Aila, Kautz. Pruning convolutional neural networks for resource efficient inference.
    ICLR 2017, arXiv 1611.06440.
    """
    scores = mean_change(groups, context, "taylor2016", lambda changes: changes.abs().mean(0))
    return [normalize(score, dim=0, eps=torch.finfo(score.dtype).tiny) for score in scores]


@register_selector("taylor2019")
def taylor2019(groups: Sequence[ChannelGroup], context: SelectorContext) -> list[Tensor]:
    r"""Squared gradient of a factor of the channel, per mini-batch.

    Parameters
    ----------
    groups : sequence of ChannelGroup
        Groups to score.
    context : SelectorContext
        Gives the model and batches of (inputs, targets); their size matters, because gradients of different signs
        cancel within a batch.

    Returns
    -------
    list of Tensor
        For each group, float64 [group.size], in squared units of the loss; higher = keep.

    Raises
    ------
    ValueError
        If there are no calibration data, or their loss has no gradient or cannot be differentiated.

    Warns
    -----
    UserWarning
        If no gradient reaches a group.

    Notes
    -----
    .. math:: s_j = \frac{1}{B} \sum_{b=1}^{B} \Bigl( \frac{\partial L_b}{\partial z_j} \Bigr)^2

    over mini-batches :math:`b` with mean loss :math:`L_b`; the gate :math:`z_j = 1` multiplies the channel behind its
    normalisation. All channels that vertex :math:`j` stands for share one gate, as in the authors' treatment of
    residual streams. For ImageNet ResNets their code also divides the scores of a stream by the number of layers in
    it; that matters only between groups and is left to the allocator.

    References
    ----------
    Molchanov, Mallya, Tyree, Frosio, Kautz. Importance estimation for neural network pruning. CVPR 2019,
    arXiv 1906.10771.
    """
    return mean_change(groups, context, "taylor2019", lambda changes: changes.sum(0).square())
