"""The scale that batch normalisation gives a channel: what network slimming sparsifies, as a criterion."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from srr_ext.channels.records import ChannelGroup
from srr_ext.criteria.base import SelectorContext, register_selector
from srr_ext.criteria.gates import direct_norms
from srr_ext.criteria.norms import l2


@register_selector("bn_scale")
def bn_scale(groups: Sequence[ChannelGroup], context: SelectorContext) -> list[Tensor]:
    r"""Absolute scale of the batch normalisation that reads the filter's output directly.

    Parameters
    ----------
    groups : sequence of ChannelGroup
        Groups to score.
    context : SelectorContext
        Gives the model, and the example inputs on which it runs once to see which normalisation reads which layer.

    Returns
    -------
    list of Tensor
        For each group, float64 [group.size]; higher = keep.

    Warns
    -----
    UserWarning
        If a layer of a group is read by no normalisation directly, or by one without scales (a residual stream that is
        normalised after the addition, say). The group is then scored by the L2 norm of its filters; scores are compared
        within groups, and allocators that compare them across groups divide by a group's mean.

    Notes
    -----
    .. math:: s_j = \sum |\gamma_j|

    over the normalisations that read the channels, in all producers, that vertex :math:`j` stands for.

    References
    ----------
    Liu, Li, Shen, Huang, Yan, Zhang. Learning efficient convolutional networks through network slimming. ICCV 2017,
    arXiv 1708.06519.
    """
    norms = direct_norms(context, [member.module for group in groups for member in group.producers])
    scales = {name: _scale(calls, context) for name, calls in norms.items()}
    scores, lacking = [], []
    for group in groups:
        of_group = {member.module: scales[member.module] for member in group.producers}
        known = {name: scale for name, scale in of_group.items() if scale is not None}
        if len(known) == len(of_group):
            scores.append(context.vertex_sum(group, known))
        else:
            lacking.append(f"{group.name} ({next(name for name in of_group if name not in known)})")
            scores += l2([group], context)
    if lacking:
        warnings.warn(
            "bn_scale: no batch normalisation with scales reads a layer directly in these groups (first such layer in "
            f"brackets), which are scored by the L2 norm of their filters instead: {', '.join(lacking)}",
            stacklevel=2,
        )
    return scores


def _scale(calls: tuple[str | None, ...], context: SelectorContext) -> Tensor | None:
    """Add up the absolute scales of the normalisations that read a layer; None if a call is without."""
    total = None
    for name in dict.fromkeys(calls):
        norm: Any = None if name is None else context.model.get_submodule(name)
        if norm is None or norm.weight is None:
            return None
        scale: Tensor = norm.weight.detach().to(context.device).double().abs()
        total = scale if total is None else total + scale
    return total
