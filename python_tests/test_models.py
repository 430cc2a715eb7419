"""Networks by name: the package's own, a user's factory, and what each remembers of how it was made."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn

from srr_ext import models
from srr_ext.models.cifar_resnet import PadShortcut

# Parameter counts of He et al., table 6 (rounded there to 0.27M, 0.46M, 0.66M, 0.85M, 1.7M).
OPTION_A = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018, 110: 1_727_962}


class TinyNet(nn.Module):
    """A network of the user's own, for ``package.module:factory``."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.fc = nn.Linear(4, num_classes)


def any_options(**options: int) -> nn.Module:
    """Make a network from whatever it is called with, as many public factories do."""
    return TinyNet(**options)


def broken(num_classes: int) -> nn.Module:
    """Raise, as a factory with a bug does."""
    raise KeyError(f"no width for {num_classes} classes\nand a second line")


def not_a_model() -> str:
    """Return something else than a network."""
    return "no"


@pytest.mark.parametrize(("depth", "params"), OPTION_A.items())
def test_cifar_resnets_have_the_published_sizes(depth: int, params: int) -> None:
    """Count parameters."""
    assert sum(p.numel() for p in models.create(f"resnet{depth}").parameters()) == params


def test_option_b_adds_convolutions_to_the_two_widening_shortcuts() -> None:
    """Two 1x1 convolutions with normalisation more than option A."""
    count = {name: sum(p.numel() for p in models.create(name).parameters()) for name in ("resnet56", "resnet56b")}
    assert count["resnet56b"] - count["resnet56"] == (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)


VGG = {  # the published widths, as the papers' tables write them, and the sizes of public code
    13: ("64 64 P 128 128 P 256 256 P 512 512 P 512 512 P", 9_413_066),
    16: ("64 64 P 128 128 P 256 256 256 P 512 512 512 P 512 512 512 P", 14_724_042),
    19: ("64 64 P 128 128 P 256 256 256 256 P 512 512 512 512 P 512 512 512 512 P", 20_035_018),
}


@pytest.mark.parametrize("depth", VGG)
def test_cifar_vgg_has_the_published_layers_and_size(depth: int) -> None:
    """Widths and poolings one by one, and the number of parameters by arithmetic on the table."""
    model = models.create(f"cifar_vgg{depth}_bn")
    table, published = VGG[depth]
    kinds = [m for m in model.features if isinstance(m, nn.Conv2d | nn.MaxPool2d)]
    assert ["P" if isinstance(m, nn.MaxPool2d) else str(m.out_channels) for m in kinds] == table.split()
    widths = [3, *(int(width) for width in table.split() if width != "P")]
    convolutions = sum(9 * a * b + 2 * b for a, b in pairwise(widths))
    assert sum(p.numel() for p in model.parameters()) == convolutions + 512 * 10 + 10 == published


@pytest.mark.parametrize(("size", "side"), [(32, 1), (28, 1), (16, 1), (48, 2), (64, 2)])
def test_cifar_vgg_reads_any_size(size: int, side: int) -> None:
    """Poolings round up, so nothing vanishes; at 32 pixels they do not round."""
    model = models.create("cifar_vgg13_bn", 7, in_channels=1, image_size=size).eval()
    x = torch.randn(1, 1, size, size)
    assert model.features(x).shape == (1, 512, side, side)
    assert model(x).shape == (1, 7)


@pytest.mark.parametrize(("channels", "size", "side"), [(1, 28, 1), (3, 32, 2), (3, 15, 1), (3, 64, 4), (3, 31, 2)])
def test_small_alexnet(channels: int, size: int, side: int) -> None:
    """The head fits the feature map at every size, and parameters are those of the definition."""
    model = models.create("alexnet_small", 10, in_channels=channels, image_size=size).eval()
    assert model(torch.randn(1, channels, size, size)).shape == (1, 10)
    widths = [channels, 64, 192, 384, 256, 256]
    dense = [256 * side * side, 4096, 4096, 10]
    wanted = sum(9 * a * b + b for a, b in pairwise(widths))
    wanted += sum(a * b + b for a, b in pairwise(dense))
    assert sum(p.numel() for p in model.parameters()) == wanted


@pytest.mark.parametrize(("name", "least"), [("alexnet_small", 15), ("lenet5", 12)])
def test_images_that_would_vanish_are_refused(name: str, least: int) -> None:
    """With the smallest size that works, which does."""
    assert models.create(name, image_size=least)
    with pytest.raises(ValueError, match=f"image_size must be at least {least} for {name}, but is {least - 1}"):
        models.create(name, image_size=least - 1)


def test_pad_shortcut_takes_every_second_pixel_and_adds_zero_channels() -> None:
    """Compare with the definition, element by element, on odd and even sizes."""
    x = torch.randn(2, 3, 5, 6)
    y = PadShortcut(1, 2)(x)
    assert y.shape == (2, 6, 3, 3)
    assert torch.equal(y[:, 1:4], x[:, :, ::2, ::2])
    assert not y[:, [0, 4, 5]].any()


@pytest.mark.parametrize(
    ("name", "shape"),
    [("digits_cnn", (1, 8, 8)), ("lenet5", (1, 28, 28)), ("resnet20", (3, 32, 32)), ("resnet20b", (3, 32, 32))],
)
def test_own_networks_score_their_images(name: str, shape: tuple[int, ...]) -> None:
    """Scores for every class, and for other image sizes and channels when asked."""
    assert models.create(name).eval()(torch.zeros(2, *shape)).shape == (2, 10)
    other = models.create(name, 7, in_channels=2, image_size=32).eval()
    assert other(torch.zeros(1, 2, 32, 32)).shape == (1, 7)


def test_every_listed_torchvision_name_is_a_classifier() -> None:
    """Names come from torchvision's own registry of classifiers."""
    names = models.available_models()
    assert {"resnet50", "mobilenet_v2", "vit_b_16", "resnet56", "digits_cnn"} <= set(names)
    assert not any("segmentation" in name or "rcnn" in name or "raft" in name for name in names)


@pytest.mark.parametrize("name", ["squeezenet1_1", "googlenet"])
def test_torchvision_networks_by_name(name: str) -> None:
    """One tensor of scores also in training mode, where some would return auxiliary scores."""
    model = models.create(name, 5)
    assert model.train()(torch.zeros(2, 3, 96, 96)).shape == (2, 5)


def test_user_factory() -> None:
    """Only the options that the factory has parameters for are passed."""
    model = models.create(f"{__name__}:TinyNet", 7, in_channels=3)
    assert model.fc.out_features == 7
    assert models.create(f"{__name__}:any_options", 7, in_channels=3, image_size=32).fc.out_features == 7
    with pytest.raises(ValueError, match=r"must return a torch\.nn\.Module, but returned str"):
        models.create(f"{__name__}:not_a_model")
    with pytest.raises(ValueError, match="no_such_package"):
        models.create("no_such_package.models:net")
    with pytest.raises(ValueError, match=r"has no attribute 'nothing'"):
        models.create(f"{__name__}:nothing")
    with pytest.raises(ValueError, match="not a callable object"):
        models.create(f"{__name__}:OPTION_A")


def test_a_factory_that_raises_is_quoted_in_one_line() -> None:
    """Its own words, how it was called, and no more."""
    with pytest.raises(ValueError, match=r"broken\(num_classes=7\) raised KeyError: .*no width for 7") as caught:
        models.create(f"{__name__}:broken", 7, image_size=8)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"broken\(\) raised TypeError: .*num_classes"):
        models.create(f"{__name__}:broken")


def test_unknown_names_give_the_nearest() -> None:
    """A typing error is answered with what was probably meant."""
    with pytest.raises(ValueError, match=r"'resnet65' is not known; did you mean .*resnet56.*timm/NAME"):
        models.create("resnet65")
    with pytest.raises(ValueError, match=r"did you mean .*cifar_vgg16_bn"):
        models.create("cifar_vgg16")


@pytest.mark.parametrize("bad", [0, -1, 2.5, True])
def test_bad_widths_are_refused(bad: object) -> None:
    """The argument is named."""
    with pytest.raises(ValueError, match="num_classes must be a positive integer"):
        models.create("resnet20", bad)  # type: ignore[arg-type]


def test_a_network_remembers_how_it_was_made() -> None:
    """So do copies; the record makes an equal network; foreign networks have none."""
    model = copy.deepcopy(models.create("resnet20", 7, in_channels=1))
    record = models.architecture_of(model)
    assert record == models.Architecture("resnet20", {"num_classes": 7, "in_channels": 1})
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    assert {name: value.shape for name, value in record.build().state_dict().items()} == shapes
    assert models.architecture_of(nn.Linear(1, 1)) is None
