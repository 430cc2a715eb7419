"""torchvision's networks fitted to the images and classes: what changes, what does not, and that it is said."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from srr_ext import models
from srr_ext.models.adapt import SMALL, check_images, colour_kernels, stem_of
from srr_ext.models.torchvision_models import names


def notes_of(model: nn.Module) -> tuple[str, ...]:
    """Return what was said about a network."""
    record = models.architecture_of(model)
    assert record is not None
    return record.notes


def first_map(model: nn.Module, size: int) -> int:
    """Return the side of what the second convolution receives."""
    sides: list[int] = []
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    handle = convs[1].register_forward_pre_hook(lambda module, inputs: sides.append(inputs[0].shape[-1]))
    model.eval()(torch.zeros(1, convs[0].in_channels, size, size))
    handle.remove()
    return sides[0]


FITTED = {  # name -> the first words of its note
    "resnet18": "the 7x7 stride-2 stem and its max pooling became one 3x3 convolution with stride 1",
    "resnext50_32x4d": "the 7x7 stride-2 stem and its max pooling became one 3x3 convolution with stride 1",
    "densenet121": "the 7x7 stride-2 stem and its max pooling became one 3x3 convolution with stride 1",
    "shufflenet_v2_x0_5": "the 3x3 stride-2 stem and its max pooling became one 3x3 convolution with stride 1",
    "mobilenet_v2": "the stem's stride 2 became 1",
    "mobilenet_v3_small": "the stem's stride 2 became 1",
    "efficientnet_b0": "the stem's stride 2 became 1",
    "mnasnet0_5": "the stem's stride 2 became 1",
    "regnet_x_400mf": "the stem's stride 2 became 1",
}


@pytest.mark.parametrize("name", FITTED)
def test_small_images_keep_their_resolution_in_the_stem(name: str) -> None:
    """The second convolution sees all 32 pixels; it is said; from 64 pixels on and without a size, nothing changes."""
    model = models.create(name, image_size=32)
    assert f"{name}: {FITTED[name]}, as images have 32 pixels" in notes_of(model)
    assert first_map(model, 32) == 32
    for options in ({}, {"image_size": SMALL}):
        same = models.create(name, **options)
        assert notes_of(same) == ()
        stem = same.get_submodule(stem_of(same))
        assert stem.stride == (2, 2) and first_map(same, SMALL) < SMALL


@pytest.mark.parametrize("name", ["squeezenet1_1", "googlenet", "convnext_tiny", "vgg11_bn"])
def test_other_families_stay_as_they_are_and_say_where_images_shrink_to_a_pixel(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same tensors as without a size, and one sentence."""
    monkeypatch.setattr(nn.init, "trunc_normal_", lambda tensor, *args, **kwargs: tensor)  # only its time matters
    with torch.device("meta"):
        plain = models.create(name)
    model = models.create(name, image_size=32)
    assert notes_of(model) == (f"{name}: images of 32 pixels shrink to a single one inside the network",)
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("alexnet", 32, "alexnet cannot read images \\[3, 32, 32\\] .*too small.*; take larger ones"),
        ("inception_v3", 32, "inception_v3 cannot read images"),
        ("vit_b_16", 28, "image_size: vit_b_16 cannot be made for 28 x 28 pixels .*patch size"),
        ("maxvit_t", 32, "image_size: maxvit_t cannot be made for 32 x 32 pixels .*partition size"),
    ],
)
def test_images_that_vanish_are_refused(name: str, size: int, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, not in the first training step."""
    monkeypatch.setattr(nn.init, "trunc_normal_", lambda tensor, *args, **kwargs: tensor)
    with pytest.raises(ValueError, match=message):
        models.create(name, image_size=size)


def test_the_check_of_images_leaves_the_network_alone() -> None:
    """Shared modules included, which torch's own functional call would leave without values."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 3, 3)
            self.b = self.a
            self.register_buffer("shift", torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x)) + self.shift + torch.zeros(1)  # the last is a tensor on the CPU in any case

    model = Shared()
    before = {key: (id(value), value.clone()) for key, value in model.state_dict(keep_vars=True).items()}
    assert check_images(model, "net", 3, 6) is None
    assert check_images(model, "net", 3, 5) == "net: images of 5 pixels shrink to a single one inside the network"
    with pytest.raises(ValueError, match=r"net cannot read images \[3, 4, 4\]"):
        check_images(model, "net", 3, 4)
    after = model.state_dict(keep_vars=True)
    assert all(id(after[key]) == number and torch.equal(after[key], value) for key, (number, value) in before.items())
    assert model.training and not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6, 13])
def test_colour_kernels(channels: int) -> None:
    """Colours in turn, scaled: a gray image gives what it gave, wherever each colour comes equally often."""
    weight = torch.randn(5, 3, 3, 3, dtype=torch.float64)
    fitted = colour_kernels(weight, channels)
    assert fitted.shape == (5, channels, 3, 3)
    gray = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    wanted = nn.functional.conv2d(gray.expand(-1, 3, -1, -1), weight)
    if channels == 1 or channels % 3 == 0:
        given = nn.functional.conv2d(gray.expand(-1, channels, -1, -1), fitted)
        torch.testing.assert_close(given, wanted)
    if channels > 1:
        for channel in range(channels):
            torch.testing.assert_close(fitted[:, channel], weight[:, channel % 3] * 3 / channels)


# RegNet computes its widths with tensors, so it cannot be made without memory; other tests make one.
@pytest.mark.parametrize("name", [name for name in names() if not name.startswith("regnet")])
def test_every_first_convolution_reads_colours_and_every_last_layer_is_the_head(name: str) -> None:
    """What fitting takes for granted, for all of torchvision; nothing is computed or initialised."""
    with torch.device("meta"):
        model = models.create(name)
    assert model.get_submodule(stem_of(model)).in_channels == 3
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    wide = layers[-1].out_features if isinstance(layers[-1], nn.Linear) else layers[-1].out_channels
    assert wide == 1000


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "squeezenet1_1", "googlenet", "regnet_y_400mf"])
@pytest.mark.parametrize("channels", [1, 5])
def test_other_channels(name: str, channels: int) -> None:
    """The first convolution is made anew, with outputs as large as before on average; the rest stays; it is said."""
    model = models.create(name, 7, in_channels=channels, image_size=64).eval()
    assert model(torch.randn(2, channels, 64, 64)).shape == (2, 7)
    said = notes_of(model)
    assert f"{name}: the first convolution reads {channels} instead of 3 channels" in said
    assert "head: 1000 -> 7 classes" in said
    stems = [net.get_submodule(stem_of(net)) for net in (model, models.create(name))]
    assert stems[0].weight.shape == (stems[1].out_channels, channels, *stems[1].kernel_size)
    spread = [float(stem.weight.detach().std()) * stem.weight[0].numel() ** 0.5 for stem in stems]
    assert spread[0] == pytest.approx(spread[1], rel=0.15)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {"num_classes": 10, "in_channels": 1, "image_size": 28}),
        ("googlenet", {"in_channels": 3, "image_size": 64}),
        ("mobilenet_v3_small", {"image_size": 32}),
        ("cifar_vgg16_bn", {"image_size": 28, "in_channels": 1}),
        ("alexnet_small", {"image_size": 28, "in_channels": 1}),
    ],
)
def test_a_network_made_again_computes_the_same(name: str, options: dict[str, int]) -> None:
    """From name and options alone: with the same tensors in it, every output is the same."""
    model = models.create(name, **options).eval()
    record = models.architecture_of(model)
    assert record is not None and record == models.Architecture(name, options)  # whatever the notes say
    again = record.build().eval()
    again.load_state_dict(model.state_dict())
    x = torch.randn(1, options.get("in_channels", 3), options["image_size"], options["image_size"])
    assert torch.equal(model(x), again(x))
    assert str(model) == str(again)
