"""Images that cannot be read: an error that names the first, or left out and counted, as --skip-corrupt says."""

from __future__ import annotations

import io
import json
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import take_no_time
from PIL import Image

from srr_ext import data
from srr_ext.__main__ import main
from srr_ext.data import ImageData, Skipped, StreamedData, TensorData
from srr_ext.data.folder import check_image, read_image
from srr_ext.report import sections

RNG = np.random.default_rng(0)


def picture(side: int = 40, kind: str = "jpeg", **options: object) -> bytes:
    """Return the bytes of an image of noise, smooth enough for a JPEG."""
    noise = Image.fromarray(RNG.integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8)).resize((side, side))
    file = io.BytesIO()
    noise.save(file, kind, **options)
    return file.getvalue()


def deep() -> bytes:
    """Return the bytes of an image of 16 bits."""
    file = io.BytesIO()
    Image.fromarray(RNG.integers(0, 1 << 16, (40, 40), dtype=np.uint16)).save(file, "png")
    return file.getvalue()


def bomb() -> bytes:
    """Return the bytes of a tiny file that claims 400 million pixels, more than Pillow opens."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


CORRUPT = {
    "cut.jpg": lambda side: picture(side)[:-200],  # its header is whole
    "progressive.jpg": lambda side: picture(side, progressive=True)[:-200],
    "cut.png": lambda side: picture(side, "png")[:-200],
    "text.jpg": lambda side: b"not an image, whatever its name says",
    "empty.png": lambda side: b"",
    "deep.png": lambda side: deep(),
    "bomb.png": lambda side: bomb(),
    "cut.webp": lambda side: picture(side, "webp")[:-60],
}


@pytest.fixture(params=[40, 120], ids=["held", "streamed"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a folder of good images, small ones or large ones: two classes of eight and of four."""
    root = tmp_path / "set"
    for split, n in (("train", 8), ("test", 4)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for i in range(n):
                (root / split / name / f"{i}.jpg").write_bytes(picture(request.param))
    return root


def side_of(folder: Path) -> int:
    with Image.open(folder / "test/dog/3.jpg") as image:
        return image.width


def everything(images: ImageData, seed: int = 3) -> list[torch.Tensor]:
    """Return all batches of an epoch of every split."""
    batches = [images.batches("train", 4, train=True, seed=seed), images.batches("validation", 4)]
    return [part for loader in (*batches, images.batches("test", 4)) for batch in loader for part in batch]


@pytest.mark.parametrize("name", CORRUPT)
def test_without_the_flag_it_is_an_error_that_names_the_file(folder: Path, name: str) -> None:
    """Whenever it is met: at once where images are held, in the batches where they are streamed."""
    (folder / "train/cat" / name).write_bytes(CORRUPT[name](side_of(folder)))
    with pytest.raises(ValueError, match=rf"train/cat/{name} cannot be read as an image"):
        everything(data.load(f"folder:{folder}", image_size=side_of(folder), validation=0.2, workers=0))


@pytest.mark.parametrize("workers", [0, 2])
def test_left_out_they_might_never_have_been_there(folder: Path, tmp_path: Path, workers: int) -> None:
    """Every kind of damage at once: the same splits, order and augmentation, bit for bit, as without the files."""
    size = side_of(folder)
    clean = shutil.copytree(folder, tmp_path / "clean")
    for i, (name, make) in enumerate(CORRUPT.items()):
        where = folder / ("test" if i % 3 == 0 else "train") / ("cat" if i % 2 else "dog")
        (where / name).write_bytes(make(size))
    settings = {"image_size": size, "validation": 0.2, "workers": workers}
    found = data.load(f"folder:{folder}", skip_corrupt=True, **settings)
    expected = data.load(f"folder:{clean}", **settings)
    assert isinstance(found, TensorData if size == 40 else StreamedData) and type(found) is type(expected)
    assert (found.skipped.train, found.skipped.test) == (5, 3) and expected.skipped == Skipped()
    assert found.skipped.first.startswith(f"{folder}/train/cat/cut.webp (")  # the first in the order of the files
    assert [found.size(s) for s in ("train", "validation", "test")] == [13, 3, 8]
    for ours, theirs in zip(everything(found), everything(expected), strict=True):
        assert torch.equal(ours, theirs)


def test_test_images_alone(folder: Path) -> None:
    """The training images are not looked at then."""
    (folder / "train/cat/0.jpg").write_bytes(b"")
    (folder / "test/cat/0.jpg").write_bytes(b"")  # the first, whose size is what the others are compared with
    found = data.load(f"folder:{folder}", skip_corrupt=True, test_only=True, workers=0)
    assert (found.skipped.train, found.skipped.test, found.size("test")) == (0, 1, 7)
    assert found.skipped.first.startswith(f"{folder}/test/cat/0.jpg (")


def test_sizes_are_compared_among_the_readable_ones(folder: Path) -> None:
    """A truncated image of another size is left out; a whole one is an error still."""
    (folder / "train/dog/odd.jpg").write_bytes(picture(side_of(folder) + 8)[:-200])
    assert data.load(f"folder:{folder}", skip_corrupt=True, workers=0).skipped.train == 1
    (folder / "train/dog/odd.jpg").write_bytes(picture(side_of(folder) + 8))
    with pytest.raises(ValueError, match=r"differ in size .*odd\.jpg"):
        data.load(f"folder:{folder}", skip_corrupt=True, workers=0)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_without_any_readable_image_is_an_error(folder: Path, split: str) -> None:
    for path in (folder / split / "dog").iterdir():
        path.write_bytes(b"GIF89a")
    with pytest.raises(ValueError, match=rf"no image of the class folder .*{split}/dog can be read, such as .*0\.jpg"):
        data.load(f"folder:{folder}", skip_corrupt=True, workers=0)


def test_what_is_not_the_fault_of_the_image_stays_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is gone, and memory that is full: images that may be all right would be left out."""
    link = folder / "train/cat/gone.jpg"
    link.symlink_to(folder / "nowhere.jpg")
    with pytest.raises(ValueError, match=r"gone\.jpg cannot be read as an image .*No such file"):
        data.load(f"folder:{folder}", skip_corrupt=True, workers=0)
    link.unlink()

    def full(*_: object) -> None:
        raise MemoryError("no memory left")

    monkeypatch.setattr("srr_ext.data.folder.as_rgb", full)
    with pytest.raises(ValueError, match=r"cannot be read as an image \(no memory left\)"):
        data.load(f"folder:{folder}", skip_corrupt=True, workers=0)


def test_imagenet_takes_it_too_and_other_sets_do_not(tmp_path: Path) -> None:
    """Those have files of their own kinds."""
    content = picture(32)
    for split in ("train", "val"):
        for i in range(1000):
            (tmp_path / split / f"n{i:04}").mkdir(parents=True)
            (tmp_path / split / f"n{i:04}" / "0.jpg").write_bytes(content)
    (tmp_path / "val/n0007/1.jpg").write_bytes(content[:300])
    found = data.load(f"imagenet:{tmp_path}", skip_corrupt=True, image_size=32, workers=0)
    assert found.skipped.test == 1 and found.size("test") == 1000
    for name in ("digits", f"mnist:{tmp_path}", "cifar10"):
        with pytest.raises(ValueError, match=r"skip_corrupt applies to folder:PATH and imagenet:PATH"):
            data.load(name, skip_corrupt=True)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_the_quick_look_at_a_jpeg_finds_what_reading_it_would(tmp_path: Path, mode: str, progressive: bool) -> None:
    """Of files that end anywhere, and of files with wrong bytes."""
    path, results = tmp_path / "x.jpg", []
    whole = Image.fromarray(RNG.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((96, 72)).convert(mode)
    whole.save(path, quality=90, progressive=progressive)
    content = path.read_bytes()
    cases = [content[:n] for n in (*range(0, len(content), 50), *range(len(content) - 6, len(content) + 1))]
    for _ in range(60):
        torn = bytearray(content)
        torn[RNG.integers(len(torn))] = RNG.integers(256)
        cases.append(bytes(torn))
    for case in cases:
        path.write_bytes(case)
        fails = []
        for read in (read_image, check_image):
            try:
                read(path)
                fails.append(False)
            except ValueError:
                fails.append(True)
        assert fails[0] == fails[1]
        results.append(fails[0])
    assert 20 < sum(results) < len(results) - 20


def test_the_page_of_a_run_says_it() -> None:
    report = {"n_test_images": 50, "skipped_images": {"train": 3, "test": 0}}
    assert "cannot be read: 3 training and 0 test images" in sections.test_size(report)
    for nothing in ({}, {"skipped_images": {"train": 0, "test": 0}}):
        assert sections.test_size({"n_test_images": 50} | nothing).endswith("one image is 2 points.")


def test_the_commands_say_and_record_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once, on the error stream, and in report.json; evaluation counts what it could read."""
    take_no_time(monkeypatch)
    monkeypatch.chdir(folder)
    Path("train/cat/1.jpg").write_bytes(b"")
    Path("test/dog/1.jpg").write_bytes(b"")
    flags = ["--model", "digits_cnn", "--data", "folder:.", "--image-size", "32", "--workers", "0", "--skip-corrupt"]
    assert main(["train", *flags, "--epochs", "1", "--dense.batch-size", "8", "--output", "run"]) == 0
    captured = capsys.readouterr()
    said = captured.err
    assert "--image-size 32 --skip-corrupt --weights run/dense.safetensors" in " ".join(captured.out.split())
    line = "left out 1 training and 1 test images that cannot be read, the first train/cat/1.jpg (cannot identify"
    assert said.count("left out") == 1 and line in " ".join(said.split())
    report = json.loads(Path("run/report.json").read_text())
    assert report["skipped_images"] == {"train": 1, "test": 1} and report["n_test_images"] == 7
    assert json.loads(Path("run/config.json").read_text())["skip_corrupt"] is True
    for which in (["--run", "run"], [*flags, "--weights", "run/dense.safetensors"]):  # a run's record says it by itself
        assert main(["evaluate", *which]) == 0
        captured = capsys.readouterr()
        assert "of 7 test images" in captured.out and "left out 1 test images" in captured.err
