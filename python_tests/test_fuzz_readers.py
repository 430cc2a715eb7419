"""Readers of files, given anything: they read it, or refuse it with a ValueError, in little time and memory."""

from __future__ import annotations

import contextlib
import json
import resource
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from comparison_data import add_comparison
from hostile import LIARS, fuzz, mutations, pickles, texts
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from srr_ext import artifacts, models
from srr_ext.bottleneck.plan import BottleneckPlan, Ranks
from srr_ext.checkpoints import Checkpoint, Reached
from srr_ext.cli.parsing import UsageError, parse
from srr_ext.comparison import results
from srr_ext.config import PruneConfig
from srr_ext.files import LARGEST, read_json
from srr_ext.models.weights import load_weights, read_checkpoint
from srr_ext.plan import PruningPlan, make_plan
from srr_ext.sparsity import Masks
from srr_ext.surgery import cut

MODEL = models.create("digits_cnn").eval()
PLAN = make_plan(MODEL, torch.zeros(1, 1, 8, 8), allocator="uniform", keep_macs=0.5)
BOTTLENECKS = BottleneckPlan(
    {"stage1.0": Ranks(1, 4)}, {"classifier": "it is the last"}, widths={"stage1.0": [32, 1]}, target={"macs": 0.5}
)


@pytest.fixture(autouse=True)
def small() -> Iterator[None]:
    """See that no test takes much memory: half a gigabyte is far more than all of these files."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000


@fuzz(150)
@given(texts(json.loads(PLAN.to_json())))
def test_plans(text: str) -> None:
    """What is read can be written, read again, and cut by, or does not fit."""
    with contextlib.suppress(ValueError):
        plan = PruningPlan.from_json(text)
        assert PruningPlan.from_json(plan.to_json()) == plan
        for model in (MODEL, models.create("lenet5")):
            with contextlib.suppress(ValueError):
                cut(model, plan)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": {"stage1.0": {"out": [0, 10**12], "in": None}}}, "must be increasing channel indices"),
        ({"layers": {"stage1.0": {"out": [0, 10**400], "in": None}}}, "must be increasing channel indices"),
        (
            {"layers": {"stage1.0": {"out": [0, 999], "in": None}}},
            r"'stage1.0': 'out' keeps channel 999, but there are",
        ),
        ({"widths": {"stage1.0": [10**12, 1]}}, "'widths' is not what a plan holds there"),
        ({"cost": {"macs": {"dense": 0, "pruned": 0}}}, "'cost' is not what"),
        ({"cost": {"macs": {"dense": 5}}}, "'cost' is not what"),
        ({"groups": {"stage1.0": {"size": 3, "kept": 0}}}, "'groups' is not what"),
        ({"gamma": float("nan")}, "'gamma' is not what"),
    ],
)
def test_plans_that_claim_too_much_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PruningPlan.from_json(json.dumps(json.loads(PLAN.to_json()) | change))


def test_files_of_any_size_are_refused_before_they_are_read(tmp_path: Path) -> None:
    """Also one that has no bytes on the disk, or no end."""
    path = tmp_path / "plan.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    for read in (PruningPlan.load, read_json):
        with pytest.raises(ValueError, match=f"more than {LARGEST >> 20} MiB"):
            read(path)
    with pytest.raises(ValueError, match="more than"):
        PruningPlan.load("/dev/zero")
    (tmp_path / "deep.json").write_text("[" * 10**6)
    with pytest.raises(ValueError, match=r"deep\.json is damaged \(it is nested too deeply\)"):
        read_json(tmp_path / "deep.json")


@fuzz(100)
@given(texts(json.loads(BOTTLENECKS.to_json())))
def test_bottleneck_plans(text: str) -> None:
    with contextlib.suppress(ValueError):
        plan = BottleneckPlan.from_json(text)
        assert BottleneckPlan.from_json(plan.to_json()) == plan


def test_ranks_above_the_channels_are_refused() -> None:
    """They would be allocated before the weights are looked at."""
    for ranks in ({"in": 1, "out": 10**12}, {"in": 2, "out": 1}):
        text = json.dumps(json.loads(BOTTLENECKS.to_json()) | {"layers": {"stage1.0": ranks}})
        with pytest.raises(ValueError, match=r"layer 'stage1\.0' has ranks .* but 1 input and 32 output channels"):
            BottleneckPlan.from_json(text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a place for the files of all examples."""
    return tmp_path_factory.mktemp("files")


@fuzz(60)
@given(mutations(["a.weight", "b.weight"]))
def test_masks(folder: Path, order: object) -> None:
    """The names in the metadata are those of the tensors, or the file is refused."""
    tensors = {name: torch.ones(2, dtype=torch.bool) for name in ("a.weight", "b.weight")}
    save_file(tensors, folder / "masks", {"format": f"srr_ext masks 1 {json.dumps(order)}"})
    try:
        assert list(Masks.load(folder / "masks")) == order
    except ValueError as error:
        assert str(folder / "masks") in str(error)


@pytest.mark.parametrize("metadata", ["[" * 10**5, "1" * 5000, '["a"', "{}", "null"])
def test_masks_with_a_torn_list_of_names(folder: Path, metadata: str) -> None:
    save_file({"a": torch.ones(2, dtype=torch.bool)}, folder / "masks", {"format": f"srr_ext masks 1 {metadata}"})
    with pytest.raises(ValueError, match="masks is damaged"):
        Masks.load(folder / "masks")


@pytest.mark.parametrize("kind", LIARS)
def test_headers_that_lie(tmp_path: Path, kind: str) -> None:
    """By every reader of tensors."""
    path = tmp_path / "net.safetensors"
    path.write_bytes(LIARS[kind])
    for read in (Masks.load, lambda path: load_weights(MODEL, path), lambda path: artifacts.fill(MODEL, path)):
        with pytest.raises(ValueError, match=r"net\.safetensors"):
            read(path)  # type: ignore[operator]
    checkpoint = Checkpoint(tmp_path)
    checkpoint.commit("round", 1, {"a": torch.zeros(1)})
    (checkpoint.path / "round-1.safetensors").write_bytes(LIARS[kind])
    with pytest.raises(ValueError, match=r"round-1\.safetensors"):
        _ = checkpoint.finished("round").tensors["plan"]  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["pickle", "text", "zip", "legacy"])
@pytest.mark.parametrize("suffix", [".pt", ".th", ".safetensors"])
def test_pickles_that_run_code_are_refused(tmp_path: Path, kind: str, suffix: str) -> None:
    """As weights, under any name."""
    marker, path = tmp_path / "it-ran", tmp_path / f"net{suffix}"
    pickles(marker)[kind](path)
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        load_weights(MODEL, path)
    assert not marker.exists()


def test_the_pickles_of_these_tests_would_run(tmp_path: Path) -> None:
    """By whoever unpickles them without a thought, as `torch.load` once did."""
    for kind, write in pickles(tmp_path / "it-ran").items():
        write(tmp_path / "net.pt")
        if kind in ("zip", "legacy"):
            torch.load(tmp_path / "net.pt", weights_only=False)
        else:
            import pickle

            pickle.loads((tmp_path / "net.pt").read_bytes())
        (tmp_path / "it-ran").unlink()


class Zeros:
    """A pickle of it makes a gigabyte of zeros of ten bytes, and weights_only does not mind."""

    def __reduce__(self) -> tuple[object, ...]:
        return bytearray, (10**9,)


def test_checkpoints_that_unfold_are_refused(tmp_path: Path) -> None:
    """Byte arrays of any length, and compressed archives; the fixture sees to it that neither is unfolded."""
    import zipfile

    path, packed = tmp_path / "net.pt", tmp_path / "packed.pt"
    for new in (True, False):
        torch.save({"a": Zeros()}, path, _use_new_zipfile_serialization=new)
        with pytest.raises(ValueError, match="it asks for byte arrays"):
            read_checkpoint(path)
    torch.save(MODEL.state_dict(), path)
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as other:
        for name in archive.namelist():
            other.writestr(name, archive.read(name))
    with pytest.raises(ValueError, match="it is compressed"):
        read_checkpoint(packed)
    assert read_checkpoint(path).keys() == MODEL.state_dict().keys()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "odd",
    [
        lambda w: w.to_sparse(),
        lambda w: w.to("meta"),
        lambda w: torch.nested.nested_tensor([w]),
        lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8),
        lambda w: w.to(torch.complex64),
    ],
    ids=["sparse", "meta", "nested", "quantized", "complex"],
)
def test_tensors_that_are_no_table_of_numbers_are_refused(tmp_path: Path, odd: object) -> None:
    state = MODEL.state_dict()
    state["classifier.weight"] = odd(state["classifier.weight"])  # type: ignore[operator]
    torch.save(state, tmp_path / "net.pt")
    with pytest.raises(ValueError, match=r"classifier\.weight is no plain tensor"):
        load_weights(MODEL, tmp_path / "net.pt")
    vast = dict(MODEL.state_dict()) | {"classifier.weight": torch.zeros(1).expand(10**12)}
    torch.save(vast, tmp_path / "net.pt")
    with pytest.raises(ValueError, match=r"classifier\.weight has shape \[1000000000000\]"):
        load_weights(MODEL, tmp_path / "net.pt")


@fuzz(100)
@given(mutations(vars(Reached("round", 1, "round-1.safetensors", "fine-tune", "training-a.safetensors", 10))))
def test_records_of_what_is_finished(folder: Path, record: object) -> None:
    checkpoint = Checkpoint(folder)
    checkpoint.path.mkdir(exist_ok=True)
    (checkpoint.path / "reached.json").write_text(json.dumps(record))
    with contextlib.suppress(ValueError):
        reached = checkpoint.reached
        assert reached.number >= 0 and reached.log >= 0 and isinstance(reached.stage + reached.state, str)


SETTINGS = {"model": "resnet20", "keep_macs": 0.5, "seed": 1, "ignored": ["a"], "dense": {"epochs": 3, "lr": 0.1}}


@fuzz(60)
@given(mutations(SETTINGS).map(yaml.safe_dump) | mutations(SETTINGS).map(json.dumps) | st.text(max_size=30))
def test_settings(folder: Path, text: str) -> None:
    """Either a configuration whose values have the right kinds, or one line and exit code 2."""
    (folder / "settings.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
    errors: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stderr.write", errors.append)
        try:
            config = parse(PruneConfig, ["--config", str(folder / "settings.yaml")], "srr prune")
            assert isinstance(config.model, str) and isinstance(config.seed, int) and isinstance(config.dense.lr, float)
        except UsageError as error:
            errors = [f"{error}\n"]
        except SystemExit as error:
            assert error.code == 2
    for line in errors:
        assert line.count("\n") == 1 and line[:-1].isprintable() and len(line) < 3000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [x, x]\nb: &b [*a, *a]\nignored: [*b, *b]", "alias"),
        ("ignored: &a [*a]", "alias"),
        ("config: other.yaml", "alias"),
        ("config: 'ignored: [&a x, *a]'", "alias"),
        ("ignored: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("a: " + "b" * (1 << 20), "too large"),
        ("seed: null", "--seed: cannot be None"),
        ("dense: 5", "--dense: cannot be 5"),
        ("fine_tune: {epochs: " + "9" * 5000 + "}", "cannot be read as settings"),
        ('weights: "a\\0b"', "zero character"),
        ("ignored: {'': null}", "cannot be read as settings"),
    ],
)
def test_settings_that_unfold_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    """At once: aliases of aliases once took half a minute and all of the memory."""
    monkeypatch.chdir(tmp_path)
    Path("settings.yaml").write_text(text)
    Path("other.yaml").write_text("ignored: [&a x, *a]")
    began = time.monotonic()
    with pytest.raises(UsageError, match=message):
        parse(PruneConfig, ["--config", "settings.yaml"], "srr prune")
    assert time.monotonic() - began < 5


def test_settings_cannot_make_objects(tmp_path: Path) -> None:
    """YAML's tags for Python objects are not known."""
    marker, path = tmp_path / "it-ran", tmp_path / "settings.yaml"
    path.write_text(f"model: !!python/object/apply:os.mkdir ['{marker}']")
    with pytest.raises(SystemExit) as left:
        parse(PruneConfig, ["--config", str(path)], "srr prune")
    assert left.value.code == 2
    assert not marker.exists()
    yaml.unsafe_load(path.read_text())
    assert marker.exists(), "the file would do nothing anyway"


def test_messages_are_one_line_that_a_terminal_does_not_obey() -> None:
    message = str(UsageError("--weights", "has \x1b[2J\x07name\nand\u202e more" + "x" * 10_000))
    assert (
        message.isprintable()
        and message.startswith(r"--weights: has \x1b[2J\x07name and\u202e more")
        and len(message) < 2100
    )


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished comparison."""
    folder = tmp_path_factory.mktemp("comparison")
    add_comparison(folder, keeps=(0.5,), seeds=(0, 1))
    return folder


@fuzz(80)
@given(st.data())
def test_comparisons(comparison: Path, data: st.DataObject) -> None:
    """One file of a comparison is another: all of it is read and shown, or refused."""
    files = sorted(path for path in comparison.rglob("*.json"))
    path = data.draw(st.sampled_from(files))
    before = path.read_text()
    path.write_text(data.draw(texts(json.loads(before))), encoding="utf-8", errors="replace")
    try:
        loaded = results.load(comparison)
        results.as_csv(loaded.rows)
        results.result_table(comparison)
    except ValueError as error:
        assert str(comparison) in str(error)
    finally:
        path.write_text(before)


def test_a_damaged_comparison_is_one_line(
    comparison: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What readers refuse at any depth of a command does not come out as a traceback."""
    from srr_ext.cli.parsing import command
    from srr_ext.config import CompareConfig

    copy = tmp_path / "comparison"
    shutil.copytree(comparison, copy)
    next(copy.glob("cells/*/cell.json")).write_text('{"method": "\\u001b[2J"}')
    assert command(CompareConfig, "x", lambda *_: print(results.load(copy)))([], prog="srr compare") == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and "is not a finished cell of a comparison" in captured.err
