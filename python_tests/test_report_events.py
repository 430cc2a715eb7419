"""TensorBoard events hold the training records and the results, under the names the documentation gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from srr_ext.report import EventLog

RECORDS = [
    {"stage": stage, "epoch": epoch, "lr": 0.1 * epoch, "loss": 1 / epoch, "train_top1": 50.0, "validation_top1": 60.0}
    for stage in ("train dense", "fine-tune")
    for epoch in (1, 2, 3)
]
REPORT = {
    "model": "digits_cnn", "allocator": "srr", "gamma": 0.05, "seed": 0, "command": ["srr", "prune"],
    "macs": {"dense": 100, "pruned": 50}, "top1": {"dense": 98.5, "final": 99.0, "after_surgery": None},
    "latency_ms": {"dense": 2.0, "pruned": 1.0, "device": "cpu"}, "environment": {"torch": "2"},
}  # fmt: skip


def read(folder: Path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder / "events"))
    events.Reload()
    return events


def test_records_become_scalars(tmp_path: Path) -> None:
    with EventLog(tmp_path) as log:
        for record in RECORDS:
            log.log(record)
        log.log({"stage": "fine-tune", "epoch": 4, "loss": float("nan"), "note": "x"})
    events = read(tmp_path)
    names = ("lr", "loss", "train_top1", "validation_top1")
    assert set(events.Tags()["scalars"]) == {f"{stage}/{n}" for stage in ("train dense", "fine-tune") for n in names}
    for stage in ("train dense", "fine-tune"):
        points = [(point.step, point.value) for point in events.Scalars(f"{stage}/loss")]
        assert points == [(1, pytest.approx(1)), (2, pytest.approx(1 / 2)), (3, pytest.approx(1 / 3))]


def test_summary(tmp_path: Path) -> None:
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    with EventLog(tmp_path) as log:
        log.summary(REPORT)
    events = read(tmp_path)
    values = {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]}
    assert values == {
        "result/macs.dense": 100, "result/macs.pruned": 50, "result/top1.dense": 98.5, "result/top1.final": 99.0,
        "result/latency_ms.dense": 2.0, "result/latency_ms.pruned": 1.0,
    }  # fmt: skip
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    settings = HParamsPluginData.FromString(content).session_start_info.hparams
    assert set(settings) == {"model", "allocator", "gamma", "seed"}
    assert settings["model"].string_value == "digits_cnn"


def test_nothing_logged_leaves_no_folder(tmp_path: Path) -> None:
    with EventLog(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_bad_record(tmp_path: Path) -> None:
    with EventLog(tmp_path) as log, pytest.raises(ValueError, match="record: expected stage, epoch"):
        log.log({"loss": 1.0})
