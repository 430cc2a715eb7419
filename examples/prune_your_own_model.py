"""Prune a network and images of your own, from the first line to the saved result: ``python prune_your_own_model.py``.

The network is any ``nn.Module``, the images any torch ``Dataset``; here they are made on the spot, so that the script
runs in seconds on a CPU. Replace ``Net`` and ``Stripes`` by your own.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import srr_ext
from srr_ext.data import from_datasets
from srr_ext.training import TrainConfig, evaluate, recalibrate_batch_norm, train

CLASSES = ("horizontal", "vertical", "diagonal")


class Stripes(Dataset[tuple[Tensor, int]]):
    """Noisy gray images, uint8 [1, 16, 16], of stripes in one of three directions."""

    def __init__(self, n: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(len(CLASSES), (n,), generator=generator)
        y, x = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
        across = torch.stack((y, x, (x + y) / 2))[self.labels]  # [n, 16, 16]
        waves = 60 * torch.sin(across + 6 * torch.rand(n, 1, 1, generator=generator))
        noise = 60 * torch.randn(n, 16, 16, generator=generator)
        self.images = (128 + waves + noise).clamp(0, 255).byte()[:, None]

    def __len__(self) -> int:
        """Count the images."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return an image and its label."""
        return self.images[index], int(self.labels[index])


class Net(nn.Module):
    """A small residual network."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.inner = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.outer = nn.Sequential(nn.Conv2d(32, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))
        self.head = nn.Linear(16, len(CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        """Map images [b, 1, h, w] to class scores [b, 3]."""
        x = self.stem(images)
        x = torch.relu(x + self.outer(self.inner(x)))
        return self.head(x.mean((2, 3)))


def main(folder: str = "runs/own") -> None:
    """Train, prune, fine-tune, save and load."""
    torch.manual_seed(0)
    data = from_datasets("stripes", Stripes(600, seed=1), Stripes(300, seed=2), CLASSES, workers=0)
    print(data.describe())
    model, example = Net(), data.example()
    train(model, data, TrainConfig(epochs=4))

    analysis = srr_ext.analyze_channels(model, example)
    for pin in analysis.pins:
        print(f"stays: {pin.channels} channels of {pin.module} ({pin.reason})")
    plan = srr_ext.make_plan(model, example, keep_macs=0.5, analysis=analysis)
    small = srr_ext.apply_plan(model, plan, example)
    cut = copy.deepcopy(small)
    recalibrate_batch_norm(small, data.batches("train", 64))
    train(small, data, TrainConfig(epochs=4, lr=0.02))

    srr_ext.save(folder, small, plan)
    again = srr_ext.load(folder, model=Net())  # the dense network, with whatever weights, says how to rebuild
    for name, network in (("dense", model), ("cut", cut), ("fine-tuned", small), ("loaded", again)):
        n = sum(parameter.numel() for parameter in network.parameters())
        print(f"{name:<11}{n:>7,} parameters, {evaluate(network, data):6.2f} % of the test images")
    macs = plan.cost["macs"]
    print(f"{macs['dense']:,} multiply-accumulates became {macs['pruned']:,}; saved in {Path(folder)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
