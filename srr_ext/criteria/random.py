"""The control every comparison needs: importance without meaning."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from srr_ext.channels.records import ChannelGroup
from srr_ext.criteria.base import SelectorContext, register_selector


@register_selector("random")
def random(groups: Sequence[ChannelGroup], context: SelectorContext) -> list[Tensor]:
    r"""Draw importance uniformly at random.

    Parameters
    ----------
    groups : sequence of ChannelGroup
        Groups to score.
    context : SelectorContext
        Gives the seed.

    Returns
    -------
    list of Tensor
        For each group, float64 [group.size] in [0, 1). The same seed and group name give the same numbers on every
        machine, whatever other groups there are.

    Notes
    -----
    .. math:: s_j \sim U[0, 1)

    References
    ----------
    Mittal, Bhardwaj, Khapra, Ravindran. Recovering from random pruning: on the plasticity of deep convolutional neural
    networks. WACV 2018, arXiv 1801.10447.
    """
    return [torch.from_numpy(context.generator("random", group.name).random(group.size)) for group in groups]
