"""What is known of a comparison: a row per cell, means over seeds, tests, failures and measured times."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from srr_ext.comparison.grid import DENSE_LONGER, Role
from srr_ext.comparison.sparse_cells import SPARSIFY
from srr_ext.comparison.statistics import Spread, Verdict


@dataclass(frozen=True)
class Row:
    """What one cell found.

    Attributes
    ----------
    method : str
        Label of the method.
    role : {"method", "control"}
        What it is there for.
    allocator, selector, update : str
        What it is made of.
    quantity : {"macs", "params", "channels"}
        What ``keep`` is a share of.
    keep : float
        The share that was to be kept.
    seed : int
        Its seed.
    macs_dense, macs, params_dense, params : int
        Multiply-accumulates per image and parameters, of the dense network and of the result.
    compression_ratio, speed_up : float
        Parameters and multiply-accumulates, dense over result.
    top1_dense, top1_after_surgery, top1_final : float
        Accuracy on the test images in percent.
    top1_difference : float
        Final minus dense, in points.
    top5_dense, top5_after_surgery, top5_final, top5_difference : float or None
        The same among the first five; None where there are too few classes.
    validation_top1_final : float or None
        Accuracy on the validation images; None where there are none.
    extra_epochs : float
        Epochs of training beyond those that all methods get; an integer where it is one.
    cell : str
        Name of the cell's folder.
    """

    method: str
    role: Role
    allocator: str
    selector: str
    update: str
    quantity: str
    keep: float
    seed: int
    macs_dense: int
    macs: int
    params_dense: int
    params: int
    compression_ratio: float
    speed_up: float
    top1_dense: float
    top1_after_surgery: float
    top1_final: float
    top1_difference: float
    top5_dense: float | None
    top5_after_surgery: float | None
    top5_final: float | None
    top5_difference: float | None
    validation_top1_final: float | None
    extra_epochs: float
    cell: str

    def figures(self) -> dict[str, Any]:
        """Return what the CSV and JSON files hold: everything but the name of the folder."""
        return {name: value for name, value in asdict(self).items() if name != "cell"}


@dataclass(frozen=True)
class Summary:
    """What one method reached at one cost, over its seeds.

    Attributes
    ----------
    method, role, quantity, keep
        As in `Row`.
    seeds : tuple of int
        The seeds it was run with.
    macs, params, compression_ratio, speed_up : Spread
        Cost.
    top1_dense, top1_after_surgery, top1_final, top1_difference : Spread
        Accuracy.
    top5_final, top5_difference, validation_top1_final : Spread or None
        More of it, where every seed has it.
    extra_epochs : float
        The most of any seed.
    """

    method: str
    role: Role
    quantity: str
    keep: float
    seeds: tuple[int, ...]
    macs: Spread
    params: Spread
    compression_ratio: Spread
    speed_up: Spread
    top1_dense: Spread
    top1_after_surgery: Spread
    top1_final: Spread
    top1_difference: Spread
    top5_final: Spread | None
    top5_difference: Spread | None
    validation_top1_final: Spread | None
    extra_epochs: float


@dataclass(frozen=True)
class Failure:
    """A cell that did not come to an end.

    Attributes
    ----------
    method, keep, seed
        As in `Row`.
    message : str
        The error.
    """

    method: str
    keep: float
    seed: int
    message: str


@dataclass(frozen=True)
class Comparison:
    """Everything that the folder of a comparison holds.

    Attributes
    ----------
    rows : list of Row
        Of all finished cells: methods in the order of the configuration, then controls, the largest share first.
    summaries : list of Summary
        The same over seeds, in the same order.
    verdicts : list of Verdict
        Of the first method against every other, at every share.
    failures : list of Failure
        Cells that did not come to an end.
    latency : dict
        Measured milliseconds per batch of a cell's dense network and of its result, by the cell's name.
    config : dict
        The configuration.
    methods : dict
        ``text`` and ``settings`` of every method, by its label.
    facts : dict
        What all cells share: ``model``, ``data``, ``n_test_images``, and the largest ``surgery_error``.
    """

    rows: list[Row]
    summaries: list[Summary]
    verdicts: list[Verdict]
    failures: list[Failure]
    latency: dict[str, dict[str, Any]]
    config: dict[str, Any]
    methods: dict[str, dict[str, Any]]
    facts: dict[str, Any]

    @property
    def labels(self) -> list[str]:
        """Return the labels of methods and controls in order."""
        return list(dict.fromkeys(entry.method for entry in self.summaries))

    @property
    def keeps(self) -> list[float]:
        """Return the shares at which methods are compared, largest first."""
        return sorted({entry.keep for entry in self.summaries if entry.method != DENSE_LONGER}, reverse=True)

    @property
    def what_goes(self) -> str:
        """Name what methods remove: channels, weights, or both."""
        by_kind = {row.allocator == SPARSIFY for row in self.rows if row.method != DENSE_LONGER}
        return " or ".join(name for name, is_there in (("channels", False), ("weights", True)) if is_there in by_kind)

    def at(self, keep: float) -> list[Summary]:
        """Return what was reached at one share, in order."""
        return [entry for entry in self.summaries if entry.keep == keep and entry.method != DENSE_LONGER]

    def ranked(self, keep: float) -> list[Summary]:
        """Return what was reached at one share, the dense network that was trained for longer included, best first."""
        longer = self.longer()
        return sorted([*self.at(keep), *([longer] if longer else [])], key=lambda entry: -entry.top1_final.mean)

    def dense(self) -> Spread:
        """Return the accuracy of the dense network: one value where all seeds share it, else that of every seed."""
        by_seed: dict[int, list[float]] = {}
        for row in self.rows:
            by_seed.setdefault(row.seed, []).append(row.top1_dense)
        values = sorted({value for found in by_seed.values() for value in found})
        return Spread.of(values if len(values) == 1 else [Spread.of(found).mean for found in by_seed.values()])

    def longer(self) -> Summary | None:
        """Return what the dense network reached that was trained for longer; None without that control."""
        return next((entry for entry in self.summaries if entry.method == DENSE_LONGER), None)

    def measured(self, entry: Summary) -> float | None:
        """Return how many times as fast as the dense network a method was by the clock; None if it was not measured."""
        ratios = [
            self.latency[row.cell]["dense_ms"] / self.latency[row.cell]["pruned_ms"]
            for row in self.rows
            if (row.method, row.keep) == (entry.method, entry.keep) and row.cell in self.latency
        ]
        return Spread.of(ratios).mean if ratios else None
