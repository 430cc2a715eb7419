"""Checks of the ops' arguments, shared by the native ops and the reference so that both refuse the same things."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from .bit_graphs import NOT_FINITE, FilterGraphs
from .transfers import to_host

WEIGHT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_weights(weights: Sequence[Tensor]) -> list[Tensor]:
    """Return the weights as a list without gradients, of tensors [n_filters, ...] on one device."""
    if isinstance(weights, Tensor):
        raise TypeError("weights must be a sequence of tensors, one per layer, got a single tensor: wrap it in a list")
    tensors = list(weights)
    for i, weight in enumerate(tensors):
        if not isinstance(weight, Tensor):
            raise TypeError(f"weights[{i}] must be a tensor, got {type(weight).__name__}")
        if weight.dtype not in WEIGHT_DTYPES:
            raise TypeError(f"weights[{i}] must be float16, bfloat16, float32 or float64, got {weight.dtype}")
        if weight.dim() == 0:
            raise ValueError(f"weights[{i}] must have shape [n_filters, ...], got a tensor without dimensions")
        if weight.device != tensors[0].device:
            raise ValueError(f"weights[{i}] must be on {tensors[0].device} like weights[0], got {weight.device}")
    return [weight.detach() for weight in tensors]


def check_gammas(gamma: float | Sequence[float], n_layers: int, name: str = "gamma") -> list[float]:
    """Return the distance thresholds, one per layer."""
    kinds = (Sequence, np.ndarray, Tensor)
    if isinstance(gamma, kinds) and not isinstance(gamma, str) and getattr(gamma, "ndim", 1) > 0:
        if len(gamma) != n_layers:
            raise ValueError(f"{name} must be one number or one per layer ({n_layers}), got {len(gamma)}")
        return [_check_gamma(f"{name}[{i}]", value) for i, value in enumerate(gamma)]
    return [_check_gamma(name, gamma)] * max(n_layers, 1)


def check_levels(gammas: Sequence[float | Sequence[float]], n_layers: int) -> list[list[float]]:
    """Return the distance thresholds of every level, one per layer."""
    if isinstance(gammas, str) or not isinstance(gammas, Iterable) or getattr(gammas, "ndim", 1) == 0:
        raise TypeError(f"gammas must be a sequence with an entry for each level, got {type(gammas).__name__}")
    return [check_gammas(gamma, n_layers, f"gammas[{i}]") for i, gamma in enumerate(gammas)]


def _check_gamma(name: str, gamma: object) -> float:
    if isinstance(gamma, (bool, str)) or not hasattr(gamma, "__float__"):
        raise TypeError(f"{name} must be a number, got {type(gamma).__name__}")
    value = float(gamma)
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{name} must be finite and at least 0, got {value}")
    return value


def check_finite_filters(kinds: Tensor, n_filters: Sequence[int]) -> None:
    """Refuse weights that are not numbers, by what `filter_graphs` says each filter is."""
    (found,) = to_host(kinds)
    if not bool((found == NOT_FINITE).any()):
        return
    for layer, kind in enumerate(found.split(list(n_filters))):
        unfit = (kind == NOT_FINITE).nonzero()
        if len(unfit):
            raise ValueError(
                f"weights[{layer}] must be finite, got NaN or infinity in filter {int(unfit[0])}: "
                "check that training did not diverge and that the checkpoint was read whole"
            )


def check_graphs(graphs: FilterGraphs) -> FilterGraphs:
    """Return the graphs."""
    if not isinstance(graphs, FilterGraphs):
        raise TypeError(f"graphs must be a FilterGraphs (see filter_graphs), got {type(graphs).__name__}")
    return graphs


def check_radius(radius: int) -> int:
    """Return the radius of the balls, 1 or 2."""
    if isinstance(radius, bool) or not isinstance(radius, (int, np.integer)) or radius not in (1, 2):
        raise ValueError(f"radius must be 1 or 2, got {radius!r}")
    return int(radius)


def check_orders(graphs: FilterGraphs, orders: Sequence[Tensor]) -> list[Tensor]:
    """Return the removal orders as CPU int64 tensors, one permutation per layer."""
    if not isinstance(orders, Iterable):
        raise TypeError(f"orders must be a sequence of permutations, one per layer, got {type(orders).__name__}")
    tensors = to_host(*(_order_tensor(i, order) for i, order in enumerate(orders)))
    if len(tensors) != len(graphs):
        raise ValueError(f"orders must have one entry per layer ({len(graphs)}), got {len(tensors)}")
    for i, (order, n) in enumerate(zip(tensors, graphs.n_filters, strict=True)):
        is_integer = not (order.dtype.is_floating_point or order.dtype.is_complex or order.dtype == torch.bool)
        if not is_integer and order.numel() > 0:  # an empty list becomes an empty float tensor
            raise TypeError(f"orders[{i}] must be integers, got {order.dtype}")
        if order.shape != (n,) or not torch.equal(order.long().sort().values, torch.arange(n)):
            raise ValueError(
                f"orders[{i}] must be a permutation of 0 .. {n - 1}, got a tensor of shape {list(order.shape)}"
            )
    return [order.detach().to(torch.int64) for order in tensors]


def _order_tensor(layer: int, order: object) -> Tensor:
    try:
        return torch.as_tensor(order)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"orders[{layer}] must be a tensor of integers, got {type(order).__name__}") from error


def check_limits(graphs: FilterGraphs, limits: Sequence[int] | None) -> list[int]:
    """Return how many entries of each trajectory are wanted, all of them by default."""
    if limits is None:
        return list(graphs.n_filters)
    counts = [int(limit) for limit in limits]
    if len(counts) != len(graphs):
        raise ValueError(f"limits must have one entry per layer ({len(graphs)}), got {len(counts)}")
    for i, (count, n) in enumerate(zip(counts, graphs.n_filters, strict=True)):
        if not 0 <= count <= n:
            raise ValueError(f"limits[{i}] must lie in 0 .. {n}, the layer's number of filters, got {count}")
    return counts


def check_redundancy_weights(component_weight: float, cover_weight: float) -> tuple[float, float]:
    """Return the two weights of the redundancy's denominator as floats."""
    weights = float(component_weight), float(cover_weight)
    for name, value in zip(("component_weight", "cover_weight"), weights, strict=True):
        if not math.isfinite(value) or value < 0:
            raise ValueError(f"{name} must be finite and at least 0, got {value}")
    if sum(weights) == 0:
        raise ValueError("component_weight and cover_weight must not both be 0")
    return weights
