"""Checkpoints: read without running code from them, refused whole when damaged, foreign or diverged."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from shared_data import SHARED
from torch import Tensor

from srr_ext import models


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


EXPLODED: list[str] = []


def explode() -> dict[str, Tensor]:
    """Leave a trace, and return something that looks like a checkpoint."""
    EXPLODED.append("ran")
    return {"weight": torch.zeros(1)}


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return explode, ()


@pytest.mark.parametrize("way", ["zip", "legacy", "raw pickle", "inside a state dict"])
def test_checkpoints_never_run_code(tmp_path: Path, way: str) -> None:
    """A pickle with code in it is refused and not run; without the protection it would run, which is tried too."""
    path = tmp_path / "bomb.th"
    if way == "raw pickle":
        path.write_bytes(pickle.dumps(Bomb(), protocol=2))  # the protocol that torch writes
    else:
        content = {**models.create("lenet5").state_dict(), "extra": Bomb()} if way.startswith("inside") else Bomb()
        torch.save(content, path, _use_new_zipfile_serialization=way != "legacy")
    EXPLODED.clear()
    with pytest.raises(ValueError, match=r"bomb\.th cannot be read as a checkpoint"):
        models.create("lenet5", weights=str(path))
    assert not EXPLODED
    _ = pickle.loads(path.read_bytes()) if way == "raw pickle" else torch.load(path, weights_only=False)
    assert EXPLODED  # so the assertion before it could have failed


def write_zip(state: dict[str, Tensor], path: Path) -> None:
    """Write today's format."""
    torch.save(state, path)


def write_legacy(state: dict[str, Tensor], path: Path) -> None:
    """Write the format of most public ``.th`` files: pickles, then raw numbers."""
    torch.save(state, path, _use_new_zipfile_serialization=False)


def write_safetensors(state: dict[str, Tensor], path: Path) -> None:
    """Write the other format."""
    save_file(state, path)


@pytest.mark.parametrize(
    ("write", "suffix"),
    [(write_zip, ".pt"), (write_zip, ".th"), (write_legacy, ".th"), (write_safetensors, ".safetensors")],
)
def test_a_file_cut_anywhere_is_refused(
    tmp_path: Path, write: Callable[[dict[str, Tensor], Path], None], suffix: str
) -> None:
    """In its first bytes, in its header, between tensors, in the last byte: one error that names the file."""
    source = models.create("lenet5")
    whole = tmp_path / f"whole{suffix}"
    write(source.state_dict(), whole)
    assert torch.equal(models.create("lenet5", weights=str(whole)).fc1.weight, source.fc1.weight)
    content = whole.read_bytes()
    n = len(content)
    lengths = {*range(12), *range(12, 3000, 61), *range(3000, n, n // 60), *range(n - 12, n)}
    cut = tmp_path / f"cut{suffix}"
    for length in sorted(lengths):
        cut.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"weights: .*cut.* cannot be read as a checkpoint"):
            models.read_checkpoint(cut)


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
    refused("inf.th", {**good, "fc2.bias": torch.full((84,), float("inf"))}, "fc2.bias.*not finite")
    refused(
        "resnet.th",
        models.create("resnet20").state_dict(),
        r"conv1.weight has shape \[16, 3, 3, 3\].*another architecture",
    )
    refused("shape.th", {**good, "conv2.weight": torch.zeros(1)}, "conv2.weight has shape")
    refused("extra.th", {**good, "fc9.bias": torch.zeros(1)}, "fc9.bias, which the model lacks")
    refused("nan.th", {**good, "fc2.bias": torch.full((84,), float("nan"))}, "fc2.bias.*not finite")


def test_another_number_of_classes_is_said(tmp_path: Path) -> None:
    """Exactly that case has its own message; with anything else wrong too it is another architecture."""
    hundred = models.create("resnet20", 100).state_dict()
    path = tmp_path / "cifar100.th"
    torch.save(hundred, path)
    message = r"cifar100\.th: linear\.weight has 100 classes, the data 10; .*num_classes=100"
    with pytest.raises(ValueError, match=message):
        models.create("resnet20", 10, weights=str(path))
    assert models.create("resnet20", 100, weights=str(path)).linear.out_features == 100
    torch.save({**hundred, "linear.weight": torch.zeros(100, 32)}, path)
    with pytest.raises(ValueError, match=r"linear\.weight has shape \[100, 32\].*another architecture"):
        models.create("resnet20", 10, weights=str(path))
    torch.save({**hundred, "more": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"more, which the model lacks.*another architecture"):
        models.create("resnet20", 10, weights=str(path))


def test_a_refused_checkpoint_changes_nothing(tmp_path: Path) -> None:
    """Neither one that does not fit nor one with NaN in its last tensor leaves a trace in the network."""
    model = models.create("lenet5")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    other = {name: value + 1 for name, value in before.items()}
    for name, value in (("fc3.bias", torch.full((10,), float("nan"))), ("fc3.weight", torch.zeros(11, 84))):
        torch.save({**other, name: value}, tmp_path / "bad.th")
        with pytest.raises(ValueError, match=name):
            models.load_weights(model, tmp_path / "bad.th")
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_own_networks_have_no_published_weights() -> None:
    """The word for torchvision's is not taken for a file."""
    with pytest.raises(ValueError, match=r"resnet20 has no published weights.*checkpoint file"):
        models.create("resnet20", weights="pretrained")


def test_versions_in_foreign_files_do_not_matter(tmp_path: Path) -> None:
    """MNASNet refuses tables without a version, which safetensors files are."""
    source = models.create("mnasnet0_5", 10)
    save_file(source.state_dict(), tmp_path / "net.safetensors")
    loaded = models.create("mnasnet0_5", 10, str(tmp_path / "net.safetensors"))
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), loaded.parameters(), strict=True))


@pytest.mark.parametrize("depth", [20, 32, 44, 56])
def test_public_cifar_checkpoints_fit(depth: int) -> None:
    """The weights of the widespread CIFAR training code load by name."""
    found = sorted((SHARED / "weights").glob(f"resnet{depth}-*.th"))
    if not found:
        pytest.skip(f"no checkpoints in {SHARED / 'weights'}")
    model = models.create(f"resnet{depth}", 10, str(found[0])).eval()
    assert model.bn1.running_mean.abs().sum() > 0
