"""VGG for 32x32 images: the convolutions of Simonyan and Zisserman with batch normalisation, and one linear layer.

The pruning papers on CIFAR use two variants of the head: Li et al. (2017) have 512-512-classes, most public training
code and later papers (Liu et al. 2019) have one linear layer 512-classes. The second is built here, because public
results are mostly of that kind. The hidden layer of the first has 1.8 % of the parameters and 0.1 % of the MACs of
VGG-16. Convolutions have no bias, which the normalisation after them would take away again.

References
----------
Simonyan, Zisserman: Very deep convolutional networks for large-scale image recognition. ICLR 2015, arXiv 1409.1556.
Li, Kadav, Durdanovic, Samet, Graf: Pruning filters for efficient ConvNets. ICLR 2017, arXiv 1608.08710.
Liu, Sun, Zhou, Huang, Darrell: Rethinking the value of network pruning. ICLR 2019, arXiv 1810.05270.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTHS = (64, 128, 256, 512, 512)  # of the five stages, each of which ends in a pooling
STAGES = {13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}  # convolutions of each stage, by depth


class CifarVGG(nn.Module):
    """VGG-13, -16 or -19 with batch normalisation and one linear layer.

    Parameters
    ----------
    depth : {13, 16, 19}
        Layers with weights in the original, three of which were its head.
    num_classes : int, default 10
        Width of the classifier.
    in_channels : int, default 3
        Channels of the images.

    Notes
    -----
    Five poolings bring 32x32 pixels to one. They round up, so that 28x28 pixels do not vanish (28, 14, 7, 4, 2, 1),
    which changes nothing at multiples of 32; larger images end in a mean over what is left.
    """

    def __init__(self, depth: int, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        if depth not in STAGES:
            raise ValueError(f"depth must be 13, 16 or 19, but is {depth}")
        layers: list[nn.Module] = []
        width = in_channels
        for n_out, convolutions in zip(WIDTHS, STAGES[depth], strict=True):
            for _ in range(convolutions):
                layers += [nn.Conv2d(width, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU()]
                width = n_out
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights as torchvision's VGG does, for the widths that there are."""
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map images [b, in_channels, h, w] to class scores [b, num_classes]."""
        return self.classifier(torch.flatten(self.pool(self.features(x)), 1))
