"""Published weights of torchvision and timm: fetched, fitted to other images and classes, and said when they cannot be.

No test needs a network: published files are stood in for by random ones in the place where a download puts them.
"""

from __future__ import annotations

import sys
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from srr_ext import models

Publish = Callable[..., dict[str, Tensor]]


def notes_of(model: nn.Module) -> tuple[str, ...]:
    """Return what was said about a network."""
    record = models.architecture_of(model)
    assert record is not None
    return record.notes


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Return a function that puts tensors where torchvision would put the download of a network's weights."""
    import torchvision.models

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)

    def put(name: str, state: object = None, member: str = "DEFAULT") -> dict[str, Tensor]:
        found: Any = models.create(name).state_dict() if state is None else state
        url = torchvision.models.get_model_weights(name)[member].url
        torch.save(found, tmp_path / "hub" / "checkpoints" / url.rpartition("/")[2])
        return found

    return put


@pytest.mark.parametrize("weights", ["pretrained", "DEFAULT", "IMAGENET1K_V1"])
def test_published_weights_are_loaded_whole(publish: Publish, weights: str) -> None:
    """With the classes and images that they were made for, every tensor is theirs and nothing is said."""
    state = publish("resnet18")
    model = models.create("resnet18", weights=weights)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert notes_of(model) == ()
    assert models.architecture_of(model) == models.Architecture("resnet18", {})


def test_another_number_of_classes_gets_a_new_head(publish: Publish) -> None:
    """Everything else is the published body."""
    state = publish("resnet18")
    model = models.create("resnet18", 10, "pretrained")
    for name, value in model.state_dict().items():
        assert name.startswith("fc.") or torch.equal(value, state[name]), name
    assert model.fc.weight.shape == (10, 512)
    said = ("head: 1000 -> 10 classes", "head: newly initialised, everything else has the published weights")
    assert notes_of(model) == said


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels_get_the_colours_kernels(publish: Publish, channels: int) -> None:
    """One channel: a gray image scores as its colour version does in the original."""
    state = publish("mobilenet_v2")
    original = models.create("mobilenet_v2", weights="pretrained").eval()
    model = models.create("mobilenet_v2", weights="pretrained", in_channels=channels, image_size=64).eval()
    kernel = state["features.0.0.weight"]
    if channels == 1:
        gray = torch.randn(2, 1, 64, 64)
        torch.testing.assert_close(model(gray), original(gray.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)
    else:
        torch.testing.assert_close(model.features[0][0].weight, kernel[:, [0, 1, 2, 0]] * 0.75)
    assert any("of the published kernels of the colours" in note for note in notes_of(model))


def test_small_images_get_a_new_stem_where_its_shape_is_another(publish: Publish) -> None:
    """ResNet's 7x7 kernels cannot be used at 3x3, which is said; MobileNet's stride changes no tensor."""
    state = publish("resnet18")
    model = models.create("resnet18", 10, "pretrained", image_size=32)
    assert model.conv1.weight.shape == (64, 3, 3, 3)
    assert torch.equal(model.layer1[0].conv1.weight, state["layer1.0.conv1.weight"])
    assert "stem: newly initialised, as the published one has another shape" in notes_of(model)
    state = publish("mobilenet_v2")
    model = models.create("mobilenet_v2", weights="pretrained", image_size=32)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_network_with_published_weights_is_made_again_alike(publish: Publish) -> None:
    """GoogLeNet's published weights want another scale of images, which a copy without them must keep."""
    source = models.create("googlenet")
    auxiliary = {"aux1.conv.conv.weight": torch.zeros(1), "aux2.fc1.bias": torch.zeros(1)}  # published files have them
    publish("googlenet", {**source.state_dict(), **auxiliary})
    model = models.create("googlenet", weights="pretrained").eval()
    record = models.architecture_of(model)
    assert record is not None and record.notes == (
        "auxiliary heads of the checkpoint, used only in training, were left out",
    )
    again = record.build().eval()
    again.load_state_dict(model.state_dict())
    x = torch.rand(1, 3, 64, 64)
    assert model.transform_input and torch.equal(model(x), again(x))


def test_old_names_in_published_files_are_understood(publish: Publish, tmp_path: Path) -> None:
    """DenseNet's files have dots where today's modules have none; so has a downloaded file given by name."""
    state = models.create("densenet121").state_dict()
    names = {name: name for name in state}
    for name in state:
        for part in ("norm", "conv"):
            for number in "12":
                names[name] = (
                    names[name].replace(f".{part}{number}.", f".{part}.{number}.") if "layer" in name else name
                )
    assert sum(old != new for new, old in names.items()) > 200
    old = {names[name]: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    publish("densenet121", old)
    torch.save(old, tmp_path / "densenet.pth")
    for weights in ("pretrained", str(tmp_path / "densenet.pth")):
        model = models.create("densenet121", weights=weights)
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.slow
def test_position_embeddings_are_interpolated(publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    """A vision transformer for smaller images keeps everything else, old names of its layers included."""
    monkeypatch.setattr(nn.init, "trunc_normal_", lambda tensor, std, **kwargs: nn.init.normal_(tensor, 0, std))
    state = models.create("vit_b_32").state_dict()
    old = {n.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): v for n, v in state.items()}
    assert old.keys() != state.keys()
    publish("vit_b_32", old)
    model = models.create("vit_b_32", 10, "pretrained", image_size=64)
    assert model.encoder.pos_embedding.shape == (1, 5, 768)
    assert torch.equal(model.encoder.pos_embedding[:, 0], state["encoder.pos_embedding"][:, 0])  # of the class token
    assert torch.equal(model.encoder.layers[3].mlp[3].weight, state["encoder.layers.encoder_layer_3.mlp.3.weight"])
    assert "position embedding: the published one, interpolated for 64 pixels" in notes_of(model)


def test_weights_that_cannot_be_fetched(publish: Publish, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The address, the reason, the place for the file, and the way round; a damaged file in that place likewise."""

    def offline(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no network here")

    monkeypatch.setattr(torch.hub, "urlopen", offline)
    message = (
        r"https://\S+/resnet18-\w+\.pth, .*of resnet18, could not be fetched \(.*no network here.*\).*hub/checkpoints"
    )
    with pytest.raises(ValueError, match=message):
        models.create("resnet18", weights="pretrained")
    publish("resnet18")
    place = next((tmp_path / "hub" / "checkpoints").iterdir())
    place.write_bytes(place.read_bytes()[:100_000])
    with pytest.raises(ValueError, match=r"resnet18, could not be fetched"):
        models.create("resnet18", weights="pretrained")
    publish("resnet18", {"other": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"weights: IMAGENET1K_V1 of resnet18 lacks conv1.weight"):
        models.create("resnet18", weights="pretrained")


def test_neither_file_nor_published_name() -> None:
    """The published names are listed."""
    with pytest.raises(
        ValueError, match=r"there is no file IMAGENET; .*of resnet50 are pretrained, DEFAULT, IMAGENET1K_V1"
    ):
        models.create("resnet50", weights="IMAGENET")


def test_a_file_with_another_head_or_stem(tmp_path: Path) -> None:
    """A downloaded file has to fit; a stem fitted to small images is named as the reason."""
    path = tmp_path / "resnet18.pth"
    torch.save(models.create("resnet18").state_dict(), path)
    with pytest.raises(ValueError, match=r"fc\.weight has 1000 classes, the data 10"):
        models.create("resnet18", 10, str(path))
    with pytest.raises(
        ValueError, match=r"conv1\.weight has shape .*another architecture \(resnet18: the 7x7 stride-2 stem"
    ):
        models.create("resnet18", weights=str(path), image_size=32)


def test_timm_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Said with the command that installs it, wherever it is asked for."""
    monkeypatch.setitem(sys.modules, "timm", None)
    for ask in (lambda: models.create("timm/resnet18"), lambda: models.available_models(include_timm=True)):
        with pytest.raises(ValueError, match="pip install timm"):
            ask()


def test_timm_names() -> None:
    """Listed when asked for; unknown models and tags are answered with near ones."""
    pytest.importorskip("timm")
    assert "timm/resnet18d" in models.available_models(include_timm=True)
    assert not any(name.startswith("timm/") for name in models.available_models())
    with pytest.raises(ValueError, match=r"'timm/resnet18x' is not known; did you mean .*timm/resnet18"):
        models.create("timm/resnet18x")
    with pytest.raises(ValueError, match=r"Invalid pretrained tag.*did you mean .*timm/resnet18\.\w+"):
        models.create("timm/resnet18.a1_in2k")


def test_timm_models_fit_images_and_say_so(tmp_path: Path) -> None:
    """Channels, classes and fixed image sizes; a checkpoint file; made again alike."""
    pytest.importorskip("timm")
    model = models.create("timm/test_vit", 7, in_channels=1, image_size=32).eval()
    x = torch.randn(2, 1, 32, 32)
    assert model(x).shape == (2, 7)
    assert notes_of(model) == (
        "head: 1000 -> 7 classes",
        "timm/test_vit: the first convolution reads 1 instead of 3 channels",
        "timm/test_vit: made for images of 32 instead of 160 pixels",
    )
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    record = models.architecture_of(model)
    assert record is not None
    options: dict[str, Any] = {**record.options}
    again = models.create(record.name, weights=str(tmp_path / "vit.pth"), **options).eval()
    assert torch.equal(model(x), again(x))
    with pytest.raises(ValueError, match=r"head\.weight has 7 classes, the data 10"):
        models.create(record.name, weights=str(tmp_path / "vit.pth"), **{**options, "num_classes": 10})
    with pytest.raises(ValueError, match=r"timm/inception_v4 cannot read images \[3, 32, 32\]"):
        models.create("timm/inception_v4", image_size=32)


def test_timm_published_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm fits body and stem; without a network it is said what could not be fetched."""
    builder = pytest.importorskip("timm.models._builder")
    state = models.create("timm/test_resnet").state_dict()
    monkeypatch.setattr(builder, "load_state_dict_from_hf", lambda *args, **kwargs: dict(state))
    model = models.create("timm/test_resnet", 10, "pretrained", in_channels=1)
    assert torch.equal(model.layer1[0].conv1.weight, state["layer1.0.conv1.weight"])
    assert model.fc.weight.shape == (10, state["fc.weight"].shape[1])
    assert "head: 1000 -> 10 classes, newly initialised" in notes_of(model)
    assert any("published kernels" in note for note in notes_of(model))

    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("no network here")

    monkeypatch.setattr(builder, "load_state_dict_from_hf", offline)
    with pytest.raises(
        ValueError, match=r"timm/test_resnet\S* on huggingface.co, .*could not be fetched \(no network here\)"
    ):
        models.create("timm/test_resnet", weights="pretrained")
    with pytest.raises(ValueError, match=r"there is no file nowhere\.pth; 'pretrained' takes timm's"):
        models.create("timm/test_resnet", weights="nowhere.pth")
