"""Networks by name, and checkpoints read without running code from them."""

from __future__ import annotations

import copy
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from shared_data import SHARED
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


def test_torchvision_networks_read_three_channels() -> None:
    """Other images are refused."""
    with pytest.raises(ValueError, match=r"in_channels is 1.*3 channels"):
        models.create("resnet18", in_channels=1)


def test_user_factory() -> None:
    """Only the options that the factory has parameters for are passed."""
    model = models.create(f"{__name__}:TinyNet", 7, in_channels=3)
    assert model.fc.out_features == 7
    assert models.create(f"{__name__}:any_options", 7, in_channels=3, image_size=32).fc.out_features == 7
    with pytest.raises(ValueError, match=r"must return a torch\.nn\.Module, but returned str"):
        models.create(f"{__name__}:not_a_model")
    with pytest.raises(ValueError, match="no_such_package"):
        models.create("no_such_package.models:net")


def test_unknown_names_give_the_nearest() -> None:
    """A typing error is answered with what was probably meant."""
    with pytest.raises(ValueError, match=r"'resnet65' is not known; did you mean .*resnet56"):
        models.create("resnet65")


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


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"model": s, "epoch": 3}])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_checkpoints_in_all_their_wrappings(tmp_path: Path, wrap: object, prefix: str) -> None:
    """State dicts, wrapped state dicts, data parallel prefixes."""
    source = models.create("lenet5")
    path = tmp_path / "net.th"
    torch.save(wrap({prefix + name: value for name, value in source.state_dict().items()}), path)  # type: ignore[operator]
    loaded = models.create("lenet5", weights=str(path))
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), loaded.parameters(), strict=True))


def test_safetensors_checkpoint(tmp_path: Path) -> None:
    """The other format."""
    source = models.create("lenet5")
    save_file(source.state_dict(), tmp_path / "net.safetensors")
    loaded = models.create("lenet5", weights=str(tmp_path / "net.safetensors"))
    assert torch.equal(source.fc1.weight, loaded.fc1.weight)


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, ("exploded",)


def test_checkpoints_never_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickle with code in it is refused and not run."""
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Bomb()}, "bomb.th")
    Path("raw.pth").write_bytes(pickle.dumps(Bomb()))
    for name in ("bomb.th", "raw.pth"):
        with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
            models.create("lenet5", weights=name)
    assert not Path("exploded").exists()


def test_bad_checkpoints_say_what_is_wrong(tmp_path: Path) -> None:
    """Missing, damaged, foreign and diverged ones."""
    good = models.create("lenet5").state_dict()

    def refused(name: str, content: object, message: str) -> None:
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            torch.save(content, path)
        with pytest.raises(ValueError, match=message):
            models.create("lenet5", weights=str(path))

    refused("missing.th", None, "there is no file")
    torch.save(good, tmp_path / "whole.th")
    refused("half.th", (tmp_path / "whole.th").read_bytes()[:5000], "cannot be read as a checkpoint")
    refused("half.safetensors", b"\x08\x00\x00", "cannot be read as a checkpoint")
    refused("empty.th", b"", "cannot be read as a checkpoint")
    refused("list.th", [1, 2], "no table of tensors")
    refused("lacks.th", {k: v for k, v in good.items() if k != "fc2.bias"}, "lacks fc2.bias.*another architecture")
    refused("shape.th", {**good, "conv2.weight": torch.zeros(1)}, "conv2.weight has shape")
    refused("extra.th", {**good, "fc9.bias": torch.zeros(1)}, "fc9.bias, which the model lacks")
    refused("nan.th", {**good, "fc2.bias": torch.full((84,), float("nan"))}, "fc2.bias.*not finite")


@pytest.mark.parametrize("depth", [20, 32, 44, 56])
def test_public_cifar_checkpoints_fit(depth: int) -> None:
    """The weights of the widespread CIFAR training code load by name."""
    found = sorted((SHARED / "weights").glob(f"resnet{depth}-*.th"))
    if not found:
        pytest.skip(f"no checkpoints in {SHARED / 'weights'}")
    model = models.create(f"resnet{depth}", 10, str(found[0])).eval()
    assert model.bn1.running_mean.abs().sum() > 0
