"""What sparse training has made zero is the plan."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from srr_ext.allocators.base import Allocation, AllocatorContext, register_allocator
from srr_ext.channels.records import ChannelGroup
from srr_ext.cost import CostModel, Target


@register_allocator("zero_groups")
def zero_groups(
    groups: Sequence[ChannelGroup], importance: list[Tensor], cost: CostModel, target: Target, context: AllocatorContext
) -> Allocation:
    r"""Remove the vertices whose importance is exactly 0, and no other.

    It goes with selectors that are 0 where nothing is lost: ``group_norm`` after training with the penalty
    ``group_lasso``, ``bn_scale`` after ``bn_l1``. How much goes is up to that training, so the target is only checked:
    with ``keep_macs=1`` whatever is zero goes.

    Parameters
    ----------
    groups : sequence of ChannelGroup
        The groups to prune.
    importance : list of Tensor
        Of the selector, at least 0.
    cost : CostModel
        What the target is about.
    target : Target
        What has to be reached; may be exceeded.
    context : AllocatorContext
        Gives the order of removal within each group. Vertices that the floor protects stay although they are zero, and
        ``round_to`` brings some back.

    Returns
    -------
    Allocation
        Vertices kept per group; ``info["zero"]`` is how many of all are zero.

    Raises
    ------
    ValueError
        If an importance is negative, or not enough vertices are zero for the target.

    Notes
    -----
    .. math:: \text{kept} = \{ j : s_j \ne 0 \}

    References
    ----------
    Wen, Wu, Wang, Chen, Li. Learning structured sparsity in deep neural networks. NeurIPS 2016, arXiv 1608.03665.
    """
    counts, kept, zero = [], {}, 0
    for group, scores, schedule in zip(groups, importance, context.schedules, strict=True):
        values = scores.numpy()
        if values.min(initial=0) < 0:
            raise ValueError(
                f"selector gives vertices of group {group.name!r} an importance below 0 (down to {values.min():.3g}), "
                "so 0 is not the least; allocator 'zero_groups' goes with group_norm, bn_scale and other norms"
            )
        zero += int((values == 0).sum())
        free = int((values[schedule.order[: schedule.limit]] == 0).sum())  # the first in order, as none is below 0
        counts.append(group.size - int(schedule.settled[free]))
        kept[group.name] = schedule.kept(counts[-1])
    reached, total = cost.of(kept), sum(group.size for group in groups)
    if reached > target.limit(cost.dense):
        raise ValueError(
            f"{target.option}={target.keep} is out of reach: {zero} of {total} vertices have importance 0, and without "
            f"the {total - sum(counts)} of them that may go, {reached} of {cost.dense} {target.quantity} "
            f"({reached / cost.dense:.4f}) are left. Ask for more than that, train for more epochs or with a larger "
            "strength of the penalty, or take allocator global:normalise=none, which removes zeros first and goes on"
        )
    return Allocation(tuple(counts), {"zero": zero})
