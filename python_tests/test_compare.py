"""``srr compare``: what it leaves, how it goes on after a stop, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from commands import refused
from comparing import QUICK, alive, at_work, findings, finished, save_weights, start, wait_for

from srr_ext.__main__ import main

GRID = ("--methods", "srr", "uniform+l2", "--keep", "0.5", "--seeds", "0", "--no-controls")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the checkpoint of a dense network."""
    return save_weights(tmp_path_factory.mktemp("weights") / "net.th")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a comparison that nothing has interrupted, its dense network trained in it."""
    folder = tmp_path_factory.mktemp("whole") / "grid"
    assert main(["compare", *QUICK, *GRID, "--dense.epochs", "2", "--output", str(folder)]) == 0
    return folder


@pytest.fixture
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)


def read(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_every_cell_is_a_run_folder_with_its_place_in_the_grid(whole: Path) -> None:
    assert finished(whole) == ["srr_macs0.5_seed0", "uniform+l2_macs0.5_seed0"]
    for name in finished(whole):
        cell, report = read(whole / "cells" / name / "cell.json"), read(whole / "cells" / name / "report.json")
        assert name == f"{cell['method']}_macs{cell['keep']}_seed{cell['seed']}" and cell["role"] == "method"
        assert report["target"]["macs"] == pytest.approx(cell["keep"], abs=1e-5)
        assert report["allocator"] == cell["settings"]["allocator"]
        assert report["macs"]["pruned"] <= cell["keep"] * report["macs"]["dense"]
        assert report["environment"]["threads"] == 1
    assert len({report["top1"]["dense"] for report in findings(whole).values()}) == 1, "one dense network for all"
    assert read(whole / "dense" / "report.json")["top1"] == findings(whole)["srr_macs0.5_seed0"]["top1"]["dense"]
    assert not list((whole / "cells").glob(".*")) and not (whole / "failed").exists()
    latency = read(whole / "latency.json")
    assert sorted(latency) == finished(whole)
    assert all(entry["dense_ms"] > 0 and entry["pruned_ms"] > 0 for entry in latency.values())
    assert {"report.html", "comparison.csv", "comparison.json"} <= {path.name for path in whole.iterdir()}


@pytest.mark.slow
def test_a_comparison_that_is_killed_goes_on_to_the_same_result(whole: Path, tmp_path: Path) -> None:
    """Kill the whole process group in the middle of a cell; what is found is what an undisturbed run finds."""
    grid = (*QUICK, *GRID, "--dense.epochs", "2")
    folder = tmp_path / "killed"
    process = start(folder, *grid, "--jobs", "1")
    wait_for(lambda: finished(folder) and at_work(folder), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    kept = {name: (folder / "cells" / name / "report.json").stat().st_mtime_ns for name in finished(folder)}
    assert len(kept) == 1 and list((folder / "cells").glob(".*.partial")), "nothing was interrupted"
    assert main(["compare", "--resume", str(folder)]) == 0
    assert len(finished(folder)) == 2 and not list((folder / "cells").glob(".*"))
    assert all((folder / "cells" / name / "report.json").stat().st_mtime_ns == time for name, time in kept.items())
    assert findings(folder) == findings(whole)
    for name in finished(folder):
        for file in ("plan.json", "model.safetensors", "cell.json"):
            paths = [place / "cells" / name / file for place in (folder, whole)]
            assert paths[0].read_bytes() == paths[1].read_bytes(), paths
    assert (folder / "comparison.csv").read_bytes() == (whole / "comparison.csv").read_bytes()


def test_only_a_comparison_can_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With its own settings alone."""
    for flags, line in {
        ("--resume", str(tmp_path)): f"--resume: {tmp_path} holds no comparison to go on with",
        ("--resume", str(tmp_path), "--keep", "0.4"): "--resume: goes alone: the settings are those of the comparison",
    }.items():
        assert main(["compare", *flags]) == 2 and line in capsys.readouterr().err


@pytest.mark.slow
def test_running_it_again_repeats_nothing_and_adds_what_is_new(
    whole: Path, in_empty_folder: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither the dense network nor a cell nor a time; a method, a share or a seed more is done beside them."""
    files = {path: path.stat().st_mtime_ns for part in ("cells", "dense") for path in (whole / part).rglob("*")}
    before = (whole / "latency.json").read_bytes(), (whole / "comparison.csv").read_bytes()
    again = ["compare", *QUICK, *GRID, "--dense.epochs", "2", "--output", str(whole)]
    capsys.readouterr()
    assert main([*again, "--jobs", "1"]) == 0
    assert "2 of 2 cells are finished already" in capsys.readouterr().err
    assert ((whole / "latency.json").read_bytes(), (whole / "comparison.csv").read_bytes()) == before
    methods = ("--methods", "srr", "widest", "uniform+l2")
    grown = [*QUICK, *methods, "--keep", "0.5", "--seeds", "0", "--no-controls"]
    assert main(["compare", *grown, "--dense.epochs", "2", "--output", str(whole)]) == 0
    assert {name for name in finished(whole) if "widest" in name} == {"widest_macs0.5_seed0"}
    assert all(path.stat().st_mtime_ns == time for path, time in files.items() if path.is_file())
    capsys.readouterr()
    for flags, line in {
        ("--methods", "srr", "widest"): "--methods: lacks uniform+l2",
        ("--methods", "widest", "srr", "uniform+l2"): "--methods: lacks srr in the first place",
        ("--keep", "0.4"): "--keep: lacks 0.5",
        ("--seeds", "1"): "--seeds: lacks 0",
        ("--fine-tune.weight-decay", "0.1"): "--fine-tune.weight-decay: is 0.1, but",
        ("--threads", "2"): "--threads: is 2, but",
        ("--floor", "0.2"): "--floor: is 0.2, but",
    }.items():
        found = refused(capsys, "compare", *grown, "--dense.epochs", "2", "--output", str(whole), *flags)
        assert found.startswith(line) and str(whole) in found and "name a new folder" in found, found


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_processes_end_with_the_command(weights: str, tmp_path: Path, stop: signal.Signals) -> None:
    """One line without a traceback if it can speak; no process is left, even if it cannot."""
    folder = tmp_path / "grid"
    process = start(folder, *QUICK, *GRID, "--epochs", "500", "--weights", weights, "--jobs", "2")
    wait_for(lambda: len(at_work(folder)) == 2, process)
    workers = at_work(folder)
    process.send_signal(stop)
    _, errors = process.communicate(timeout=60)
    wait_for(lambda: not any(map(alive, workers)), seconds=30)
    if stop != signal.SIGKILL:
        assert process.returncode == 130
        last = errors.splitlines()[-1]
        assert last == f"python -m srr_ext.compare: stopped; {folder} holds 0 finished cells; the same command goes on"
        assert "Traceback" not in errors


@pytest.mark.slow
def test_a_cell_that_fails_stops_no_other_and_is_tried_again(
    weights: str, in_empty_folder: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1, the reason in a file and on the screen."""
    methods = ("--methods", "uniform fine_tune.lr=1e30 as=wild", "widest", "--keep", "0.5", "--seeds", "0")
    command = ["compare", *QUICK, *methods, "--no-controls", "--weights", weights, "--output", "grid", "--jobs", "1"]
    with pytest.raises(SystemExit) as end:
        main(command)
    assert end.value.code == 1
    assert finished(Path("grid")) == ["widest_macs0.5_seed0"] and not list(Path("grid/cells").glob(".*"))
    failure = read(Path("grid/failed/wild_macs0.5_seed0.json"))
    assert failure["method"] == "wild" and "use a smaller learning rate" in failure["message"]
    assert "--fine-tune.lr: " in failure["message"]
    shown = " ".join(capsys.readouterr().out.split())
    assert "failed: wild, keep 0.5, seed 0: --fine-tune.lr" in shown and "tries what failed again" in shown
    before = Path("grid/failed/wild_macs0.5_seed0.json").stat().st_mtime_ns
    with pytest.raises(SystemExit):
        main(command)
    assert Path("grid/failed/wild_macs0.5_seed0.json").stat().st_mtime_ns > before


def test_two_commands_do_not_share_a_folder(in_empty_folder: None, weights: str) -> None:
    """Also if the first is not a comparison that this process knows."""
    import fcntl

    from srr_ext.cli.parsing import UsageError
    from srr_ext.comparison.running import opened
    from srr_ext.config import CompareConfig

    refusal = pytest.raises(UsageError, match="--output: another process is at work in grid")
    with opened(Path("grid"), CompareConfig()), refusal, opened(Path("grid"), CompareConfig()):
        pass
    with opened(Path("grid"), CompareConfig()), open("grid/.lock") as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--methods",), "--methods: must be at least one, but is empty"),
        (("--methods", "ssr"), "--methods: 'ssr': --allocator: no allocator is called 'ssr'; nearest: srr"),
        (("--methods", "srr+l3"), "--methods: 'srr+l3': --selector: no selector is called 'l3'"),
        (("--methods", "srr+l1+nothing"), "--methods: 'srr+l1+nothing': --update: no update is called 'nothing'"),
        (("--methods", "srr gamma=-1"), "--methods: 'srr gamma=-1': --gamma: must be 'auto' or above 0"),
        (("--methods", "srr retrain=scratch rounds=2"), "--methods: 'srr retrain=scratch rounds=2': --retrain: "),
        (("--methods", "srr", "srr+l1"), "--methods: 'srr+l1' is the same method as 'srr'; leave one out"),
        (("--keep", "0.5", "1.5"), "--keep: must be shares in (0, 1], but is 0.5, 1.5"),
        (("--keep", "0.5", "0.50"), "--keep: names something twice: 0.5, 0.5"),
        (("--seeds", "-1"), "--seeds: must be at least 0, but is -1"),
        (("--seeds", "1", "1"), "--seeds: names something twice: 1, 1"),
        (("--jobs", "0"), "--jobs: must be at least 1, but is 0"),
        (("--threads", "0"), "--threads: must be at least 1, but is 0"),
        (("--keep", "0.5", "0.01"), "--keep: 'srr' at 0.01: "),
        (("--methods", "srr", "srr floor=0.9"), "--keep: 'srr floor=0.9' at "),
        (("--validation", "2"), "--validation: must be in [0, 1)"),
        (("--data", "mnist:nowhere"), "--data: "),
        (("--weights", "nowhere.th"), "--weights: "),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    flags: tuple[str, ...], line: str, in_empty_folder: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """The flag is named, and the method where it is one of them; nothing is written."""
    assert refused(capsys, "compare", "--device", "cpu", *flags, "--output", "grid").startswith(line)


def test_folders_of_other_things_are_left_alone(in_empty_folder: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Files of the user's own, and the folder of another command."""
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("x")
    wanted = "--output: mine is in use and holds no comparison"
    assert refused(capsys, "compare", "--output", "mine").startswith(wanted)
    Path("mine/config.json").write_text("{}")
    assert refused(capsys, "compare", "--output", "mine").startswith(wanted)
    Path("mine/config.json").write_text("{")
    assert "is damaged" in refused(capsys, "compare", "--output", "mine")


def test_ray_is_asked_for_by_name(
    in_empty_folder: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    line = refused(capsys, "compare", "--device", "cpu", "--executor", "ray")
    assert line.startswith("--executor: ray is not installed; pip install 'srr_ext[ray]'"), line
