"""The networks that the benchmarks compute on, with random weights, and thresholds at which no shortcut applies."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from race import Part
from torch import Tensor, nn

from srr_ext import models, ops
from srr_ext.ops import FilterGraphs

# Random unit filters of n weights have cosines of mean 0 and deviation 1 / sqrt(n): thresholds in such deviations.
DENSITIES = {"half": 0.1, "sparse": 2.0}  # of all pairs, 46 % and 2.3 % are joined


def _torchvision(name: str) -> nn.Module:
    import torchvision

    return torchvision.models.get_model(name, weights=None)


def _wide() -> nn.Module:
    """One 1x1 convolution of 8,192 filters, and what reads it."""
    return nn.Sequential(
        nn.Conv2d(2048, 8192, 1, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8192, 10)
    )


def _mlp() -> nn.Module:
    """One linear layer of 16,384 x 4,096, and what reads it."""
    return nn.Sequential(nn.Linear(4096, 16384), nn.ReLU(), nn.Linear(16384, 10))


_MAKERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet56": (lambda: models.create("resnet56", num_classes=10), (1, 3, 32, 32)),
    "vgg16": (lambda: _torchvision("vgg16"), (1, 3, 224, 224)),
    "resnet50": (lambda: _torchvision("resnet50"), (1, 3, 224, 224)),
    "wide": (_wide, (1, 2048, 7, 7)),
    "mlp": (_mlp, (1, 4096)),
}
NETWORKS = tuple(_MAKERS)
QUICK = ("resnet56", "resnet50")


@functools.cache
def model(network: str) -> nn.Module:
    """Make a network, the same every time, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _MAKERS[network][0]().eval()


def example(network: str) -> Tensor:
    """Input for one forward pass."""
    return torch.randn(_MAKERS[network][1], generator=torch.Generator().manual_seed(0))


def weights(network: str, device: torch.device | str = "cpu") -> list[Tensor]:
    """Weights of every convolution; of a network without one, those of its first layer."""
    modules = list(model(network).modules())
    layers = [m for m in modules if isinstance(m, nn.Conv2d)] or [m for m in modules if isinstance(m, nn.Linear)][:1]
    return [layer.weight.detach().to(device) for layer in layers]


def gamma_at(fan_in: int, density: str = "half") -> float:
    """Threshold that joins a given share of all pairs of random filters: cos >= z / sqrt(n), d^2 = (2 - 2 cos) / n."""
    return math.sqrt((2 - 2 * DENSITIES[density] / math.sqrt(fan_in)) / fan_in)


def gammas(filters: Sequence[Tensor], density: str = "half") -> list[float]:
    """Thresholds, one for each layer, so that no layer is edgeless or complete."""
    return [gamma_at(weight[0].numel(), density) for weight in filters]


@functools.cache
def graphs(network: str, density: str = "half", device: str = "cpu", most: int | None = None) -> FilterGraphs:
    """Filter graphs of every layer, or of its first filters alone."""
    filters = first(weights(network), most)
    made = ops.filter_graphs(filters, gammas(filters, density))
    return FilterGraphs(made.words.to(device), made.n_filters)


def first(filters: Sequence[Tensor], most: int | None, weights_each: int | None = None) -> list[Tensor]:
    """Keep the first filters of every layer, and the first weights of each: what the slow paths are given."""
    return [weight.flatten(1)[:most, :weights_each].contiguous() for weight in filters]


def dense(made: FilterGraphs) -> list[Tensor]:
    """Adjacency matrices, bool [n, n] each, on the device of the graphs."""
    return [made.to_dense(i) for i in range(len(made))]


def arrays(made: FilterGraphs) -> list[np.ndarray]:
    """Adjacency matrices as NumPy arrays."""
    return [matrix.cpu().numpy() for matrix in dense(made)]


def sizes(filters: Sequence[Tensor]) -> dict[str, int]:
    """What was computed, for the record."""
    fan_ins = [weight[0].numel() for weight in filters]
    n_filters = [len(weight) for weight in filters]
    return {
        "layers": len(filters),
        "filters": sum(n_filters),
        "widest": max(n_filters),
        "least_fan_in": min(fan_ins),
        "most_fan_in": max(fan_ins),
    }


def orders(n_filters: Sequence[int]) -> list[Tensor]:
    """Order in which the filters of every layer go."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randperm(n, generator=generator) for n in n_filters]


def extrapolation(network: str, most: int, power: int) -> Part | None:
    """Work of the whole network over that of the first filters of each layer; None if those are all.

    Parameters
    ----------
    network : str
        The network.
    most : int
        Filters of each layer that the part has.
    power : int
        The work on n filters is n to this power.
    """
    sizes = [len(weight) for weight in weights(network)]
    if max(sizes) <= most:
        return None
    factor = sum(n**power for n in sizes) / sum(min(n, most) ** power for n in sizes)
    return Part(factor, f"from the first {most} filters of each layer, by n^{power}")
