"""The residual networks for 32x32 images of He et al. (2015), section 4.2: depth 6n + 2, 16-32-64 channels.

Module and tensor names are those of the widespread public checkpoints (``conv1``, ``bn1``, ``layer1.0.conv1``, ...,
``linear``), so that these load by name.

References
----------
He, Zhang, Ren, Sun: Deep residual learning for image recognition. CVPR 2016, arXiv 1512.03385.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DEPTHS = (20, 32, 44, 56, 110)


class PadShortcut(nn.Module):
    """Option A: every second pixel, and zero channels on both sides; no parameters.

    Parameters
    ----------
    before, after : int
        Zero channels put in front of and behind the input's.
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        """Map [b, c, h, w] to [b, before + c + after, ceil(h / 2), ceil(w / 2)]."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))

    def extra_repr(self) -> str:
        """Show the two widths in ``print(model)``."""
        return f"before={self.before}, after={self.after}"


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, n_in: int, n_out: int, stride: int, option: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.shortcut: nn.Module = nn.Sequential()
        if stride != 1 or n_in != n_out:
            if option == "A":
                extra = n_out - n_in
                self.shortcut = PadShortcut(extra // 2, extra - extra // 2)
            else:
                conv = nn.Conv2d(n_in, n_out, 1, stride, bias=False)
                self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        """Map [b, n_in, h, w] to [b, n_out, h / stride, w / stride]."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class CifarResNet(nn.Module):
    """CIFAR residual network.

    Parameters
    ----------
    depth : int
        6n + 2 for some n >= 1.
    num_classes : int, default 10
        Width of the classifier.
    in_channels : int, default 3
        Channels of the images.
    option : {"A", "B"}, default "A"
        How a shortcut widens: zero channels (A) or a 1x1 convolution with normalisation (B).
    """

    def __init__(self, depth: int, num_classes: int = 10, in_channels: int = 3, option: str = "A") -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth must be 6n + 2, such as 20 or 56, but is {depth}")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, 1, option)
        self.layer2 = _stage(16, 32, blocks, 2, option)
        self.layer3 = _stage(32, 64, blocks, 2, option)
        self.linear = nn.Linear(64, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights as He and others 2015 did, for the widths that there are."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [b, in_channels, h, w] to class scores [b, num_classes]."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)
        return self.linear(x)


def _stage(n_in: int, n_out: int, blocks: int, stride: int, option: str) -> nn.Sequential:
    """Return ``blocks`` blocks, the first of which widens and strides."""
    first = BasicBlock(n_in, n_out, stride, option)
    return nn.Sequential(first, *(BasicBlock(n_out, n_out, 1, option) for _ in range(blocks - 1)))
