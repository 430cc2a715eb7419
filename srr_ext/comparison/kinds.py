"""The kinds of methods that can be compared: how the settings of each are checked, and its cells run and loaded."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from srr_ext import artifacts, prune, sparsify
from srr_ext.bottleneck import load_bottlenecks
from srr_ext.cli import steps
from srr_ext.cli.running import Run
from srr_ext.comparison import bottleneck_cells
from srr_ext.comparison.sparse_cells import SPARSIFY
from srr_ext.config import PruneConfig, SparsifyConfig
from srr_ext.data import ImageData


@dataclass(frozen=True)
class Kind:
    """What a comparison does with the methods of one kind.

    Attributes
    ----------
    check : callable
        ``(config)``: refuse settings that cannot be, with a UsageError.
    reach : callable
        ``(config)``: what the smallest network that it can make depends on, beside the dense one.
    rehearse : callable
        ``(config, network, images)``: refuse targets out of reach of an untrained network.
    run : callable
        ``(config, run) -> report``: fill a run folder.
    load : callable
        ``(folder, dense network) -> network``: read the result from there.
    """

    check: Callable[[Any], None]  # of a PruneConfig, or of a SparsifyConfig for that kind
    reach: Callable[[Any], Hashable]
    rehearse: Callable[[Any, nn.Module, ImageData], None]
    run: Callable[[Any, Run], dict[str, Any]]
    load: Callable[[Path, nn.Module], nn.Module]


def _reach_of_plan(config: PruneConfig) -> Hashable:
    return config.streams, config.ignored, config.floor, config.round_to, config.retrain


def _reach_of_bottleneck(config: PruneConfig) -> Hashable:
    return config.allocator, config.ignored


def _reach_of_sparsify(config: SparsifyConfig) -> Hashable:
    return config.classifier, config.ignored, config.retrain == "reinit"


KINDS = {
    "prune": Kind(steps.check, _reach_of_plan, steps.rehearse, prune.prune, artifacts.load),
    "bottleneck": Kind(
        bottleneck_cells.check,
        _reach_of_bottleneck,
        bottleneck_cells.rehearse,
        bottleneck_cells.prune,
        load_bottlenecks,
    ),
    SPARSIFY: Kind(sparsify.check, _reach_of_sparsify, sparsify.rehearse, sparsify.sparsify, artifacts.load),
}
