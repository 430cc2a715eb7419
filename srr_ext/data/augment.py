"""Random changes of training images: all images of a batch at once, each with its own draw."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MIN_SCALE = 0.08  # the share that torchvision, and most work on ImageNet with it, uses
_ALL = slice(None)


@dataclass(frozen=True)
class Augment:
    """How training images are changed at random. The fields are also flags of the commands.

    Attributes
    ----------
    crop : int, optional
        Zero pixels around an image before a random crop back to its size; default what suits the data set.
    flip : bool, optional
        Mirror every other image, left to right; default yes for photographs, no for digits.
    cutout : int
        Side of a square at a random place that is set to the mean colour; 0 for none.
    min_scale : float
        For images read while training: smallest share of an image's area that a random crop keeps.

    Raises
    ------
    ValueError
        A value out of its range.

    References
    ----------
    Cutout: DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", 2017,
    https://arxiv.org/abs/1708.04552. Random resized crops: Szegedy et al., "Going Deeper with Convolutions", CVPR 2015.
    """

    crop: int | None = None
    flip: bool | None = None
    cutout: int = 0
    min_scale: float = MIN_SCALE

    def __post_init__(self) -> None:
        """Check the ranges."""
        rules = {
            "crop": (self.crop is None or self.crop >= 0, "at least 0"),
            "cutout": (self.cutout >= 0, "at least 0"),
            "min_scale": (0 < self.min_scale <= 1, "in (0, 1]"),
        }
        for name, (holds, wanted) in rules.items():
            if not holds:
                raise ValueError(f"{name} must be {wanted}, but is {getattr(self, name)}")


class ToInput:
    """Turns the pixels of a batch into augmented, normalised network inputs, on their device.

    Parameters
    ----------
    mean, std : tuple of float, optional
        Per channel, of pixels scaled to [0, 1]; None for images that are normalised floats already.
    crop, flip, cutout
        See :class:`Augment`.
    device : torch.device
        Where the images are.
    """

    def __init__(
        self,
        mean: tuple[float, ...] | None,
        std: tuple[float, ...] | None,
        crop: int,
        flip: bool,
        cutout: int,
        device: torch.device,
    ) -> None:
        self.crop, self.flip, self.cutout = crop, flip, cutout
        self.scale: Tensor | None = None
        if mean is not None and std is not None:
            # (pixel / 255 - mean) / std as one multiplication and one addition
            centre, spread = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (mean, std))
            self.scale, self.shift = 1 / (255 * spread), -centre / spread

    def __call__(
        self, images: Tensor, generator: torch.Generator, whole: int | None = None, share: slice = _ALL
    ) -> Tensor:
        """Return float32 [b, c, h, w]; ``generator`` is on the CPU, so that a seed means the same everywhere.

        Where the images are a share of a larger batch, numbers are drawn for the whole of it.
        """
        images = crop_and_flip(images, self.crop, self.flip, generator, whole, share)
        if self.scale is not None:
            images = torch.addcmul(self.shift, images.float(), self.scale)
        return cut_out(images, self.cutout, generator, whole, share)


def crop_and_flip(
    images: Tensor,
    crop: int,
    flip: bool,
    generator: torch.Generator,
    whole: int | None = None,
    share: slice = _ALL,
) -> Tensor:
    """Crop and mirror every image at random, all of them in one gather.

    Parameters
    ----------
    images : Tensor, shape [b, c, h, w]
        Any dtype and device.
    crop : int
        Zero pixels added on each side; each image is then cut back to [h, w] at its own random place.
    flip : bool
        Mirror each image left to right with probability 1/2.
    generator : torch.Generator
        On the CPU.
    whole : int, optional
        Images of the batch that these are a share of, for each of which numbers are drawn; default b.
    share : slice, default all
        Which of them these are.

    Returns
    -------
    Tensor, shape [b, c, h, w]
    """
    if not crop and not flip:
        return images
    b, _, h, w = images.shape
    n = b if whole is None else whole
    top, left = torch.randint(2 * crop + 1, (2, n, 1), generator=generator)[:, share]
    rows = torch.arange(h).repeat(b, 1)  # [b, h]
    columns = torch.arange(w).repeat(b, 1)  # [b, w]
    if flip:
        mirror = torch.rand(n, 1, generator=generator)[share] < 0.5
        columns = torch.where(mirror, w - 1 - columns, columns)
    padded = torch.nn.functional.pad(images, (crop, crop, crop, crop))
    rows, columns = (index.to(images.device, non_blocking=True) for index in (rows + top, columns + left))
    sample = torch.arange(b, device=images.device)
    # Indices around the sliced channel dimension put it last: [b, h, w, c].
    picked = padded[sample[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2).contiguous()


def cut_out(
    images: Tensor, side: int, generator: torch.Generator, whole: int | None = None, share: slice = _ALL
) -> Tensor:
    """Set a square of every image to zero, which is the mean of normalised images.

    Parameters
    ----------
    images : Tensor of float, shape [b, c, h, w]
        Normalised; any device.
    side : int
        Of the square in pixels. Its centre is drawn uniformly from the pixels of the image, one for each image, so
        that part of it may hang over the border. With an even side, the centre is the first pixel past the middle.
    generator : torch.Generator
        On the CPU.
    whole, share
        As for :func:`crop_and_flip`.

    Returns
    -------
    Tensor, shape [b, c, h, w]
    """
    if not side:
        return images
    b, _, h, w = images.shape
    inside = []
    for length in (h, w):
        n = b if whole is None else whole
        first = torch.randint(length, (n, 1), generator=generator)[share] - side // 2
        at = torch.arange(length)
        inside.append(((at >= first) & (at < first + side)).to(images.device, non_blocking=True))
    rows, columns = inside
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)
