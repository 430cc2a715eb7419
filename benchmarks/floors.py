"""What the machine could do at best: work that cannot be avoided, over a rate measured in the same run, on its device.

Graphs: the products of one triangle of every layer's cosines, over the rate of torch's single-precision matrix product.
Stages on bit graphs: the bytes of the rows, which must be read once, over the rate of a copy in memory. Rows that lie
in a cache are read faster than that.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from srr_ext.ops import FilterGraphs

SAMPLES = 5


def synchronize(device: torch.device) -> None:
    """Wait until the device has done everything it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """Time one call, until the device has done it."""
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - start


def _samples(function: Callable[[], object], device: torch.device) -> list[float]:
    function()
    return [seconds(function, device) for _ in range(SAMPLES)]


def sgemm_rates(device: torch.device) -> list[float]:
    """FLOP/s of torch's single-precision matrix product, a few times."""
    n, k = (8192, 8192) if device.type == "cuda" else (1024, 2048)
    a, b = torch.randn(n, k, device=device), torch.randn(k, n, device=device)
    return [2 * n * n * k / t for t in _samples(lambda: torch.mm(a, b), device)]


def copy_rates(device: torch.device) -> list[float]:
    """Bytes per second of a copy in memory, read and written ones, a few times."""
    n_bytes = 2**30 if device.type == "cuda" else 2**27
    source = torch.ones(n_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return [2 * n_bytes / t for t in _samples(lambda: target.copy_(source), device)]


@dataclass(frozen=True)
class Floor:
    """Work, and the rate it is done at.

    Attributes
    ----------
    work : float
        FLOP or bytes.
    unit : {"FLOP/s", "B/s"}
        Of the rate.
    """

    work: float
    unit: str

    def sample(self, device: torch.device) -> list[float]:
        """Measure the rate a few times."""
        return sgemm_rates(device) if self.unit == "FLOP/s" else copy_rates(device)

    def record(self, rates: list[float]) -> dict[str, float | str]:
        """Return what is written beside a timing: the work, the median of the measured rates, and the quotient."""
        rate = statistics.median(rates)
        return {"floor_s": self.work / rate, "work": self.work, "rate": rate, "unit": self.unit}


def triangle_flop(shapes: Sequence[tuple[int, int]]) -> int:
    """Operations of one triangle of every layer's cosines: n^2 fan_in, a product and a sum for half the pairs."""
    return sum(n * n * fan_in for n, fan_in in shapes)


def of_graphs(weights: Sequence[Tensor]) -> Floor:
    """Floor of the graphs of these layers."""
    return Floor(triangle_flop([(len(w), w[0].numel()) for w in weights]), "FLOP/s")


def of_rows(graphs: FilterGraphs) -> Floor:
    """Floor of what reads all rows of bit graphs once."""
    return Floor(8 * graphs.words.numel(), "B/s")
