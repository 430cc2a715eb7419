"""Convolution shapes of well-known networks, with random weights: what the benchmarks compute on."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

GAMMA_SHARE = 0.999  # of the median distance, so that about half of all pairs are joined: no shortcut applies


def cifar_resnet(blocks: int) -> list[tuple[int, ...]]:
    """CIFAR ResNet with option-A shortcuts: blocks = 3 is ResNet-20, 9 is ResNet-56."""
    shapes, width = [(16, 3, 3, 3)], 16
    for stage in (16, 32, 64):
        for _ in range(blocks):
            shapes += [(stage, width, 3, 3), (stage, stage, 3, 3)]
            width = stage
    return shapes


def vgg16() -> list[tuple[int, ...]]:
    """VGG-16's thirteen convolutions."""
    widths = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    return [(n, m, 3, 3) for m, n in itertools.pairwise(widths)]


def resnet50() -> list[tuple[int, ...]]:
    """ResNet-50's fifty-three convolutions."""
    shapes, width = [(64, 3, 7, 7)], 64
    for narrow, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += [(narrow, width, 1, 1), (narrow, narrow, 3, 3), (4 * narrow, narrow, 1, 1)]
            if block == 0:
                shapes.append((4 * narrow, width, 1, 1))
            width = 4 * narrow
    return shapes


NETWORKS = {"resnet20": cifar_resnet(3), "resnet56": cifar_resnet(9), "vgg16": vgg16(), "resnet50": resnet50()}

# ResNet-50's layers of 512 to 2048 filters take plain Python minutes; these take it seconds.
PARTS = {"resnet50_up_to_256": [shape for shape in NETWORKS["resnet50"] if shape[0] <= 256]}

SHAPES = NETWORKS | PARTS
IN_PYTHON = [name for name in SHAPES if name != "resnet50"]


def weights(network: str) -> list[Tensor]:
    """Random weights of every convolution, float32."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in SHAPES[network]]


def triangle_flop(network: str) -> int:
    """Operations of one triangle of every layer's cosine matrix: n^2 fan_in, a product and a sum for half the pairs."""
    return sum(shape[0] ** 2 * math.prod(shape[1:]) for shape in SHAPES[network])


def typical_gamma(network: str) -> float:
    """Threshold that joins about half of the pairs in the layer of median fan-in: random cosines are near 0."""
    fan_ins = sorted(math.prod(shape[1:]) for shape in SHAPES[network])
    return GAMMA_SHARE * math.sqrt(2 / fan_ins[len(fan_ins) // 2])
