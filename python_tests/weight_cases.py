"""Weights that are hard for filter_graphs, each list with the thresholds that make it so."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from graph_cases import SIZES, gamma_of_cosine, median_gamma
from torch import Tensor

Case = tuple[list[Tensor], list[float]]


def _normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def ragged() -> Case:
    """Both sides of words, tiles and loads of 16 bytes, in one call."""
    fan_ins = (1, 2, 3, 5, 8, 17, 27, 33, 64, 129, 300, 577)
    weights = [_normal(n, fan_in, seed=n) for n, fan_in in zip(SIZES, fan_ins, strict=True)]
    return weights, [0.0, median_gamma(weights[-1]), median_gamma(weights[6]), 100.0]


def near_the_threshold() -> Case:
    """Pairs (0, j) whose cosine is one half but for what single precision cannot tell; the threshold runs through."""
    weights = []
    for fan_in in (9, 576, 2304):
        base = _normal(fan_in, seed=fan_in, dtype=torch.float64)
        base /= base.norm()
        side = _normal(90, fan_in, seed=fan_in + 1, dtype=torch.float64)
        side -= (side @ base)[:, None] * base
        side /= side.norm(dim=1, keepdim=True)
        cosine = 0.5 + 1e-9 * _normal(90, 1, seed=fan_in + 2, dtype=torch.float64)
        weights.append(torch.cat([base[None], cosine * base + (1 - cosine**2).sqrt() * side]))
    return weights, [gamma_of_cosine(0.5, weight.shape[1]) for weight in weights]


def on_the_threshold() -> Case:
    """Distances that gamma meets exactly, or misses by one unit in the last place."""
    angles = torch.linspace(0, 1.5, 40, dtype=torch.float64)
    weight = torch.stack([angles.cos(), angles.sin()], 1)
    v = weight / weight.norm(dim=1, keepdim=True)
    gammas = [float((v[0] - v[j]).norm()) / math.sqrt(2) for j in (1, 13, 39)]
    return [weight, weight.float()], [float(np.nextafter(g, side)) for g in gammas for side in (0, g, 1)]


def duplicates() -> Case:
    """The same filter again, and again at another scale, a power of two or not, or turned round."""
    weight = _normal(130, 100, seed=3)
    weight[129], weight[64], weight[40], weight[41] = weight[1], weight[2], 4 * weight[2], -weight[3]
    weight[7], weight[127] = 0.3 * weight[6], weight[128] * 1e-3
    return [weight, weight.half(), weight.bfloat16(), weight[:1].expand(70, -1).contiguous()], [0.0, 1e-9, 1e-6, 0.1]


def zeros() -> Case:
    """Filters without a direction, among others and alone."""
    weight = _normal(70, 8, seed=4)
    weight[[0, 5, 63, 64, 69]] = 0
    weight[6] *= -0.0
    return [weight, torch.zeros(65, 9), torch.zeros(3, 0), torch.zeros(1, 4)], [0.0, 0.3, 1e6]


def magnitudes() -> Case:
    """Rows from 1e-30 to 1e30 in one layer, whole layers of them, and what is smaller than the normal numbers."""
    rows = _normal(64, 48, seed=5)
    mixed = rows * 10.0 ** torch.linspace(-30, 30, 64)[:, None]
    denormal = (rows.double() * 1e-40).float()
    double = rows.double() * 2.0 ** torch.linspace(-1000, 900, 64, dtype=torch.float64)[:, None]
    half = rows.half() * 2.0**-14
    weights = [rows * 1e-30, rows * 1e30, mixed, denormal, double, half]
    return weights, [0.0, median_gamma(rows), 0.5 * median_gamma(rows)]


def dtypes() -> Case:
    """Every type beside every other."""
    types = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    weights = [_normal(33 + 31 * i, 5, 3, 3, seed=i).to(dtype) for i, dtype in enumerate(types)]
    return weights, [median_gamma(weights[2]), 1.02 * median_gamma(weights[3])]


def empty_and_single() -> Case:
    """Layers without filters, or with one, first, last and between others; filters without weights."""
    shapes = [(0, 3), (1, 9), (2, 3), (0, 3, 3), (1, 1), (3, 0), (1, 4096), (0, 0)]
    return [_normal(*shape, seed=i) for i, shape in enumerate(shapes)], [0.0, 10.0]


def many_layers() -> Case:
    """Two hundred layers in one call: more than fit into one set of kernel arguments."""
    weights = [_normal(1 + (i * 37) % 90, 1 + (i * 53) % 70, seed=i) for i in range(200)]
    return weights, [0.2]


CASES: dict[str, Callable[[], Case]] = {
    case.__name__: case
    for case in (
        ragged,
        near_the_threshold,
        on_the_threshold,
        duplicates,
        zeros,
        magnitudes,
        dtypes,
        empty_and_single,
        many_layers,
    )
}


def _shifted(weight: Tensor) -> Tensor:
    """Put the same values one element further, so that no load of 16 bytes is aligned."""
    storage = torch.empty(weight.numel() + 1, dtype=weight.dtype, device=weight.device)
    view = storage[1:].view(weight.shape)
    return view.copy_(weight)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda w: w.transpose(0, 1).contiguous().transpose(0, 1),
    "channels_last": lambda w: w.contiguous(memory_format=torch.channels_last),
    "strided": lambda w: torch.stack([w, w], dim=-1)[..., 0],
    "view": lambda w: torch.cat([w, w])[len(w) :],
    "every_second": lambda w: torch.repeat_interleave(w, 2, 0)[::2],
    "shifted": _shifted,
    "parameter": lambda w: torch.nn.Parameter(w.clone()),
}
