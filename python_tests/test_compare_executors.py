"""What runs the cells: processes of this machine that may die, commands of their own, tasks of Ray."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from comparing import QUICK, finished, save_weights

from srr_ext.__main__ import main
from srr_ext.cli.parsing import parse
from srr_ext.comparison.cells import Failure, Job, discard_all, run_cell
from srr_ext.comparison.executors import Executor, LocalExecutor, cores, gpus, make_executor
from srr_ext.comparison.grid import make_cells
from srr_ext.comparison.running import _job
from srr_ext.config import CompareConfig

GRID = ("--methods", "widest", "uniform+l2", "--keep", "0.5", "--seeds", "0", "1", "--no-controls")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the checkpoint of a dense network."""
    return save_weights(tmp_path_factory.mktemp("weights") / "net.th")


def make_jobs(folder: Path, weights: str, *flags: str) -> list[Job]:
    """Return the jobs of a small grid."""
    config = parse(CompareConfig, [*QUICK, *GRID, "--epochs", "0", *flags], "x")
    return [_job(config, folder, cell) for cell in make_cells(config, weights)]


def run(executor: Executor, jobs: Sequence[Job]) -> dict[str, Failure | None]:
    """Run jobs; return how each ended."""
    found: dict[str, Failure | None] = {}

    def done(job: Job, failure: Failure | None) -> None:
        assert job.name not in found
        found[job.name] = failure

    executor.run(jobs, done)
    return found


@pytest.mark.slow
def test_each_process_has_its_gpu_and_its_threads_and_does_many_cells(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WITNESS", str(tmp_path / "seen"))
    jobs = make_jobs(tmp_path, weights, "--model", "comparing:witness", "--threads", "2")[:3]
    assert run(LocalExecutor(["3", "5"]), jobs) == dict.fromkeys(job.name for job in jobs)
    assert finished(tmp_path) == sorted(job.name for job in jobs)
    seen = [json.loads(line) for line in (tmp_path / "seen").read_text().splitlines()]
    workers = {entry["pid"]: entry["gpu"] for entry in seen}
    assert sorted(workers.values()) == ["3", "5"] and os.getpid() not in workers
    assert {entry["threads"] for entry in seen} == {2}


@pytest.mark.slow
def test_a_process_that_dies_fails_its_cell_alone(weights: str, tmp_path: Path) -> None:
    """Its last words are kept, nothing of the cell is left, and another process does the rest."""
    jobs = make_jobs(tmp_path, weights)[:3]
    jobs[1] = replace(jobs[1], config=replace(jobs[1].config, model="comparing:deadly"))
    found = run(LocalExecutor([None]), jobs)
    assert list(found) == [job.name for job in jobs], "one process does them in order"
    failure = found.pop(jobs[1].name)
    assert failure is not None and failure.message == "the process died (signal 9, out of memory perhaps)"
    assert "last words" in failure.output
    assert set(found.values()) == {None} and finished(tmp_path) == sorted(found)
    assert not list((tmp_path / "cells").glob(".*"))


def test_a_failure_leaves_its_output_and_nothing_else(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Here one that a method of the user's own raises; the screen stays as it was."""

    def broken(*_: object) -> None:
        os.write(1, b"on the way\n")
        raise RuntimeError("two\n  lines")

    monkeypatch.setattr("srr_ext.prune.decide", broken)
    before = torch.get_num_threads()
    failure = run_cell(make_jobs(tmp_path, weights)[0])
    torch.set_num_threads(before)
    assert failure is not None and failure.message == "RuntimeError: two lines"
    assert failure.output.startswith("on the way\n") and "Traceback" in failure.output
    assert list((tmp_path / "cells").iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_what_an_earlier_process_left_is_removed(tmp_path: Path) -> None:
    """Half a cell, its output and its settings; not a finished one."""
    cells = tmp_path / "cells"
    for name in ("done_seed0", ".half_seed0.123.partial"):
        (cells / name).mkdir(parents=True)
        (cells / name / "plan.json").touch()
    (cells / ".half_seed0.123.partial.txt").touch()
    (cells / ".half_seed0.123.partial.json").touch()
    discard_all(tmp_path)
    assert [path.name for path in cells.iterdir()] == ["done_seed0"] and (cells / "done_seed0" / "plan.json").exists()


def test_a_process_per_gpu_or_group_of_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)

    def devices(**settings: object) -> list[str | None]:
        executor = make_executor(replace(CompareConfig(), **settings))
        assert isinstance(executor, LocalExecutor)
        return executor._devices

    assert devices() == ["0", "1", "2"] and devices(jobs=2) == ["0", "1"]
    assert devices(jobs=5) == ["0", "1", "2", "0", "1"], "several share one"
    assert devices(device="cpu") == [None] * cores() and devices(device="cpu", threads=10**6) == [None]
    several = "torchrun --nproc-per-node 2"
    assert devices(launcher=several, jobs=1) == ["0,1,2"] and devices(launcher=several, jobs=2) == ["0,2", "1"]
    assert devices(launcher=several) == ["0", "1", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-abc,7")
    assert gpus(CompareConfig()) == ["4", "GPU-abc", "7"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert gpus(CompareConfig()) == []


@pytest.mark.slow
def test_a_cell_may_be_a_command_of_its_own(weights: str, tmp_path: Path) -> None:
    """Started by torchrun it finds what it finds in a process; what goes wrong in it is told."""
    apart, inside = tmp_path / "apart", tmp_path / "inside"
    torchrun = "torchrun --standalone --nproc-per-node 1"
    job = make_jobs(apart, weights, "--launcher", torchrun)[0]
    assert job.launcher == torchrun and run(LocalExecutor([None]), [job]) == {job.name: None}
    inner = make_jobs(inside, weights)[0]
    assert run(LocalExecutor([None]), [inner]) == {inner.name: None}
    for name in ("plan.json", "model.safetensors", "cell.json"):
        assert (job.final / name).read_bytes() == (inner.final / name).read_bytes(), name
    two = replace(job, name="two", launcher="torchrun --standalone --nproc-per-node 2")
    bad = replace(job, name="bad", config=replace(job.config, weights="nowhere.th"))
    none = replace(job, name="none", launcher="no-such-program")
    found = run(LocalExecutor([None]), [two, bad, none])
    assert found["two"] is None, "two processes do it as well"
    assert found["bad"] is not None and found["bad"].message.startswith("--weights: ")
    assert found["none"] is not None and "there is no program no-such-program" in found["none"].message
    assert finished(apart) == sorted([job.name, "two"]) and not list((apart / "cells").glob(".*"))


@pytest.mark.slow
def test_tasks_of_a_ray_cluster(weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same cells as with processes of this machine, one that dies and one that fails among them."""
    ray = pytest.importorskip("ray", reason="ray is not installed; pip install 'srr_ext[ray]'")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    monkeypatch.chdir(tmp_path)
    flags = [*QUICK, *GRID, "--weights", os.path.relpath(weights), "--epochs", "0", "--seeds", "0"]
    assert main(["compare", *flags, "--executor", "ray", "--output", "ray"]) == 0
    assert not ray.is_initialized()
    assert main(["compare", *flags, "--output", "local"]) == 0
    assert finished(Path("ray")) == finished(Path("local")) and len(finished(Path("ray"))) == 2
    for name in finished(Path("ray")):
        files = [Path(place, "cells", name, "model.safetensors").read_bytes() for place in ("ray", "local")]
        assert files[0] == files[1], name
    assert Path("ray/comparison.csv").read_bytes() == Path("local/comparison.csv").read_bytes()
    # A cluster that runs already, on which tasks die and fail.
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        jobs = make_jobs(tmp_path / "more", weights)[:3]
        jobs[0] = replace(jobs[0], config=replace(jobs[0].config, model="comparing:deadly"))
        jobs[1] = replace(jobs[1], config=replace(jobs[1].config, weights="nowhere.th"))
        found = run(make_executor(replace(CompareConfig(), executor="ray", jobs=2, device="cpu")), jobs)
        assert ray.is_initialized()
        with pytest.raises(ValueError, match="threads must be at most 2, the cores of the cluster, but is 3"):
            run(make_executor(replace(CompareConfig(), executor="ray", threads=3, device="cpu")), jobs)
    finally:
        ray.shutdown()
    died, failed = found[jobs[0].name], found[jobs[1].name]
    assert died is not None and died.message.startswith("the task died (")
    assert failed is not None and failed.message.startswith("--weights: ")
    assert finished(tmp_path / "more") == sorted(job.name for job in jobs[2:])
    assert not list((tmp_path / "more" / "cells").glob(".*"))
