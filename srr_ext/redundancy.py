"""How redundant every group is, and the report of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor, nn

from srr_ext.bit_graphs import ZERO, layer_sums
from srr_ext.channels import analyze_channels
from srr_ext.channels.records import ChannelAnalysis, ChannelGroup, Pin
from srr_ext.cost import CostModel, Target
from srr_ext.graph import Distance, check_gamma, group_graphs, group_matrices, select_groups
from srr_ext.ops import FilterGraphs, components, covering
from srr_ext.progress import Progress
from srr_ext.transfers import to_host

COMPONENT_WEIGHT = 0.35  # as published, with 0.65 for the covering number; the source saw "no drastic impact" of others
DEFAULT_KEEP_MACS = 0.5


@dataclass(frozen=True)
class GroupRedundancy:
    """Structural redundancy of one group.

    Attributes
    ----------
    name : str
        The group, i.e. its first producer.
    n_filters : int
        Vertices of its graph: filters, or channels where several producers share them.
    fan_in : int
        Weights per vertex, over all producers.
    edge_density : float
        Share of all pairs that are joined, 0 to 1.
    components : int
        Connected components: the quotient space size.
    cover_upper, cover_lower : int
        Bounds of the covering number: greedy covers of radius 1 and of radius 2.
    redundancy : float
        R, between 1 (every filter on its own) and ``n_filters`` (one covers all).
    zero_filters : int
        Filters without a weight other than zero; they are joined to nothing.
    stream : bool
        Whether this is a residual stream.
    """

    name: str
    n_filters: int
    fan_in: int
    edge_density: float
    components: int
    cover_upper: int
    cover_lower: int
    redundancy: float
    zero_filters: int
    stream: bool


@dataclass(frozen=True)
class RedundancyReport:
    """Structural redundancy of a model.

    Attributes
    ----------
    gamma : float
        Distance threshold of the graphs.
    groups : tuple of GroupRedundancy
        Every group that a plan may touch, in order of execution.
    pins : tuple of Pin
        Channels that no plan removes, and why.
    distance : {"rms", "euclidean"}
        What gamma bounds, see `srr_ext.graph.group_graphs`.
    """

    gamma: float
    groups: tuple[GroupRedundancy, ...]
    pins: tuple[Pin, ...] = ()
    distance: Distance = "rms"

    def to_json(self) -> str:
        """Return the report as JSON text; keys are named like the attributes."""
        return json.dumps(asdict(self), indent=2)


def redundancy(
    n_filters: int, components: int, cover_upper: int, cover_lower: int, component_weight: float = COMPONENT_WEIGHT
) -> float:
    r"""Structural redundancy of one graph.

    Parameters
    ----------
    n_filters : int
        Vertices.
    components : int
        Connected components.
    cover_upper, cover_lower : int
        Bounds of the covering number.
    component_weight : float, default 0.35
        Weight of the number of components; the covering number has the rest.

    Returns
    -------
    float
        In [1, n_filters].

    Notes
    -----
    .. math:: R = N / (0.35 k + 0.65 N_1), \quad N_1 = (upper + lower) / 2

    References
    ----------
    Wang, Li, Wang. Convolutional neural network pruning with structural redundancy reduction. CVPR 2021,
    arXiv 2104.03438.
    """
    return n_filters / (component_weight * components + (1 - component_weight) * (cover_upper + cover_lower) / 2)


def measure(
    groups: Sequence[ChannelGroup],
    matrices: Sequence[Tensor],
    graphs: FilterGraphs,
    component_weight: float = COMPONENT_WEIGHT,
) -> list[GroupRedundancy]:
    """Measure every group.

    Parameters
    ----------
    groups : sequence of ChannelGroup
        The groups.
    matrices : sequence of Tensor, shape [n, fan_in]
        Their filter matrices.
    graphs : FilterGraphs
        Their graphs, or those of some of the filters; they say which filters are zero.
    component_weight : float, default 0.35
        Weight of the number of components in R.

    Returns
    -------
    list of GroupRedundancy
        One per group, in order.
    """
    zeros = graphs.words.new_zeros(len(graphs))
    if graphs.kinds is not None:
        zeros = layer_sums(graphs.kinds == ZERO, graphs.n_filters)
    covers = covering(graphs, radius=1), covering(graphs, radius=2)
    figures = to_host(graphs.edge_density(), components(graphs), *covers, zeros)
    columns = zip(groups, matrices, graphs.n_filters, *(figure.tolist() for figure in figures), strict=True)
    return [
        GroupRedundancy(
            name=group.name,
            n_filters=n,
            fan_in=matrix.shape[1],
            edge_density=density,
            components=k,
            cover_upper=upper,
            cover_lower=lower,
            redundancy=redundancy(n, k, upper, lower, component_weight),
            zero_filters=zero,
            stream=group.stream,
        )
        for group, matrix, n, density, k, upper, lower, zero in columns
    ]


def analyze(
    model: nn.Module,
    example_inputs: Any,
    gamma: float | Literal["auto"] = "auto",
    keep_macs: float | None = None,
    keep_params: float | None = None,
    keep_channels: float | None = None,
    streams: Literal["keep", "prune"] = "keep",
    ignored: Sequence[str] = (),
    analysis: ChannelAnalysis | None = None,
    distance: Distance = "rms",
    keep_latency: float | None = None,
    latency_batch: int = 64,
    progress: Progress | None = None,
) -> RedundancyReport:
    """Measure where a model is structurally redundant.

    Parameters
    ----------
    model : nn.Module
        The model; it is left as it is.
    example_inputs : Tensor, tuple or dict
        Arguments of one forward pass.
    gamma : float or "auto", default "auto"
        Distance threshold. ``"auto"`` is what the allocator ``srr`` with the selector ``l1`` and default options takes
        for the given target: the smallest threshold at which every removal is made in a group that is redundant.
    keep_macs, keep_params, keep_channels, keep_latency : float, optional
        The target, for ``gamma="auto"`` only: share to keep, in (0, 1]. At most one; half of the MACs by default.
    streams : {"keep", "prune"}, default "keep"
        Whether residual streams are left whole, and out of the report.
    ignored : sequence of str
        Names of modules whose output channels stay.
    analysis : ChannelAnalysis, optional
        Result of `analyze_channels` for this model, to save its time; ``ignored`` is then the analysis' own.
    distance : {"rms", "euclidean"}, default "rms"
        What gamma bounds, see `srr_ext.make_plan`.
    latency_batch : int, default 64
        For ``keep_latency``, see `srr_ext.make_plan`. Times are estimated here, and not checked against the result.
    progress : Progress, optional
        Where measuring reports; silent by default.

    Returns
    -------
    RedundancyReport
        One entry per group, and the channels that no plan removes.

    Raises
    ------
    TypeError, ValueError
        If an option is out of range, the model has no prunable channels, a weight is not finite, or no threshold
        reaches the target.
    """
    from srr_ext.allocators import (
        prepare,
        require_groups,
        smallest_gamma,
    )  # they measure redundancy, so they import this module first
    from srr_ext.latency_table import LatencyCost, with_batch

    analysis = analysis or analyze_channels(model, example_inputs, ignored=ignored)
    groups = select_groups(analysis, streams)
    matrices = group_matrices(groups, model)
    if gamma == "auto":
        require_groups(analysis, groups)
        if keep_macs is None and keep_params is None and keep_channels is None and keep_latency is None:
            keep_macs = DEFAULT_KEEP_MACS
        target = Target.choose(keep_macs, keep_params, keep_channels, keep_latency)
        _, context = prepare(groups, model, example_inputs, "l1", distance=distance)
        if target.quantity == "latency":
            batch = with_batch(example_inputs, latency_batch)
            cost: CostModel = LatencyCost(
                model, batch, analysis, groups, trial=example_inputs, keep=target.keep, progress=progress
            )
        else:
            cost = CostModel(analysis, target.quantity)
        gamma = smallest_gamma(groups, matrices, cost, target, context)
    gamma = check_gamma(gamma)
    graphs = group_graphs(groups, matrices, gamma, distance)
    return RedundancyReport(gamma, tuple(measure(groups, matrices, graphs)), analysis.pins, distance)
