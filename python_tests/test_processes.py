"""Several processes that train one network together: what each gets, what they exchange, and what comes out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from build_script import load
from processes_worker import RECIPES, SHAPES, net, some_images, tensors_of, trained
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import TensorDataset

from srr_ext.data import Augment, Batches, ImageData, from_datasets
from srr_ext.data.streamed import StreamedData
from srr_ext.processes import ALONE, Processes, is_first, processes, started
from srr_ext.training import TrainConfig, train

WORKER = Path(__file__).with_name("processes_worker.py")
COUNTS = (2, 3)


def torchrun(count: int, *arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Start a script in so many processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *map(str, arguments)],
        env=environment, cwd=folder, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip


@pytest.fixture(scope="module", params=COUNTS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Let the processes do all that they have to do, once for all tests; return where they have left it."""
    found = tmp_path_factory.mktemp(f"{request.param}")
    result = torchrun(request.param, WORKER, found, folder=found)
    assert result.returncode == 0, result.stderr
    return found


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, Any]]:
    """Return what each of them has found."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("found-*.json"))]


def merged(shares: list[list[tuple[Tensor, Tensor]]], sizes: list[int]) -> list[tuple[Tensor, Tensor]]:
    """Put the shares of every batch back in their order; those without a label do not count."""
    whole = []
    for parts, size in zip(zip(*shares, strict=True), sizes, strict=True):
        images = parts[0][0].new_full((size, *parts[0][0].shape[1:]), torch.nan)
        labels = parts[0][1].new_full((size,), -1)
        for rank, (x, y) in enumerate(parts):
            assert len(x) == max(1, len(y)), "an image without a label where there is none for a process"
            images[rank :: len(parts)], labels[rank :: len(parts)] = x[: len(y)], y
        whole.append((images, labels))
    return whole


def streamed(workers: int) -> StreamedData:
    """Return the images of `some_images`, to be read while training."""
    held = some_images()
    train_set, test_set = (TensorDataset(split.images, split.labels) for split in (held.train, held.test))
    augment = Augment(crop=1, flip=True, cutout=3)
    data = from_datasets("noise", train_set, test_set, held.classes, augment=augment, workers=workers)
    assert isinstance(data, StreamedData)
    return data


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("batch_size", [5, 8, 100])
def test_the_shares_are_the_batch(count: int, split: str, batch_size: int) -> None:
    """Bit for bit, crops, mirrors and squares included, in every epoch."""
    _check_shares(some_images(), count, split, batch_size)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_the_shares_of_images_that_are_read_are_the_batch(workers: int) -> None:
    """Likewise, by any number of workers."""
    for split, batch_size in (("train", 7), ("test", 7), ("test", 1)):
        _check_shares(streamed(workers), 3, split, batch_size)


def _check_shares(data: ImageData, count: int, split: str, batch_size: int) -> None:
    training = split == "train"

    def make() -> Batches:
        return data.batches(split, batch_size, train=training, seed=3)

    alone, shares = make(), [make().divided(Processes(rank, count)) for rank in range(count)]
    n_images = data.size(split)
    for _ in range(2):
        whole, parts = list(alone), [list(share) for share in shares]
        sizes = shares[0].sizes
        assert all(share.sizes == sizes and len(share) == len(part) for share, part in zip(shares, parts, strict=True))
        left_out = n_images - sum(sizes)
        assert left_out == (n_images % batch_size if training and n_images % batch_size < count else 0)
        got = merged(parts, sizes)
        assert len(whole) - len(got) == (left_out > 1)  # one process leaves out but a single image
        for (x, y), (images, labels) in zip(whole, got, strict=False):
            assert torch.equal(y, labels) and torch.equal(x, images)


def test_a_batch_has_an_image_for_everybody() -> None:
    """Where it is for training; elsewhere some have none."""
    data = some_images()
    with pytest.raises(ValueError, match="batch_size must be at least 4, an image for each of so many processes, but"):
        data.batches("train", 3, train=True).divided(Processes(0, 4))
    with pytest.raises(ValueError, match="but a batch has 3; start fewer"):
        some_images(3).batches("train", 16, train=True).divided(Processes(0, 4))
    shares = [list(data.batches("test", 1).divided(Processes(rank, 4))) for rank in range(4)]
    assert [sum(len(labels) for _, labels in share) for share in shares] == [data.size("test"), 0, 0, 0]


def test_one_process_asks_nobody() -> None:
    """And gets back what it gives."""
    assert processes() == ALONE and ALONE.first and ALONE.count == 1
    assert ALONE.sum(1, 2.5) == [1, 2.5] and ALONE.gather(torch.ones(2)).shape == (1, 2)
    made = object()
    assert ALONE.from_first(lambda: made) is made
    ALONE.agree("plan", b"x")
    ALONE.wait()


def test_who_was_started_with_whom(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torchrun says it in the environment; a number that is none counts as one process."""
    for world, rank, wanted in (
        (None, None, (1, True)),
        ("2", "0", (2, True)),
        ("2", "1", (2, False)),
        ("1", "3", (1, True)),
        ("many", "1", (1, True)),
        ("0", "0", (1, True)),
    ):
        for name, value in (("WORLD_SIZE", world), ("RANK", rank)):
            monkeypatch.delenv(name, raising=False)
            if value is not None:
                monkeypatch.setenv(name, value)
        assert (started(), is_first()) == wanted


@pytest.mark.slow
@pytest.mark.timeout(300)
class TestTogether:
    """What two and three processes have found; they are started once."""

    def test_they_exchange_words(self, found: list[dict[str, Any]]) -> None:
        """Sums, tensors and what the first one alone makes reach all of them."""
        count = len(found)
        said = [each["say"] for each in found]
        assert [words["rank"] for words in said] == [*range(count)]
        assert [words["first"] for words in said] == [rank == 0 for rank in range(count)]
        for words in said:
            assert words["count"] == words["states alike"] == count
            assert words["sum"] == [2**53 - 9 + count, sum(range(count)) / 2]
            assert words["gathered"] == [[[rank, 10]] for rank in range(count)]
            assert words["from first"] == {"words": ["ä", 0], "nothing": None, "many": "x" * 100_000}
            assert words["nothing"] is None

    def test_they_say_who_does_not_agree(self, found: list[dict[str, Any]]) -> None:
        """All of them the same; the others than the first that differ are named."""
        lines = {each["say"]["disagreement"] for each in found}
        assert len(lines) == 1
        line, count = lines.pop(), len(found)
        assert line.startswith(f"{count} processes do not agree on the colour of the bike shed (SHA-256 ")
        assert " in 0, " in line and f" in {count - 1})" in line and line.count(" in ") == 2

    @pytest.mark.parametrize("shape", [*SHAPES, "timm"])
    def test_batch_normalisation_is_that_of_all_images(self, found: list[dict[str, Any]], shape: str) -> None:
        """Results, gradients and running statistics, beside those of the whole in float64 by torch."""
        for each in found:
            for kind, limit in (("float64", 1e-12), ("float32", 5e-6), ("bfloat16", 2e-2)):
                far = each["normalise"][f"{shape}, {kind}"]
                assert far.pop("kind") == 1, "the type of the result is that of the images"
                near = limit * (10 if shape == "far from zero" else 1)  # torch's own kernels lose as much there
                assert max(far.values()) < near, (kind, far)
                assert far["running"] < 5e-6

    def test_nothing_is_exchanged_for_evaluation(self, found: list[dict[str, Any]]) -> None:
        """Where batch normalisation has its statistics already."""
        assert all(each["stand_still"]["alike"] for each in found)

    def test_they_drop_out_different_numbers(self, found: list[dict[str, Any]]) -> None:
        """Of the same image; else a part of the noise would be lost."""
        dropped = {tuple(each["drop"]) for each in found}
        assert len(dropped) == len(found) and all(0.3 < sum(row) / len(row) < 0.7 for row in dropped)

    def test_a_stop_changes_nothing(self, found: list[dict[str, Any]]) -> None:
        """Each goes on with its own random numbers; the state of more or fewer is refused."""
        for each in found:
            assert each["go_on"]["alike"] and each["go_on"]["differ"]
            assert each["go_on"]["states"] == {"random:cpu": [len(found)]}
            assert each["go_on"]["refused"].startswith("the saved state is that of another number of processes than")

    def test_evaluation_counts_each_image_once(self, found: list[dict[str, Any]]) -> None:
        """Where they do not divide, and where there are fewer images than processes."""
        for each in found:
            assert len(each["count_right"]) == 6 and all(each["count_right"].values()), each["count_right"]

    def test_recalibration_is_that_of_one(self, found: list[dict[str, Any]]) -> None:
        """Up to rounding in float64."""
        for each in found:
            assert set(each["measure_statistics"]) == {"16", "7"}
            assert max(each["measure_statistics"].values()) < 1e-12

    def test_fewer_images_than_processes_are_refused(self, found: list[dict[str, Any]]) -> None:
        """Before the first step, by all of them."""
        for each in found:
            assert each["too_few"]["images"].startswith(f"batch_size must be at least {len(found)}, an image for each")

    def test_a_layer_that_is_not_used_is_named(self, found: list[dict[str, Any]]) -> None:
        """In the first step already, where weights would step apart; frozen, it is no matter."""
        for each in found:
            assert each["leave_unused"]["said"].startswith(
                "model has a parameter that its scores do not depend on, spare.weight and 1 more, for which several"
            )
            assert each["leave_unused"]["alike"]

    @pytest.mark.parametrize("name", RECIPES)
    def test_the_result_is_that_of_one_process(self, folder: Path, found: list[dict[str, Any]], name: str) -> None:
        """Up to rounding; and the same bits in all of them."""
        first, *others = (load_file(folder / f"{name}-{rank}.safetensors") for rank in range(len(found)))
        for other in others:
            assert all(torch.equal(tensor, other[key]) for key, tensor in first.items())
        model, history = trained(name)
        limit = 0.02 if RECIPES[name].precision == "bf16" else 2e-5
        for key, tensor in tensors_of(model).items():
            torch.testing.assert_close(first[key], tensor, rtol=limit, atol=limit, msg=f"{name}, {key}")
        for each in found:
            for theirs, mine in zip(each["histories"][name], history, strict=True):
                assert theirs["loss"] == pytest.approx(mine["loss"], rel=limit)
                assert {key: theirs[key] for key in ("stage", "epoch", "lr")} == {
                    key: mine[key] for key in ("stage", "epoch", "lr")
                }
                if RECIPES[name].precision != "bf16":  # where rounding may change who is right
                    assert theirs["train_top1"] == mine["train_top1"]
                    assert theirs["validation_top1"] == mine["validation_top1"]

    def test_the_recipes_differ(self, folder: Path) -> None:
        """Or it would say little that each of them is as it should be."""
        files = [load_file(path) for path in folder.glob("*-0.safetensors")]
        seen = [torch.cat([tensor.flatten().double() for tensor in file.values()]) for file in files]
        assert len(seen) == len(RECIPES)
        for index, one in enumerate(seen):
            # The mean over a whole batch does not see how it was divided: order alone differs, in the last digits.
            close = [o for o in seen[:index] if o.shape == one.shape and float((o - one).abs().max()) < 1e-4]
            assert len(close) <= 1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_compiled_network_is_trained_by_two(tmp_path: Path) -> None:
    """Batch normalisation of all images goes into what is compiled."""
    if shutil.which("g++") is None:
        pytest.skip("there is no C++ compiler")
    result = torchrun(2, WORKER, tmp_path, "compiled", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    model, _ = trained("one batch")
    first, second = (load_file(tmp_path / f"compiled-{rank}.safetensors") for rank in range(2))
    for key, tensor in tensors_of(model).items():
        assert torch.equal(first[key], second[key])
        torch.testing.assert_close(first[key], tensor, rtol=1e-4, atol=1e-4)


def test_one_process_may_leave_a_layer_unused() -> None:
    """Only where others would wait for its gradient it has to be frozen."""
    from processes_worker import Unused

    model = Unused()
    before = model.spare.weight.clone()
    train(model, some_images(), TrainConfig(epochs=1, batch_size=16, weight_decay=0.1), device="cpu")
    assert torch.equal(model.spare.weight, before) and not torch.equal(
        model.get_parameter("used.0.weight"), net()[0].weight
    )


def test_a_transform_of_batches_draws_in_each_process_anew() -> None:
    """Of its share, so that no two images get the same noise."""
    base = streamed(0)
    noisy = replace(base, mean=None, std=None, crop=0, flip=False, cutout=0, batch_transform=torch.randn_like)
    source = TensorDataset(some_images().train.images.float(), some_images().train.labels)
    noisy = replace(noisy, train=replace(noisy.train, source=source))

    def noise(share: Processes) -> Tensor:
        return next(iter(noisy.batches("train", 8, train=True, seed=1).divided(share)))[0]

    one, other = (noise(Processes(rank, 2)) for rank in range(2))
    assert not torch.equal(one, other) and torch.equal(one, noise(Processes(0, 2)))


def test_the_smallest_share_decides() -> None:
    """The last images of an epoch are left out where they are fewer than the processes, and only there."""
    data = some_images(20)
    for count, wanted in ((2, [9, 9, 2]), (3, [9, 9])):
        assert data.batches("train", 9, train=True).divided(Processes(0, count)).sizes == wanted
    assert data.batches("train", 9).divided(Processes(0, 3)).sizes == [9, 9, 2]


def test_what_is_computed_of_more_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts of a step add up; and the page shows the record, which is that of the model."""
    root = Path(__file__).parents[1]
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    scaling = load("benchmarks/scaling.py")
    work, wire = scaling.Work(64, 32.0, 10**9, (100, 100)), scaling.Wire(1e9, 0.01)
    assert scaling.step_seconds(work, 1, wire) == 2
    buckets, words = 39, 8 * 2 * 401
    assert scaling.step_seconds(work, 2, wire) == pytest.approx(1 + 1 + buckets * 0.02 + words / 1e9 + 4 * 0.01)
    assert scaling.step_seconds(work, 4, wire) == pytest.approx(
        0.5 + 1.5 + buckets * 0.06 + 3 * (words / 1e9 + 4 * 0.01)
    )
    free = scaling.Wire(1e30, 0.0)
    assert scaling.efficiency(work, 8, free) == pytest.approx(1)
    record = json.loads((root / "benchmarks" / "results" / "scaling-cpu.json").read_text())
    for found, wanted in zip(record["computed"]["rows"], scaling.projections(), strict=True):
        assert found == pytest.approx(wanted)
    page = (root / "docs" / "distributed.md").read_text()
    assert all(table in page for table in scaling.tables(record))
