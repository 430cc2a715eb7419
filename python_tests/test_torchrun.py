"""Commands in two processes, as ``torchrun --nproc-per-node 2 -m srr_ext.prune`` starts them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from commands import take_no_time

from srr_ext.__main__ import main
from srr_ext.cli import parsing, running

WORKER = Path(__file__).with_name("torchrun_worker.py")
QUICK = ("--dense.epochs", "3", "--epochs", "2", "--device", "cpu")
COMMANDS = {
    "prune": ["prune", *QUICK, "--rounds", "2", "--keep-macs", "0.4"],
    "rewind": ["prune", *QUICK, "--retrain", "weight-rewind", "--rewind-to", "1ep", "--fine-tune.clip-norm", "1"],
    "sparsify": ["sparsify", *QUICK, "--schedule", "gradual", "--gradual.every", "4"],
    "train": ["train", "--epochs", "2", "--device", "cpu"],
}
TIMED = ("latency_ms", "speed_up", "formats", "command")
# The slowest of them takes 30 s on two busy cores; none may hang.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def start(*command: str, folder: Path, die: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    """Start a command in two processes, and wait for all of them."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])} | more
    environment |= {"DIE": die} if die else {}
    return subprocess.run(
        [*torchrun, *command],
        env=environment, cwd=folder, capture_output=True, text=True, check=False, timeout=200, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def watched(*commands: list[str], folder: Path, die: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    """Start commands where processes other than the first may not write, and may be told to die."""
    return start(str(WORKER), json.dumps(commands), folder=folder, die=die, **more)


def said(result: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the lines with which commands end, those of torchrun left out."""
    return [line for line in result.stderr.splitlines() if line.startswith(("srr ", "python -m srr_ext"))]


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if "events" not in path.parts}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of runs in two processes, which nothing has stopped."""
    folder = tmp_path_factory.mktemp("whole")
    commands = [[*command, "--output", name] for name, command in COMMANDS.items()]
    result = watched(*commands, folder=folder)
    assert result.returncode == 0, result.stderr
    (folder / "out.txt").write_text(result.stdout)
    (folder / "err.txt").write_text(result.stderr)
    return folder


def test_one_command_one_result(tmp_path: Path) -> None:
    """As the documentation starts it: one table, one progress, one folder, the accuracy of all 539 images."""
    result = start("-m", "srr_ext.prune", *QUICK, "--output", "run", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("digits_cnn on digits: srr x l1") == result.stdout.count("next: open") == 1
    for stage in ("train dense", "fine-tune", "recalibrate", "test final"):
        assert sum(line.startswith(f"{stage}: ") for line in result.stderr.splitlines()) == 1, result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["environment"]["processes"] == 2 and report["n_test_images"] == 539
    for accuracy in report["top1"].values():
        assert accuracy * 5.39 == pytest.approx(round(accuracy * 5.39), abs=1e-9)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["epoch"]) for line in log] == [
        *(("train dense", epoch) for epoch in (1, 2, 3)),
        *(("fine-tune", epoch) for epoch in (1, 2)),
    ]
    assert len(list((tmp_path / "run" / "events").iterdir())) == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_the_result_is_that_of_one_process(
    whole: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same files and records, and nearly the same losses: rounding alone differs, which ReLU makes larger."""
    take_no_time(monkeypatch)
    assert main([*COMMANDS[name], "--output", str(tmp_path / "run")]) == 0
    assert names(whole / name) == names(tmp_path / "run")
    one, two = (json.loads((run / "report.json").read_text()) for run in (tmp_path / "run", whole / name))
    assert one.keys() == two.keys()
    assert one["environment"] | {"processes": 2, "threads": two["environment"]["threads"]} == two["environment"]
    logs = [
        [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        for run in (tmp_path / "run", whole / name)
    ]
    assert len(logs[0]) == len(logs[1])
    for mine, theirs in zip(*logs, strict=True):
        assert (mine["stage"], mine["epoch"], mine["lr"]) == (theirs["stage"], theirs["epoch"], theirs["lr"])
    dense = [line for line in logs[1] if line["stage"] == "train dense"]
    for mine, theirs in zip(logs[0], dense, strict=False):
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=0.1)  # before anything is decided


def test_only_the_first_process_writes(whole: Path, tmp_path: Path) -> None:
    """The other one would have ended the runs; that it can is shown by one that tries."""
    assert "changes" not in (whole / "err.txt").read_text()
    script = "import torchrun_worker, sys; torchrun_worker.stay_out_of_files(); open('x', sys.argv[1])"
    for mode, code in (("w", 77), ("a", 77), ("rb", 0)):
        environment = os.environ | {"PYTHONPATH": str(WORKER.parent), "RANK": "1", "WORLD_SIZE": "2"}
        (tmp_path / "x").touch()
        result = subprocess.run(
            [sys.executable, "-c", script, mode],
            env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=100,
        )  # fmt: skip
        assert result.returncode == code and ("changes" in result.stderr) == bool(code), result.stderr


def test_every_command_is_told_once(whole: Path) -> None:
    """In the order in which they ran."""
    printed, shown = (whole / "out.txt").read_text(), (whole / "err.txt").read_text().splitlines()
    assert printed.count("next: ") == len(COMMANDS)
    assert sum(line.startswith("train dense: ") for line in shown) == len(COMMANDS)


def same(one: Path, other: Path) -> None:
    """Compare two runs byte for byte, measured times aside."""
    assert names(one) == names(other)
    for name in names(one) - {"report.json", "report.html", "structure.json", "events"}:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    first, second = (json.loads((run / "report.json").read_text()) for run in (one, other))
    assert {k: v for k, v in first.items() if k not in TIMED} == {k: v for k, v in second.items() if k not in TIMED}


def test_a_run_that_is_killed_again_and_again_comes_to_the_same_end(whole: Path, tmp_path: Path) -> None:
    """Whoever is killed, in whatever stage: by SIGKILL one process, the first, or all; by SIGTERM torchrun."""
    begin = [*COMMANDS["prune"], "--output", "run"]
    once = "srr prune --resume run goes on, started as 2 processes again"
    deaths = {
        "1@1:kill": (once, ""),  # the first may or may not have written the state of the first epoch by then
        "0@1:term": (once, "train dense"),
        "1@3:kill": (once, ""),
        "0@3:kill": ("", ""),  # who would say it
        "*@1:kill": ("", ""),
        "0@4:term": (once, ""),
    }
    for death, (line, training) in deaths.items():
        command = ["prune", "--resume", "run"] if (tmp_path / "run").exists() else begin
        result = watched(command, folder=tmp_path, die=death)
        assert result.returncode != 0, (death, result.stderr)
        lines = said(result)
        assert len(lines) == bool(line) and all(each.endswith(line) for each in lines), (death, result.stderr)
        assert "changes" not in result.stderr and "Traceback" not in "".join(
            text for text in result.stderr.splitlines() if text.startswith("[rank")
        )
        record = tmp_path / "run" / "checkpoint" / "reached.json"
        reached = json.loads(record.read_text()) if record.exists() else {}
        assert not training or reached["training"] == training
    assert reached["stage"] == "round"
    result = watched(["prune", "--resume", "run"], folder=tmp_path)
    assert result.returncode == 0, result.stderr
    same(whole / "prune", tmp_path / "run")


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """Return a run of two processes that was stopped by an error in one of them that nobody expects."""
    result = watched([*COMMANDS["train"], "--output", "run"], folder=tmp_path, die="1@1:error")
    assert result.returncode != 0 and "RuntimeError: planted" in result.stderr
    (line,) = said(result)
    assert line.startswith("srr train: stopped; ")
    return tmp_path / "run"


def test_as_many_have_to_go_on(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One process would round, and draw, otherwise; the run stays as it is."""
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    assert main(["train", "--resume", str(stopped)]) == 2
    line = "--resume: the run was begun with 2 processes, but these are 1; start 2, with which it ends as if"
    assert line in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "command, line",
    [
        (["prune", "--keep-macs", "7"], "--keep-macs: is the share to keep and must be in (0, 1], got 7.0"),
        (["prune", "--bogus"], "unrecognized arguments: --bogus"),
        (["train", "--data", "folder:nowhere"], "--data: "),
        (["train", "--batch-size", "1"], "batch-size"),
        (["train", "--output", "taken"], "--output: taken is in use; name a new or empty folder"),
        (["prune", "--resume", "taken"], "--resume: taken holds no run to go on with"),
    ],
)
def test_what_is_wrong_is_told_once(command: list[str], line: str, tmp_path: Path) -> None:
    """By the first process, or the only one that finds it; nothing is left behind."""
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "something").touch()
    result = watched(command, folder=tmp_path)
    assert result.returncode != 0
    (told,) = said(result)
    assert line in told and "[rank" not in result.stderr, result.stderr
    assert names(tmp_path) == {"taken", "taken/something"}


def test_different_plans_end_the_run(tmp_path: Path) -> None:
    """A method that finds something else in every process, by what is not the same on all nodes say."""
    command = ["prune", *QUICK, "--dense.epochs", "1", "--selector", "by_rank", "--output", "run"]
    result = watched(command, folder=tmp_path, BY_RANK="1")
    assert result.returncode != 0
    (line,) = said(result)
    assert "2 processes do not agree on the plan (SHA-256 " in line
    assert "are versions, devices and files the same on all nodes?" in line and "--resume run goes on" in line
    assert not (tmp_path / "run" / "plan.json").exists()


def test_two_machines(whole: Path, tmp_path: Path) -> None:
    """Which are two of torchrun that meet at an address: the same bytes as on one, told by the first alone."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    torchrun += ["--rdzv-backend", "c10d", "--rdzv-id", "1", "--rdzv-endpoint", address, "-m", "srr_ext.train"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [*torchrun, *COMMANDS["train"][1:], "--download", "--output", "run"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    machines = [subprocess.Popen(command, env=environment, cwd=tmp_path, text=True, **pipes) for _ in range(2)]
    try:
        results = [machine.communicate(timeout=200) for machine in machines]
    finally:
        for machine in machines:
            machine.kill()
    assert [machine.returncode for machine in machines] == [0, 0], results
    assert sorted(out.count("digits_cnn on digits") for out, _ in results) == [0, 1]
    for name in ("dense.safetensors", "log.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (whole / "train" / name).read_bytes()


@pytest.mark.parametrize("command", ["analyze", "evaluate", "export", "compare"])
def test_other_commands_are_for_one_process(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rather than that each does all of it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(parsing, "leave", lambda code: code)  # which would end the tests
    flags = {"export": ["--run", "run", "--output", "x"], "evaluate": ["--run", "run"]}.get(command, [])
    assert main([command, *flags]) == 2
    line = f"srr {command}: error: srr {command} is one process, but 2 were started; leave torchrun out"
    assert capsys.readouterr().err.splitlines() == [line]
    assert not list(tmp_path.iterdir())


def test_cells_of_a_comparison_may_be_several_processes(tmp_path: Path) -> None:
    """Each starts its own."""
    launcher = f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node 2"
    command = ["compare", "--device", "cpu", "--dense.epochs", "1", "--epochs", "1", "--seeds", "0", "--jobs", "1"]
    command += ["--keep", "0.5", "--no-controls", "--launcher", launcher, "--output", "compared"]
    command += ["--quantity", "params", "--methods", "srr", "sparsify"]
    result = subprocess.run(
        [sys.executable, "-m", "srr_ext", *command],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    reports = [json.loads(path.read_text()) for path in tmp_path.glob("compared/cells/*/report.json")]
    assert len(reports) == 2 and all(report["environment"]["processes"] == 2 for report in reports)


def test_the_others_let_the_first_speak(monkeypatch: pytest.MonkeyPatch) -> None:
    """They wait before they tell what most likely all have met."""
    from srr_ext import processes

    waited: list[float] = []
    monkeypatch.setattr(processes.time, "sleep", waited.append)
    for rank, expected in (("0", []), ("1", [5.0])):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", rank)
        waited.clear()
        processes.let_the_first_speak()
        assert waited == expected


def test_what_others_do_to_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """That they have gone is a stop; other errors stay what they are."""
    from srr_ext.processes import Disagreement, Processes, is_lost

    two, lost = Processes(0, 2), RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]")
    assert is_lost(lost) and not is_lost(RuntimeError("planted")) and not is_lost(ValueError("gloo"))
    cases: list[tuple[Processes, Exception, type[BaseException]]] = [
        (two, lost, KeyboardInterrupt),
        (two, RuntimeError("planted"), RuntimeError),
        (two, Disagreement("plan"), parsing.UsageError),
        (Processes(), lost, RuntimeError),
    ]
    for here, error, wanted in cases:
        with pytest.raises(wanted) as caught, running.blame_others(here):
            raise error
        assert type(caught.value) is wanted
