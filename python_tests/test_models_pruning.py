"""Every network of the package, and some of torchvision's and timm's, is analysed, pruned exactly, saved and loaded."""

from __future__ import annotations

import json
from pathlib import Path

import oracle
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from zoo import randomise

import srr_ext
from srr_ext import models

CASES = {  # name -> channels and pixels of its images
    "cifar_vgg13_bn": [(3, 32)],
    "cifar_vgg16_bn": [(3, 32), (1, 28)],
    "cifar_vgg19_bn": [(3, 32)],
    "alexnet_small": [(1, 28), (3, 32)],
    "resnet18": [(3, 32), (1, 8)],
    "densenet121": [(3, 32)],
    "mobilenet_v2": [(3, 32)],
    "googlenet": [(3, 64)],  # which slices its input by colours
}
SLOW = ("cifar_vgg19_bn", "densenet121")
TIMM = {"timm/resnet10t": [(1, 32)], "timm/test_byobnet": [(3, 64)]}


def flops(model: nn.Module, example: Tensor) -> int:
    """Count floating point operations with torch's own counter."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(example)
    return counter.get_total_flops()


def halve(name: str, channels: int, size: int, folder: Path) -> None:
    """Plan for half the MACs, cut, compare with the masked network, write and read."""
    model = models.create(name, 10, in_channels=channels, image_size=size)
    with torch.no_grad():
        randomise(model)
    model.eval()
    example = torch.randn(1, channels, size, size)
    # The allocator does not matter for exactness; this one builds no graph of 4096 x 4096 filters.
    plan = srr_ext.make_plan(model, example, keep_macs=0.5, allocator="uniform")
    assert oracle.has_effect(model, plan, example)
    small = srr_ext.apply_plan(model, plan, example)
    assert srr_ext.verify(model, plan, example) < 1e-9
    assert 0.35 < flops(small, example) / flops(model, example) <= 0.5
    srr_ext.save(folder, small, plan)
    record = json.loads((folder / "architecture.json").read_text())
    assert record == {
        "name": name,
        "options": {"num_classes": 10, "in_channels": channels, "image_size": size},
    }
    assert torch.equal(srr_ext.load(folder)(example), small.eval()(example))


@pytest.mark.parametrize(
    ("name", "images"),
    [
        pytest.param(name, images, marks=[pytest.mark.slow] * (name in SLOW), id=f"{name}-{images[0]}x{images[1]}")
        for name, all_ in CASES.items()
        for images in all_
    ],
)
def test_networks_are_pruned_exactly(name: str, images: tuple[int, int], tmp_path: Path) -> None:
    """Half the MACs, channels that matter, and an equal network after saving and loading."""
    halve(name, *images, tmp_path)


@pytest.mark.parametrize(("name", "images"), [(name, images) for name, all_ in TIMM.items() for images in all_])
def test_timm_models_are_pruned_exactly(name: str, images: tuple[int, int], tmp_path: Path) -> None:
    """The same for timm's."""
    pytest.importorskip("timm")
    halve(name, *images, tmp_path)
