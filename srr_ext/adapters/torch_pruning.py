"""An srr_ext plan for users of Torch-Pruning: as an importance and as a dictionary of ratios.

Needs ``torch-pruning``: ``pip install 'srr_ext[torch-pruning]'``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from srr_ext.calibration import Batch, Calibration
from srr_ext.channels import analyze_channels
from srr_ext.channels.records import ChannelAnalysis, ChannelGroup, Side
from srr_ext.criteria import Selector, SelectorContext, get_selector
from srr_ext.layers import channels_of, widths_of
from srr_ext.plan import PruningPlan

try:
    import torch_pruning as tp
except ImportError as _error:
    raise ModuleNotFoundError(
        f"SRRImportance needs torch-pruning, which is not installed ({_error}); pip install 'srr_ext[torch-pruning]'"
    ) from _error


class SRRImportance(tp.importance.Importance):
    r"""Order in which a plan removes channels, as an importance of Torch-Pruning.

    Parameters
    ----------
    model : nn.Module
        The dense model, the very object that Torch-Pruning is to prune.
    plan : PruningPlan
        What srr_ext would remove, by any allocator and selector.
    example_inputs : Tensor, tuple or dict
        Inputs for one forward pass.
    selector : str or callable, default "l1"
        Orders the channels among those that go, and among those that stay; the plan's own selector is the one to take.
    data : Calibration or iterable of (inputs, targets), optional
        Images, for selectors that look at some.

    Raises
    ------
    ValueError
        The plan does not fit the model, or cuts a grouped convolution. When called: Torch-Pruning ties other channels
        together than srr_ext; or a layer has been pruned already: make a new plan and a new importance for every step
        of iterative pruning.

    Notes
    -----
    A channel's score is :math:`(r + 1/2) / g`, where r is its rank in the order of its group, from 0, and g how many
    the plan removes of that group: below 1 it goes, above it stays. So Torch-Pruning removes what the plan does if it
    takes the ratios of `pruning_ratio_dict`, and with ``global_pruning=True`` it goes through all groups in proportion.
    Channels that stay in any case, by residual streams, pins or groups that lose none, score infinity; a group of
    Torch-Pruning's that has only such channels is none to prune.

    Examples
    --------
    >>> import torch, torch_pruning as tp, srr_ext
    >>> model, example = srr_ext.models.create("digits_cnn").eval(), torch.randn(1, 1, 8, 8)
    >>> plan = srr_ext.make_plan(model, example, keep_macs=0.5)
    >>> ratios = pruning_ratio_dict(model, plan)
    >>> importance = SRRImportance(model, plan, example)
    >>> pruner = tp.pruner.BasePruner(model, example, importance, pruning_ratio_dict=ratios)
    >>> pruner.step()
    >>> tp.utils.count_ops_and_params(model, example)[0] == plan.cost["macs"]["pruned"]
    True
    """

    def __init__(
        self,
        model: nn.Module,
        plan: PruningPlan,
        example_inputs: Any,
        *,
        selector: str | Selector = "l1",
        data: Calibration | list[Batch] | None = None,
    ) -> None:
        _check_fit(model, plan)
        analysis = analyze_channels(model, example_inputs, ignored=plan.options.get("ignored", ()))
        kept = kept_vertices(analysis, plan)
        groups = [group for group in analysis.groups if len(kept[group.name]) < group.size]
        context = SelectorContext(model, example_inputs, plan.seed, data=Calibration.of(data))
        importance = get_selector(selector)(groups, context)
        self._names = {module: name for name, module in model.named_modules()}
        self._tables: dict[_Place, _Table] = {}
        self._members: list[set[_Place]] = []  # sides of layers, by number of their group
        for number, (group, values) in enumerate(zip(groups, importance, strict=True)):
            stays = np.isin(np.arange(group.size), kept[group.name])
            order = np.lexsort((values.detach().cpu().numpy(), stays))  # by what the plan does, then by importance
            score = np.empty(group.size)
            score[order] = (np.arange(group.size) + 0.5) / (group.size - len(kept[group.name]))
            self._members.append(set())
            for member in group.members:
                place = _place(model.get_submodule(member.module), member.side)
                self._members[-1].add(place)
                table = self._tables.setdefault(place, _Table.whole(len(member.vertex)))
                here = torch.from_numpy(member.vertex >= 0)
                table.score[here] = torch.from_numpy(score[member.vertex[member.vertex >= 0]])
                table.group[here] = number

    def __call__(self, group: Any) -> Tensor | None:
        """Score the channels of a group.

        Parameters
        ----------
        group : torch_pruning.Group
            A group of Torch-Pruning's dependency graph, whole or in part.

        Returns
        -------
        Tensor of float64, shape [channels of the group's root], or None
            None where all of them stay.
        """
        size = len(group[0].idxs)
        low, high = torch.full((size,), math.inf).double(), torch.full((size,), -math.inf).double()
        found: set[_Place] = set()  # sides of layers that Torch-Pruning would cut
        wanted: set[_Place] = set()  # those that have to be cut with these channels
        agrees = True
        for item in group:
            side = _SIDES.get(item.dep.handler)
            if side is None:
                continue
            place = _place(item.dep.target.module, side)
            found.add(place)
            table = self._table(place)
            channels, roots = (torch.as_tensor(i, dtype=torch.long) for i in (item.idxs, _roots(item)))
            if int(channels.max()) >= len(table.score) or int(roots.max()) >= size:
                agrees = False
                continue
            low, high = (
                x.scatter_reduce(0, roots, table.score[channels], how) for x, how in ((low, "amin"), (high, "amax"))
            )
            wanted.update(*(self._members[number] for number in table.group[channels].unique().tolist() if number >= 0))
        if not agrees or not bool((low == high).all()) or not wanted <= found:
            here, there = (sorted({self._names.get(place[0], "?") for place in places}) for places in (found, wanted))
            raise ValueError(
                f"layers {', '.join(here)}: Torch-Pruning ties channels of these together, srr_ext those of "
                f"{', '.join(there) or 'none'}, or other channels of the same; use srr_ext.apply_plan for this network"
            )
        return None if bool(low.isinf().all()) else low

    def _table(self, place: _Place) -> _Table:
        module, side = place
        width = channels_of(module, side) or 0
        table = self._tables.get(place) or _Table.whole(width)
        if len(table.score) != width:
            raise ValueError(
                f"layer {self._names.get(module)!r}: has {width} channels, but the importance is for "
                f"{len(table.score)}; make a plan and an importance anew for every step of iterative pruning"
            )
        return table


@dataclass(frozen=True, eq=False)
class _Table:
    """The channels on one side of a layer: their scores, and the numbers of the groups that they belong to, or -1."""

    score: Tensor
    group: Tensor

    @classmethod
    def whole(cls, width: int) -> _Table:
        """One of a layer that keeps everything."""
        return cls(torch.full((width,), math.inf).double(), torch.full((width,), -1))


_Place = tuple[nn.Module, Side]
_SIDES: dict[Any, Side] = {
    tp.prune_conv_out_channels: "out",
    tp.prune_linear_out_channels: "out",
    tp.prune_batchnorm_out_channels: "out",
    tp.prune_depthwise_conv_out_channels: "out",
    tp.prune_prelu_out_channels: "out",
    tp.prune_conv_in_channels: "in",
    tp.prune_linear_in_channels: "in",
}


def _place(module: nn.Module, side: Side) -> _Place:
    """Name one side of a layer; a depthwise convolution has the same channels on both."""
    return module, "out" if isinstance(module, _ConvNd) and module.groups == module.out_channels > 1 else side


def _roots(item: Any) -> list[int]:
    """Return the channels of a group's root that those of one of its layers belong to."""
    return item.idxs if item.root_idxs is None else item.root_idxs


def pruning_ratio_dict(model: nn.Module, plan: PruningPlan) -> dict[nn.Module, float]:
    """Ratio of channels that every layer loses, for ``pruning_ratio_dict=`` of Torch-Pruning's pruners.

    Parameters
    ----------
    model : nn.Module
        The dense model, the very object that Torch-Pruning is to prune.
    plan : PruningPlan
        What srr_ext would remove.

    Returns
    -------
    dict of nn.Module to float
        For every convolution and linear layer, 0.0 for those that lose nothing: layers that are not in the dictionary
        would get Torch-Pruning's own default, one half.

    Raises
    ------
    ValueError
        The plan does not fit the model.

    Notes
    -----
    Torch-Pruning keeps ``int(n * (1 - ratio))`` of n channels, so a ratio is rounded, in its last bit, to where that is
    the plan's number.
    """
    _check_fit(model, plan)
    ratios: dict[nn.Module, float] = {}
    for name, module in model.named_modules():
        width = channels_of(module, "out")
        if width is not None and channels_of(module, "in") is not None:  # neither normalisation nor PReLU
            layer = plan.layers.get(name)
            ratios[module] = _ratio(width, width if layer is None or layer.out is None else len(layer.out))
    return ratios


def _ratio(width: int, kept: int) -> float:
    ratio = 1 - kept / width
    while int(width * (1 - ratio)) < kept:
        ratio = math.nextafter(ratio, -1.0)
    return ratio


def _check_fit(model: nn.Module, plan: PruningPlan) -> None:
    found = {name: list(sides) for name, sides in widths_of(model).items()}
    if found != plan.widths:
        wrong = next((n for n in (*found, *plan.widths) if found.get(n) != plan.widths.get(n)), "")
        raise ValueError(
            f"plan: does not fit this model: layer {wrong!r} has [output, input] channels {found.get(wrong)}, "
            f"in the plan {plan.widths.get(wrong)}"
        )
    for name in plan.layers:
        module = model.get_submodule(name)
        if isinstance(module, _ConvNd) and module.groups > 1 and not module.groups == module.out_channels:
            raise ValueError(
                f"plan: layer {name!r} is a grouped convolution, of which Torch-Pruning takes the same channels in "
                "every group, and srr_ext whole groups or others; name it in ignored= of make_plan, or use "
                "srr_ext.apply_plan"
            )


def kept_vertices(analysis: ChannelAnalysis, plan: PruningPlan) -> dict[str, np.ndarray]:
    """Vertices that a plan keeps of each group, by name: the inverse of what made the plan's layers of them."""
    return {group.name: _kept(group, plan) for group in analysis.groups}


def _kept(group: ChannelGroup, plan: PruningPlan) -> np.ndarray:
    alive = np.zeros(group.size, dtype=bool)
    for member in group.producers:
        layer = plan.layers.get(member.module)
        positions = np.arange(len(member.vertex)) if layer is None or layer.out is None else np.asarray(layer.out)
        vertices = member.vertex[positions]
        alive[vertices[vertices >= 0]] = True
    return np.flatnonzero(alive)
