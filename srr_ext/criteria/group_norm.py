"""How large all that goes with a vertex is: what sparse training with a group lasso makes zero."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from srr_ext.channels.records import ChannelGroup
from srr_ext.coupled import CoupledWeights
from srr_ext.criteria.base import SelectorContext, register_selector


@register_selector("group_norm")
def group_norm(groups: Sequence[ChannelGroup], context: SelectorContext) -> list[Tensor]:
    r"""Euclidean norm of all weights that go with a vertex.

    Parameters
    ----------
    groups : sequence of ChannelGroup
        Groups to score.
    context : SelectorContext
        Gives the weights.

    Returns
    -------
    list of Tensor
        For each group, float64 [group.size], in the unit of the weights; higher = keep. It is 0 exactly where all these
        weights are: such a vertex goes without any change of the outputs.

    Notes
    -----
    .. math:: s_j = \lVert w_j \rVert_2

    where :math:`w_j` are the filters and biases of the vertex in all producers, scale and shift of the normalisations
    and filters of the depthwise convolutions that follow, and the weights with which all consumers read it, see
    `srr_ext.coupled.CoupledWeights`. These are the groups that `srr_ext.training.GroupLasso` makes zero. The selector
    ``l2`` looks at the producers' filters alone.

    References
    ----------
    Wen, Wu, Wang, Chen, Li. Learning structured sparsity in deep neural networks. NeurIPS 2016, arXiv 1608.03665.
    That a group is all that the coupling of layers ties to a channel is our choice, as others have made it too: Fang,
    Ma, Song, Mi, Wang. DepGraph: towards any structural pruning. CVPR 2023, arXiv 2301.12900.
    """
    return [CoupledWeights(group, context.model).norms(torch.float64).to(context.device) for group in groups]
