"""Small networks for small images: the embedded default for digits, LeNet-5 for MNIST, AlexNet for either and CIFAR."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DigitsCNN(nn.Module):
    """Three stages of two convolutions each, then the mean over pixels and a linear classifier.

    It is wider than 8x8 digits need, so that there is something to prune, and trains in seconds on a CPU.

    Parameters
    ----------
    num_classes : int, default 10
        Width of the classifier.
    in_channels : int, default 1
        Channels of the images.
    width : int, default 24
        Channels of the first stage; the later ones have two and three times as many.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1, width: int = 24) -> None:
        super().__init__()
        self.stage1 = _stage(in_channels, width, 1)
        self.stage2 = _stage(width, 2 * width, 2)
        self.stage3 = _stage(2 * width, 3 * width, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(3 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [b, in_channels, h, w] to class scores [b, num_classes]."""
        x = self.pool(self.stage3(self.stage2(self.stage1(x))))
        return self.classifier(torch.flatten(x, 1))


def _stage(n_in: int, n_out: int, stride: int) -> nn.Sequential:
    """Return two convolutions with normalisation; the first one strides."""
    layers: list[nn.Module] = []
    for channels, step in ((n_in, stride), (n_out, 1)):
        layers += [nn.Conv2d(channels, n_out, 3, step, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU()]
    return nn.Sequential(*layers)


class LeNet5(nn.Module):
    """LeNet-5 with full connections, ReLU and max pooling.

    Parameters
    ----------
    num_classes : int, default 10
        Width of the classifier.
    in_channels : int, default 1
        Channels of the images.
    image_size : int, default 28
        Height and width of the images, at least 12. The first convolution pads 28 to the 32 of the original.

    References
    ----------
    LeCun, Bottou, Bengio, Haffner: Gradient-based learning applied to document recognition. Proc. IEEE, 1998.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1, image_size: int = 28) -> None:
        super().__init__()
        if image_size < 12:
            raise ValueError(f"image_size must be at least 12 for lenet5, but is {image_size}")
        padding = 2 if image_size < 32 else 0
        side = ((image_size + 2 * padding - 4) // 2 - 4) // 2
        self.conv1 = nn.Conv2d(in_channels, 6, 5, padding=padding)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.pool = nn.MaxPool2d(2)
        self.relu = nn.ReLU()
        self.fc1 = nn.Linear(16 * side * side, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [b, in_channels, image_size, image_size] to class scores [b, num_classes]."""
        x = self.pool(self.relu(self.conv1(x)))
        x = self.pool(self.relu(self.conv2(x)))
        x = self.relu(self.fc1(torch.flatten(x, 1)))
        return self.fc3(self.relu(self.fc2(x)))


class AlexNetSmall(nn.Module):
    """AlexNet for small images: its five convolutions and three linear layers, with 3x3 kernels and 2x2 poolings.

    This is the adaptation that most public code for CIFAR and MNIST uses: the widths of Krizhevsky (2014), as in
    torchvision's ``alexnet``, a first convolution with stride 2 instead of 4, poolings that do not overlap.

    Parameters
    ----------
    num_classes : int, default 10
        Width of the classifier.
    in_channels : int, default 3
        Channels of the images.
    image_size : int, default 32
        Height and width of the images, at least 15: the stride and three poolings divide it by 16.

    References
    ----------
    Krizhevsky, Sutskever, Hinton: ImageNet classification with deep convolutional neural networks. NIPS 2012.
    Krizhevsky: One weird trick for parallelizing convolutional neural networks. 2014, arXiv 1404.5997.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> None:
        super().__init__()
        if image_size < 15:
            raise ValueError(f"image_size must be at least 15 for alexnet_small, but is {image_size}")
        side = (image_size + 1) // 2 // 8  # the strided convolution rounds up, poolings round down
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 192, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Dropout(),
            nn.Linear(256 * side * side, 4096),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Linear(4096, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map images [b, in_channels, image_size, image_size] to class scores [b, num_classes]."""
        return self.classifier(torch.flatten(self.features(x), 1))
