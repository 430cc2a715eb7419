r"""Native ops on filter graphs: which filters of a layer are near each other, and how redundant that makes the layer.

The functions check their arguments and call ``torch.ops.srr_ext``, one call for all layers. :mod:`srr_ext.reference`
has the same functions in plain Python. A build without native code (``SRR_BUILD=none``) computes with those.

References
----------
Z. Wang, C. Li, X. Wang, "Convolutional Neural Network Pruning with Structural Redundancy Reduction", CVPR 2021,
arXiv 2104.03438.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _native, reference
from ._op_arguments import (
    check_finite_filters,
    check_gammas,
    check_graphs,
    check_levels,
    check_limits,
    check_orders,
    check_radius,
    check_redundancy_weights,
    check_weights,
)
from .bit_graphs import FilterGraphs, words_per_row
from .transfers import to_device

__all__ = ["FilterGraphs", "components", "covering", "filter_graph_levels", "filter_graphs", "trajectories"]

_OPS = ("filter_graphs", "components", "covering", "trajectories")


def filter_graphs(
    weights: Sequence[Tensor], gamma: float | Sequence[float], *, check_finite: bool = True
) -> FilterGraphs:
    r"""Filter graph of every layer, in one call.

    Parameters
    ----------
    weights : sequence of Tensor, shape [n_filters, ...] each
        One per layer: convolution or linear weights, or any matrix of filters; float16, bfloat16, float32 or float64,
        all on one device. Contiguous ones are read in place. Gradients are ignored.
    gamma : float or sequence of float
        Distance threshold, finite and at least 0, for all layers or one per layer.
    check_finite : bool, default True
        Whether to refuse weights that are NaN or infinite, which the host has to wait for. Without, filters with such
        weights have no edge, and ``kinds`` says which they are.

    Returns
    -------
    FilterGraphs
        One graph per layer, on the device of the weights. Zero filters have no edge and are listed in
        ``zero_filters``.

    Raises
    ------
    TypeError
        If ``weights`` is not a sequence of tensors of a type above, or ``gamma`` is not a number or several.
    ValueError
        If a weight is NaN or infinite (the message names the layer), a tensor has no dimensions, devices differ or have
        no kernels, ``gamma`` is negative or not finite, or there is not one for each layer.

    Notes
    -----
    With :math:`v = W / \lVert W \rVert` and fan-in :math:`n`, filters :math:`i, j` are joined iff

    .. math:: \lVert v_i - v_j \rVert / \sqrt n \le \gamma.

    Products are computed in single precision; pairs that come too close to the threshold for it are decided again in
    double precision, so the answer is that of the reference on every pair, whatever the machine and the number of
    threads. No n x n matrix of distances is stored.

    Examples
    --------
    >>> weight = torch.tensor([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0]])
    >>> filter_graphs([weight], gamma=0.1).to_dense(0).int().tolist()
    [[0, 1, 0], [1, 0, 0], [0, 0, 0]]
    """
    tensors = check_weights(weights)
    return _filter_graph_levels(tensors, [check_gammas(gamma, len(tensors))], check_finite)[0]


def filter_graph_levels(
    weights: Sequence[Tensor], gammas: Sequence[float | Sequence[float]], *, check_finite: bool = True
) -> list[FilterGraphs]:
    """Filter graphs at several thresholds, from one computation of the distances.

    Parameters
    ----------
    weights : sequence of Tensor, shape [n_filters, ...] each
        One per layer, as `filter_graphs` takes them.
    gammas : sequence of float, or of sequences of float
        For each level its distance threshold, or its thresholds, one per layer.
    check_finite : bool, default True
        Whether to refuse weights that are NaN or infinite, see `filter_graphs`.

    Returns
    -------
    list of FilterGraphs
        For each level, what `filter_graphs` returns for its threshold.

    Raises
    ------
    TypeError, ValueError
        As `filter_graphs` does.

    Examples
    --------
    >>> weight = torch.tensor([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0]])
    >>> [components(graphs).item() for graphs in filter_graph_levels([weight], [0.0, 0.1, 1.0])]
    [3, 2, 1]
    """
    tensors = check_weights(weights)
    return _filter_graph_levels(tensors, check_levels(gammas, len(tensors)), check_finite)


def _filter_graph_levels(tensors: list[Tensor], levels: list[list[float]], check_finite: bool) -> list[FilterGraphs]:
    """Compute what `filter_graph_levels` promises, with arguments that are checked."""
    if not _native.AVAILABLE:
        return reference.filter_graph_levels(tensors, levels, check_finite=check_finite)
    if not tensors:
        return [FilterGraphs(torch.empty(0, dtype=torch.int64), ()) for _ in levels]
    if not levels:
        return []
    _check_device("filter_graphs", "weights", tensors[0])
    words, kinds = torch.ops.srr_ext.filter_graphs(tensors, [gamma for level in levels for gamma in level])
    n_filters = tuple(weight.shape[0] for weight in tensors)
    if check_finite:
        check_finite_filters(kinds, n_filters)
    return [FilterGraphs(level, n_filters, kinds) for level in words.view(len(levels), -1)]


def components(graphs: FilterGraphs) -> Tensor:
    """Quotient space size of every layer: the number of connected components of its graph.

    Parameters
    ----------
    graphs : FilterGraphs
        The graphs.

    Returns
    -------
    Tensor of int64, shape [n_layers]
        Number of components; a filter without edges is one, an empty layer has 0.

    Raises
    ------
    TypeError
        If ``graphs`` is not a FilterGraphs.

    Examples
    --------
    >>> graphs = filter_graphs([torch.tensor([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0]])], gamma=0.1)
    >>> components(graphs).tolist()
    [2]
    """
    check_graphs(graphs)
    if not _native.AVAILABLE:
        return reference.components(graphs)
    _check_device("components", "graphs", graphs.words)
    return torch.ops.srr_ext.components(graphs.words, graphs.n_filters)


def covering(graphs: FilterGraphs, radius: int = 1) -> Tensor:
    r"""Size of a greedy cover of every layer's graph by balls.

    Parameters
    ----------
    graphs : FilterGraphs
        The graphs.
    radius : {1, 2}, default 1
        Radius of the balls: 1 gives an upper bound of the covering number, 2 a lower bound.

    Returns
    -------
    Tensor of int64, shape [n_layers]
        Number of centres; 0 for an empty layer.

    Raises
    ------
    TypeError
        If ``graphs`` is not a FilterGraphs.
    ValueError
        If ``radius`` is neither 1 nor 2.

    Notes
    -----
    The covering number :math:`N_1` is the fewest vertices whose closed neighbourhoods cover the graph; it is NP-hard to
    find. Vertices are visited by degree, highest first, ties to the lowest index; one that is not covered yet becomes a
    centre and covers all vertices at distance at most ``radius``. Centres of radius 2 are more than 2 apart, so
    components <= covering(radius=2) <= :math:`N_1` <= covering(radius=1) <= n_filters.

    Examples
    --------
    >>> path = torch.tensor([[0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 1, 0]], dtype=torch.bool)
    >>> graphs = FilterGraphs.from_dense([path])
    >>> covering(graphs, radius=1).item(), covering(graphs, radius=2).item()
    (2, 1)
    """
    check_graphs(graphs)
    radius = check_radius(radius)
    if not _native.AVAILABLE:
        return reference.covering(graphs, radius)
    _check_device("covering", "graphs", graphs.words)
    return torch.ops.srr_ext.covering(graphs.words, graphs.n_filters, radius)


def trajectories(
    graphs: FilterGraphs,
    orders: Sequence[Tensor],
    *,
    component_weight: float = 0.35,
    cover_weight: float = 0.65,
    limits: Sequence[int] | None = None,
) -> list[Tensor]:
    r"""Redundancy of every layer after each removal of a filter.

    Parameters
    ----------
    graphs : FilterGraphs
        The graphs.
    orders : sequence of Tensor of int64, shape [n_filters] each
        For each layer, a permutation of its filters: the order in which they go. They are checked on the host, so
        best are already there.
    component_weight, cover_weight : float, default 0.35 and 0.65
        Weights of the two terms of the denominator, finite, at least 0 and not both 0.
    limits : sequence of int, optional
        For each layer, how many entries to compute, 0 .. n_filters; default all.

    Returns
    -------
    list of Tensor of float64, shape [limits[i]] each
        Entry k of layer i is its redundancy R(k) once the first k filters of ``orders[i]`` are gone; the last entry of
        a full trajectory is that of a single filter, 1.

    Raises
    ------
    TypeError
        If ``graphs`` is not a FilterGraphs or an order is not of integers.
    ValueError
        If an order is not a permutation, a limit is out of range, a weight is out of range, or list lengths differ.

    Notes
    -----
    .. math:: R(k) = \frac{N - k}{0.35\, q + 0.65\, (upper + lower) / 2}

    with q components and the two greedy covers of the graph that is left; see :func:`components` and :func:`covering`.
    R lies in [1, N] when the weights add up to 1. The trajectory of a layer depends on that layer alone, so one call
    answers every budget.

    Examples
    --------
    >>> complete = FilterGraphs.from_dense([torch.ones(3, 3, dtype=torch.bool)])
    >>> trajectories(complete, [torch.arange(3)])
    [tensor([3., 2., 1.], dtype=torch.float64)]
    """
    check_graphs(graphs)
    component_weight, cover_weight = check_redundancy_weights(component_weight, cover_weight)
    permutations, counts = check_orders(graphs, orders), check_limits(graphs, limits)
    if not _native.AVAILABLE:
        return reference.trajectories(
            graphs, permutations, component_weight=component_weight, cover_weight=cover_weight, limits=counts
        )
    _check_device("trajectories", "graphs", graphs.words)
    if not counts:
        return []
    order = to_device(torch.cat(permutations), graphs.words.device)
    values = torch.ops.srr_ext.trajectories(
        graphs.words, graphs.n_filters, order, counts, component_weight, cover_weight
    )
    return list(values.split(counts))


def has_kernels(device: torch.device) -> bool:
    """Whether this build computes filter graphs, and all that follows from them, on a device."""
    key = torch._C._dispatch_key_for_device(device.type)
    if not _native.AVAILABLE or key in ("CPU", "Meta"):  # every build has those; the reference is for the CPU
        return device.type == "cpu" or _native.AVAILABLE
    return all(torch._C._dispatch_has_kernel_for_dispatch_key(f"srr_ext::{op}", key) for op in _OPS)


def _check_device(op: str, argument: str, tensor: Tensor) -> None:
    """Refuse a device that the library has no kernel for, by name."""
    if not has_kernels(tensor.device):
        key = torch._C._dispatch_key_for_device(tensor.device.type)
        raise ValueError(
            f"{argument} must be on the CPU, got {tensor.device}: this build ({_native.build_info()['build']}) has no "
            f"{key} kernel for {op}; pass .cpu() tensors"
        )


def _register() -> torch.library.Library:
    """Give the ops shapes for tracing, and no gradient: what they return is discrete."""
    library = torch.library.Library("srr_ext", "IMPL")
    for op in _OPS:
        library.impl(op, torch.library.fallthrough_kernel, "Autograd")

    @torch.library.register_fake("srr_ext::filter_graphs")
    def _(weights: list[Tensor], gammas: list[float]) -> tuple[Tensor, Tensor]:
        n_filters = [weight.shape[0] for weight in weights]
        n_words = len(gammas) // len(weights) * sum(n * words_per_row(n) for n in n_filters)
        new = weights[0].new_empty
        return new(n_words, dtype=torch.int64), new(sum(n_filters), dtype=torch.uint8)

    @torch.library.register_fake("srr_ext::components")
    def _(words: Tensor, n_filters: list[int]) -> Tensor:
        return words.new_empty(len(n_filters))

    @torch.library.register_fake("srr_ext::covering")
    def _(words: Tensor, n_filters: list[int], radius: int) -> Tensor:
        return words.new_empty(len(n_filters))

    @torch.library.register_fake("srr_ext::trajectories")
    def _(
        words: Tensor,
        n_filters: list[int],
        orders: Tensor,
        limits: list[int],
        component_weight: float,
        cover_weight: float,
    ) -> Tensor:
        return words.new_empty(sum(limits), dtype=torch.float64)

    return library


_LIBRARY = _register() if _native.AVAILABLE else None  # registrations live as long as this object
