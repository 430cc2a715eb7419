"""How near a group's filters are to each other, and so how its redundancy depends on the threshold gamma."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from srr_ext.channels.records import ChannelGroup
from srr_ext.filters import filter_parts
from srr_ext.graph import Distance
from srr_ext.ops import FilterGraphs, components, covering
from srr_ext.redundancy import redundancy
from srr_ext.reference import unit_filters

CURVE_POINTS = 24
_WIDEST_RANGE = 1000.0  # between the ends of a curve: filters nearer to each other than that are as good as equal


@dataclass(frozen=True, eq=False)
class Distances:
    r"""All distances between the filters of one group, in units of gamma.

    Attributes
    ----------
    squared : ndarray of float64, shape [n_filters, n_filters]
        Square of the smallest gamma that joins two filters; infinite on the diagonal and for zero filters.
    turning_gamma : float or None
        Smallest gamma with an edge, which is the smallest with R > 1; None if there is no pair to join.
    complete_gamma : float or None
        Smallest gamma at which all pairs are joined.

    Notes
    -----
    Of two rows with p parts and n weights, :math:`\lVert u_i - u_j \rVert \sqrt{p / n}` (rms) or
    :math:`\lVert u_i - u_j \rVert` (euclidean) with :math:`u = W / \lVert W \rVert`; see `srr_ext.graph.group_graphs`.
    """

    squared: np.ndarray
    turning_gamma: float | None
    complete_gamma: float | None

    @classmethod
    def of(cls, group: ChannelGroup, matrix: Tensor, distance: Distance = "rms") -> Distances:
        """Measure a group.

        Parameters
        ----------
        group : ChannelGroup
            The group.
        matrix : Tensor, shape [group.size, fan_in]
            Its filters, see `srr_ext.graph.group_matrices`.
        distance : {"rms", "euclidean"}, default "rms"
            What gamma bounds.
        """
        units, lengths = unit_filters(matrix.double().numpy())
        scale = filter_parts(group) / max(matrix.shape[1], 1) if distance == "rms" else 1.0
        alive = lengths > 0
        squared = np.clip(2 - 2 * (units @ units.T), 0, None) * scale
        squared[~alive] = np.inf
        squared[:, ~alive] = np.inf
        np.fill_diagonal(squared, np.inf)
        if alive.sum() < 2:
            return cls(squared, None, None)

        def exactly(place: int) -> float:
            i, j = divmod(place, len(units))
            return float(f"{math.sqrt(float(((units[i] - units[j]) ** 2).sum()) * scale):.12g}")

        nearest, farthest = squared.argmin(), np.where(np.isfinite(squared), squared, -1).argmax()
        return cls(squared, exactly(int(nearest)), exactly(int(farthest)))

    def redundancy_at(self, gammas: Sequence[float]) -> list[float]:
        """Redundancy R at each threshold."""
        values = []
        for gamma in gammas:
            graphs = FilterGraphs.from_dense([torch.from_numpy(self.squared <= gamma * gamma)])
            k, upper, lower = (
                int(x) for x in (components(graphs), covering(graphs, radius=1), covering(graphs, radius=2))
            )
            values.append(round(redundancy(len(self.squared), k, upper, lower), 9))
        return values


def curve_gammas(turning: Sequence[float], complete: Sequence[float]) -> list[float]:
    """Thresholds for curves of redundancy: from just below the first edge of any group to where all are complete.

    Parameters
    ----------
    turning, complete : sequence of float
        Of every group that has any: the thresholds of its first edge and of its last.

    Returns
    -------
    list of float
        `CURVE_POINTS` thresholds, evenly spaced on a logarithmic scale and rounded to six digits; empty without groups.
    """
    last = max(complete, default=0.0)
    if last <= 0:
        return []
    positive = [gamma for gamma in turning if gamma > last / _WIDEST_RANGE]
    first = min(min(positive, default=last) * 0.95, last / 2)
    return [float(f"{gamma:.6g}") for gamma in np.geomspace(first, last * 1.001, CURVE_POINTS)]
