"""`make gpu-check`: its rehearsal on a CPU, and that nothing can hold it up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import build_script
import pytest
import torch

script = build_script.load("benchmarks/gpu_check.py")
PYTHON = sys.executable


def runner(folder: Path, seconds: float = 60):
    return script.Runner(folder / "logs", {}, seconds)


def stage(name: str, code: str, seconds: float = 30):
    return script.Stage(name, [PYTHON, "-c", code], seconds)


def is_running(pid: int) -> bool:
    """Whether a process is there and not merely waiting to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_stage_that_passes_returns_its_output(tmp_path):
    run = runner(tmp_path)
    assert run.run(stage("one", "print('[1]')")) == "[1]\n"
    assert (
        script.last_json("noise\n[1]\n") == [1] and script.last_json("noise") is None and script.last_json(None) is None
    )
    assert [(o.name, o.status, o.tail) for o in run.outcomes] == [("one", "passed", "")]


def test_a_stage_that_fails_is_kept_with_the_end_of_its_output(tmp_path):
    run = runner(tmp_path)
    assert run.run(stage("one", "import sys; print('x' * 9000); sys.exit('why')")) is None
    assert run.run(script.Stage("two", [str(tmp_path / "no program")], 5)) is None
    assert [o.status for o in run.outcomes] == ["failed", "failed"]
    assert run.outcomes[0].tail.endswith("why\n") and len(run.outcomes[0].tail) == script.TAIL
    assert "no program" in run.outcomes[1].tail


def test_a_record_does_not_name_the_folders_of_the_machine(tmp_path):
    run = runner(tmp_path)
    run.run(stage("one", f"import sys; print({str(script.ROOT / 'csrc')!r}, sys.prefix); sys.exit(1)"))
    assert run.outcomes[0].tail.split() == ["./csrc", "PYTHON"]


def test_a_stage_that_hangs_is_killed_with_its_children_and_the_next_one_runs(tmp_path):
    code = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""
    run = runner(tmp_path)
    assert run.run(stage("hangs", code, 3)) is None
    assert run.run(stage("next", "")) is not None
    assert [o.status for o in run.outcomes] == ["timed out", "passed"]
    assert not is_running(int((tmp_path / "logs" / "hangs.log").read_text()))


def test_nothing_runs_once_the_time_for_everything_is_over(tmp_path):
    run = runner(tmp_path, seconds=2)
    assert run.run(stage("long", "import time; time.sleep(600)", 60)) is None
    assert run.run(stage("late", "")) is None
    assert [o.status for o in run.outcomes] == ["timed out", "not run"]


def test_what_is_missing_is_named_with_the_way_to_bring_it(tmp_path, monkeypatch):
    monkeypatch.setattr(script, "REQUIRED", {"torch": "torch", "no_such_module": "no-such-package>=3"})
    run = runner(tmp_path)
    script.check_modules(run, PYTHON)
    assert [o.status for o in run.outcomes] == ["passed", "failed"]
    assert "missing: 'no-such-package>=3'. With a network: pip install" in run.outcomes[1].tail
    assert "--wheels FOLDER" in run.outcomes[1].tail


def test_all_required_modules_are_here():
    """Then the list names modules, and not packages."""
    missing = [name for name in script.REQUIRED if script.last_json(_find(name)) != []]
    assert not missing


def _find(name: str) -> str:
    done = subprocess.run([PYTHON, "-c", script.FIND_MODULES, name], capture_output=True, text=True, check=True)
    return done.stdout


def test_the_stages_of_a_gpu_name_files_and_tests_that_exist(tmp_path):
    stages = [
        *script.test_stages(PYTHON, "cuda"),
        *script.sanitizer_stages(PYTHON, "cuda"),
        *script.benchmark_stages(PYTHON, "cuda", tmp_path, quick=False),
    ]
    assert len({stage.name for stage in stages}) == len(stages)
    named = [word for stage in stages for word in stage.command if word.endswith(".py")]
    assert len(named) > 15 and all((build_script.ROOT / word).is_file() for word in named)
    assert max(stage.seconds for stage in stages) < script.SECONDS_IN_ALL / 3  # no stage can eat the time of all


@pytest.mark.slow
def test_the_rehearsal_passes_and_writes_its_results(tmp_path):
    command = [PYTHON, "benchmarks/gpu_check.py", "--device", "cpu", "--quick", "--output", str(tmp_path)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "COV"))}
    done = subprocess.run(
        command, cwd=build_script.ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (record,) = tmp_path.glob("cpu-*.json")
    result = json.loads(record.read_text(encoding="utf-8"))
    assert result["passed"] and {s["status"] for s in result["stages"]} == {"passed"}
    assert {"modules", "machine", "tests", "every op", "table"} <= {s["name"] for s in result["stages"]}
    assert result["environment"]["torch"] and result["benchmarks"] and result["machine_info"]
    text = record.with_suffix(".md").read_text(encoding="utf-8")
    assert text.startswith("# gpu-check: passed, CPU") and "resnet56" in text
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_nothing_is_built_and_nothing_written(tmp_path):
    command = [PYTHON, "benchmarks/gpu_check.py", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=build_script.ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1 and "torch finds no CUDA device" in done.stdout
    assert not list(tmp_path.glob("*.*")) and not (tmp_path / "logs" / "build.log").exists()


def test_a_rehearsal_has_to_say_where_its_results_go():
    done = subprocess.run(
        [PYTHON, "benchmarks/gpu_check.py", "--device", "cpu"], cwd=build_script.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and "give --output FOLDER" in done.stderr
