"""Networks as files for elsewhere: read by the libraries that read them, they give the network's own scores."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import refused
from shared_data import SHARED
from torch import Tensor, nn

import srr_ext
from srr_ext import artifacts, data, exporting, models
from srr_ext.__main__ import main
from srr_ext.bottleneck import apply_bottlenecks, make_bottlenecks, save_bottlenecks
from srr_ext.exporting import Exported, export
from srr_ext.files import write_json
from srr_ext.sparsity import Masks, prunable

FORMATS = {"onnx": ".onnx", "exported-program": ".pt2", "torchscript": ".ts"}
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")


def needs(format: str) -> None:
    for package in PACKAGES if format == "onnx" else ():
        pytest.importorskip(package, reason=f"{package} is not installed")


@pytest.fixture(params=FORMATS)
def format(request: pytest.FixtureRequest) -> Any:
    needs(request.param)
    return request.param


def scores_of(path: Path, format: str, images: Tensor) -> Tensor:
    """Read a file with the library it is for, without a line of the package."""
    if format == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
        (given,) = session.get_inputs()
        return torch.from_numpy(session.run(None, {given.name: images.numpy()})[0])
    if format == "exported-program":
        return torch.export.load(str(path)).module()(images).detach()
    return torch.jit.load(str(path))(images).detach()


def settled(model: nn.Module, images: Tensor) -> nn.Module:
    """Give random weights the normalisation statistics of some images: scores are then neither tiny nor huge."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        model.train()(images)
    return model.eval()


def pruned(name: str, images: Tensor, **shape: Any) -> nn.Module:
    model = models.create(name, 10, in_channels=images.shape[1], image_size=images.shape[2])
    plan = srr_ext.make_plan(model, images[:1], allocator="uniform", keep_macs=0.5, **shape)
    return settled(srr_ext.apply_plan(model, plan, images[:1]), images)


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Eight images of handwriting."""
    return next(iter(data.load("digits").batches("test", 8)))[0]


@pytest.fixture(scope="module")
def small(images: Tensor) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return pruned("digits_cnn", images)


def test_what_reads_the_file_gets_the_networks_scores(
    format: Any, small: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    """For numbers of images that were never tried; and the model is left as it was, in training mode."""
    model = srr_ext.copying.copy_model(small).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    made = export(model, images, tmp_path / "net", format)
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert list(tmp_path.iterdir()) == [made.path]
    worst = 0.0
    for n in (1, 2, 3, 5, 8):
        wanted, found = small(images[:n]).detach(), scores_of(made.path, format, images[:n])
        assert found.shape == (n, 10)
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
        worst = max(worst, float((found - wanted).abs().max()))
    assert made == Exported(made.path, format, made.path.stat().st_size, (1, 8), made.difference, made.largest)
    assert made.difference <= worst + 1e-6 and made.largest == pytest.approx(
        float(small(images).detach().abs().max()), abs=1e-5
    )
    assert made.largest > 0.1  # else 1e-4 would say nothing


@pytest.mark.parametrize("format", ["onnx", "exported-program"])
def test_same_network_same_bytes_without_paths_of_this_machine(
    format: Any, small: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    needs(format)
    first, second = (export(small, images, tmp_path / name, format).path.read_bytes() for name in ("a", "other.name"))
    assert first == second
    for part in (str(ROOT), str(Path(torch.__file__).parent), "other.name", ".py"):
        assert part.encode() not in first


@pytest.mark.slow
def test_torchscript_of_another_process_is_the_same(tmp_path: Path) -> None:
    """Within one process, PyTorch numbers the classes that it has traced."""
    code = (
        "import sys, torch\nfrom srr_ext import models\nfrom srr_ext.exporting import export\n"
        "torch.manual_seed(0)\nexport(models.create('digits_cnn'), torch.randn(2, 1, 8, 8), sys.argv[1], 'torchscript')"
    )
    for name in ("a", "b"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], check=True, timeout=120)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_an_exported_program_holds_and_needs_no_pickle(
    small: nn.Module, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by what the archive says of its records, nor by what reading it calls."""
    path = export(small, images, tmp_path / "net.pt2", "exported-program").path
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    tables = [json.loads(records[name])["config"] for name in records if name.endswith("_config.json")]
    entries = [entry for table in tables for entry in table.values()]
    assert len(entries) == len(small.state_dict()) and not any(entry["use_pickle"] for entry in entries)
    (inputs,) = [content for name, content in records.items() if "sample_inputs" in name]
    assert inputs == b""
    wanted = small(images)

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("something is unpickled")

    for module, name in ((torch, "load"), (torch._C, "_pickle_load_obj")):
        monkeypatch.setattr(module, name, forbidden)
    monkeypatch.setattr("pickle.loads", forbidden)
    monkeypatch.setattr("pickle.Unpickler", forbidden)
    assert torch.equal(torch.export.load(str(path)).module()(images), wanted)


class Mine(Tensor):
    """A class of tensors that torch.export.save would pickle."""

    def new_empty(self, *args: Any, **kwargs: Any) -> Mine:
        return super().new_empty(*args, **kwargs).as_subclass(Mine)


def test_weights_that_would_be_pickled_are_refused(images: Tensor, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    model[1].weight = nn.Parameter(model[1].weight.detach().as_subclass(Mine))
    with pytest.raises(ValueError, match=r"format exported-program: .* cannot be written so .*1\.weight is a Mine"):
        export(model, images, tmp_path / "net", "exported-program")
    assert not list(tmp_path.iterdir())


class Counting(nn.Module):
    """Multiplies by the number of images as a Python number, which a trace takes for a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1)) * int(x.shape[0])


class Halving(Counting):
    """Takes two images, or four."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.reshape(2, -1, 64).flatten(0, 1))


class Pair(Counting):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


@pytest.mark.parametrize(
    ("format", "model", "expected"),
    [
        (
            "torchscript",
            Counting(),
            r"tolerance is 0\.0001, but scores of the torchscript file .* up to \d.* for one image",
        ),
        ("exported-program", Counting(), r"format exported-program: this network cannot be written so \(.*batch"),
        ("onnx", Counting(), r"format onnx: this network cannot be written so \(.*batch"),
        ("onnx", Halving(), r"images: the model does not run on one image \(RuntimeError: shape"),
        ("torchscript", Pair(), "model must give one tensor of scores, but gives a tuple"),
    ],
)
def test_a_network_that_the_format_cannot_hold_is_refused(
    format: Any, model: nn.Module, expected: str, images: Tensor, tmp_path: Path
) -> None:
    """And what stood in the place of the file stays."""
    needs(format)
    path = tmp_path / "net"
    path.write_text("mine")
    with pytest.raises((ValueError, TypeError), match=expected):
        export(model, images, path, format)
    assert path.read_text() == "mine" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arguments", "error", "expected"),
    [
        ({"model": "net"}, TypeError, "model must be a torch.nn.Module, but is str"),
        ({"images": [1, 2]}, TypeError, r"images must be a tensor \[n, ...\], but is list"),
        ({"images": torch.zeros(1, 1, 8, 8)}, ValueError, r"images must be at least 2, for .*, but are \[1, 1, 8, 8\]"),
        (
            {"format": "pickle"},
            ValueError,
            "format must be one of onnx, .*, torchscript, but is 'pickle'",
        ),
        ({"tolerance": -1.0}, ValueError, "tolerance must be at least 0, but is -1.0"),
        ({"tolerance": float("nan")}, ValueError, "tolerance must be at least 0, but is nan"),
    ],
)
def test_bad_arguments_are_refused(
    arguments: dict[str, Any], error: type, expected: str, small: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    given = {"model": small, "images": images, "path": tmp_path / "net", "format": "torchscript"} | arguments
    with pytest.raises(error, match=expected):
        export(**given)
    assert not list(tmp_path.iterdir())


def altered(change: Callable[[Tensor], Tensor], patch: pytest.MonkeyPatch) -> None:
    """Let the file be read with scores that are a little different."""
    kind = exporting._KINDS["torchscript"]

    def load(path: Path) -> exporting.Run:
        run = kind.load(path)
        return lambda x: change(run(x))

    patch.setitem(exporting._KINDS, "torchscript", replace(kind, load=load))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda s: s + (2e-4 if len(s) == 1 else 0.0), r"by up to 0\.0002 for one image; the largest score is"),
        (lambda s: s + (2e-4 if len(s) > 1 else 0.0), r"by up to 0\.0002 for 8 images at once; the largest score is"),
        (lambda s: torch.where(s == s.max(), torch.nan, s), "by up to nan for one image"),
        (lambda s: s[:, :9], "by up to inf for one image"),
        (lambda s: s.expand(8, -1), "by up to inf for one image"),
    ],
)
def test_any_difference_beyond_the_tolerance_is_found(
    change: Callable[[Tensor], Tensor],
    expected: str,
    small: nn.Module,
    images: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    altered(change, monkeypatch)
    with pytest.raises(ValueError, match=r"tolerance is 0\.0001, but scores of the torchscript file .*" + expected):
        export(small, images, tmp_path / "net", "torchscript")
    assert not list(tmp_path.iterdir())


def test_a_difference_within_the_tolerance_is_reported(
    small: nn.Module, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    altered(lambda s: s - 3e-4, monkeypatch)
    made = export(small, images, tmp_path / "net", "torchscript", tolerance=1e-3)
    assert made.difference == pytest.approx(3e-4, rel=1e-2) and made.path.is_file()


def test_what_is_compared_is_the_file(
    format: Any, small: nn.Module, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that the disk has cut short is refused and does not stay."""
    write = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda path, content: write(path, content[: len(content) // 2]))
    with pytest.raises(ValueError, match=f"format {format}: the file was written but does not run "):
        export(small, images, tmp_path / "net", format)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", PACKAGES)
def test_a_missing_package_is_named(
    package: str, small: nn.Module, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("onnx")
    monkeypatch.setitem(sys.modules, package, None)
    expected = rf"format onnx needs {package}, which is not .*; pip install onnx onnxscript onnxruntime$"
    with pytest.raises(ValueError, match=expected):
        export(small, images, tmp_path / "net", "onnx")
    assert not list(tmp_path.iterdir())


CLASSIFIERS = ("resnet18", "mobilenet_v2", "densenet121", "shufflenet_v2_x1_0")


@pytest.fixture(scope="module", params=CLASSIFIERS)
def classifier(request: pytest.FixtureRequest) -> tuple[str, nn.Module, Tensor]:
    """Return a torchvision network pruned to half of its cost."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        images = torch.randn(24, 3, 64, 64)
        return request.param, pruned(request.param, images), images[:6]


@pytest.mark.slow
def test_pruned_classifiers_leave_in_every_format(
    classifier: tuple[str, nn.Module, Tensor], format: Any, tmp_path: Path
) -> None:
    name, network, images = classifier
    dense = sum(parameter.numel() for parameter in models.create(name, 10).parameters())
    assert sum(parameter.numel() for parameter in network.parameters()) < dense
    made = export(network, images, tmp_path / f"{name}{FORMATS[format]}", format)
    assert made.largest > 0.1
    for n in (1, 4):
        found = scores_of(made.path, format, images[-n:])
        torch.testing.assert_close(found, network(images[-n:]).detach(), atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the first test images of CIFAR-10 (JPEG)."""
    archive = SHARED / "data" / "cifar10-jpeg.tar.gz"
    if not archive.is_file():
        pytest.skip(f"no CIFAR-10 in {archive}")
    root = tmp_path_factory.mktemp("photographs")
    taken = Counter[Path]()
    with tarfile.open(archive) as packed:
        for member in packed:
            folder = Path(member.name).parent
            if member.isfile() and taken[folder] < 4:
                taken[folder] += 1
                packed.extract(member, root, filter="data")
    return next(path.parent for path in root.rglob("test") if path.is_dir())


@pytest.mark.slow
def test_a_trained_network_sees_photographs_alike(format: Any, photographs: Path) -> None:
    """A published ResNet-20, pruned to half, from a run folder by the command."""
    weights = next((SHARED / "weights").glob("resnet20-*.th"), None)
    if weights is None:
        pytest.skip(f"no checkpoints in {SHARED / 'weights'}")
    dense = models.create("resnet20", 10, str(weights)).eval()
    example = torch.zeros(1, 3, 32, 32)
    plan = srr_ext.make_plan(dense, example, keep_macs=0.5)
    network = srr_ext.apply_plan(dense, plan, example)
    srr_ext.save("run", network, plan)
    write_json(Path("run", artifacts.CONFIG), {"data": f"folder:{photographs}"})
    assert main(["export", "run", "--format", format, "--images", "40", "--output", "net"]) == 0
    images = next(iter(data.load(f"folder:{photographs}").batches("test", 40)))[0]
    wanted = network(images).detach()
    assert len(images) == 40 and wanted.abs().max() > 1
    torch.testing.assert_close(scores_of(Path("net"), format, images), wanted, atol=1e-4, rtol=0)


def write_run(folder: Path, kind: str, images: Tensor) -> nn.Module:
    """Leave what a run of each command leaves of its network; return the network."""
    dense = settled(models.create("digits_cnn", 10), images)
    if kind == "train":
        artifacts.save_dense(folder, dense)
        network = dense
    elif kind == "prune":
        artifacts.save_dense(folder, dense)  # which must not be taken for the pruned one
        plan = srr_ext.make_plan(dense, images[:1], keep_macs=0.5)
        network = srr_ext.apply_plan(dense, plan, images[:1])
        srr_ext.save(folder, network, plan)
    elif kind == "sparsify":
        network = dense
        masks = Masks({name: torch.rand(weight.shape) < 0.3 for name, weight in prunable(network, images[:1]).items()})
        masks.apply(network)
        artifacts.write_architecture(folder, models.architecture_of(network))
        artifacts.write_tensors(folder / artifacts.WEIGHTS, network)
        masks.save(folder / artifacts.MASKS)
    else:
        plan = make_bottlenecks(dense, images[:1], data=[(images, torch.arange(8))], keep_macs=0.5)
        network = apply_bottlenecks(dense, plan)
        save_bottlenecks(folder, network, plan)
    write_json(folder / artifacts.CONFIG, {"data": "digits"})
    return network.eval()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("kind", "format"),
    [
        ("prune", "onnx"),
        ("prune", "exported-program"),
        ("prune", "torchscript"),
        ("train", "torchscript"),
        ("sparsify", "torchscript"),
        ("bottleneck", "exported-program"),
    ],
)
def test_the_command_exports_what_a_run_has_made(
    kind: str, format: Any, images: Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file in the run folder gives the scores of the network that the run has made, of the images it was for."""
    needs(format)
    network = write_run(Path("run"), kind, images)
    before = {path.name for path in Path("run").iterdir()}
    assert main(["export", "run", "--format", format]) == 0
    path = Path(f"run/model{FORMATS[format]}")
    assert {path.name for path in Path("run").iterdir()} - before == {path.name}
    torch.testing.assert_close(scores_of(path, format, images), network(images).detach(), atol=1e-4, rtol=0)
    line, advice = capsys.readouterr().out.splitlines()
    assert line.startswith(
        f"{path}: {format}, {path.stat().st_size:,} bytes; loaded back, its scores of 64 test images"
    )
    assert advice.startswith("next: ") and repr(str(path)) in advice


def test_a_checkpoint_without_a_run_and_the_flag(images: Tensor) -> None:
    """``--run`` is what the first argument may stand for; without one, a network by name and a checkpoint."""
    write_run(Path("run"), "train", images)
    flags = ["--format", "torchscript", "--images", "2"]
    assert main(["export", "--run", "run", *flags, "--output", "a.ts"]) == 0
    assert main(["export", "--weights", "run/dense.safetensors", *flags, "--output", "b.ts"]) == 0
    assert torch.equal(*(scores_of(Path(name), "torchscript", images) for name in ("a.ts", "b.ts")))


@pytest.mark.parametrize("kind", ["train", "prune", "bottleneck"])
def test_code_that_makes_a_network_is_named_by_the_user_alone(
    kind: str, images: Tensor, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder does not choose what is imported."""
    network = write_run(Path("made"), kind, images)
    write_json(Path("made", artifacts.ARCHITECTURE), {"name": "own_net:make", "options": {"num_classes": 10}})
    Path("own_net.py").write_text(
        "from pathlib import Path\nfrom srr_ext import models\n\nPath('imported').touch()\n\n"
        "def make(num_classes):\n    return models.create('digits_cnn', num_classes)\n"
    )
    monkeypatch.syspath_prepend("")
    monkeypatch.delitem(sys.modules, "own_net", raising=False)
    command = ("export", "made", "--format", "torchscript", "--output", "net.ts")
    for flags, expected in (
        ((), "--run: made names code that makes its network, 'own_net:make'"),
        (("--model", "other:make"), "--run: made names code that makes its network, 'own_net:make'"),
        (("--model", "digits_cnn"), "--run: goes without --model"),
    ):
        line = refused(capsys, *command, *flags)
        assert line.startswith(expected), line
    assert not Path("imported").exists()
    assert main([*command, "--model", "own_net:make"]) == 0 and Path("imported").exists()
    torch.testing.assert_close(scores_of(Path("net.ts"), "torchscript", images), network(images).detach())
    sys.modules.pop("own_net")


def test_bad_input_to_the_command_is_refused(images: Tensor, capsys: pytest.CaptureFixture[str]) -> None:
    """In one line that names the flag, and nothing is written."""
    write_run(Path("run"), "prune", images)
    Path("taken.ts").write_text("mine")
    torchscript = ("export", "run", "--format", "torchscript")
    for arguments, expected in (
        (("export",), "--output: name the file to write; without --run there is no folder for it"),
        (("export", "--output", "x.ts"), "--weights: name a checkpoint, or a run folder with --run"),
        (("export", "run", "--model", "resnet20"), "--run: goes without --model"),
        (("export", "nowhere"), "--run: there is no file nowhere/plan.json; is nowhere a run folder?"),
        (("export", "run", "--format", "pickle"), "--format: 'pickle' is not valid"),
        (("export", "run", "--device", "cuda"), "--device: 'cuda' is not valid"),
        (("export", "run", "--images", "1"), "--images: must be at least 2, but is 1"),
        ((*torchscript, "--tolerance", "-1"), "--tolerance: must be at least 0, but is -1.0"),
        ((*torchscript, "--data", "cifar10:nowhere"), "--data: "),
        ((*torchscript, "--output", "taken.ts"), "--output: taken.ts is there already, or its folder is not"),
        ((*torchscript, "--output", "no/net.ts"), "--output: no/net.ts is there already, or its folder is not"),
    ):
        line = refused(capsys, *arguments)
        assert line.startswith(expected), line
    assert Path("taken.ts").read_text() == "mine"


def test_what_goes_wrong_on_the_way_leaves_nothing(
    images: Tensor, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores that differ, a package that is missing, a disk that is full, Ctrl-C."""
    write_run(Path("run"), "prune", images)
    torchscript = ("export", "run", "--format", "torchscript")
    with monkeypatch.context() as patch:
        altered(lambda s: s + 1, patch)
        line = refused(capsys, *torchscript)
        assert line.startswith("--tolerance: is 0.0001, but scores of the torchscript file differ"), line
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnxruntime", None)
        line = refused(capsys, "export", "run")
        assert line.startswith("--format: onnx needs on") and "pip install onnx onnxscript onnxruntime" in line, line

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        line = refused(capsys, *torchscript)
        assert line.startswith("--output: ") and "No space left on device" in line, line

    def stop(_: Tensor) -> Tensor:
        raise KeyboardInterrupt

    before = sorted(Path().rglob("*"))
    with monkeypatch.context() as patch:
        altered(stop, patch)
        assert main(torchscript) == 130
    assert sorted(Path().rglob("*")) == before


def test_a_run_that_was_stopped_is_no_network_yet(images: Tensor, capsys: pytest.CaptureFixture[str]) -> None:
    """Its dense network is there, but that is not what the run is for."""
    artifacts.save_dense(Path("run"), models.create("digits_cnn", 10))
    write_json(Path("run", artifacts.CONFIG), {"data": "digits"})
    Path("run", artifacts.CHECKPOINT).mkdir()
    line = refused(capsys, "export", "run")
    assert line.startswith("--run: run was stopped before its network was there; go on with --resume"), line
