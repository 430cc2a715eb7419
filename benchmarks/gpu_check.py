"""Everything that needs a GPU, in one command and in less than ten minutes: `make gpu-check`.

    python benchmarks/gpu_check.py                                      # needs torch, nvcc and a GPU; no network
    python benchmarks/gpu_check.py --wheels FOLDER                      # with wheels of what the machine lacks
    python benchmarks/gpu_check.py --device cpu --quick --output FOLDER  # rehearsal, without a GPU and without a build

Builds the extension in place for the GPU that is there, runs the tests marked ``cuda`` and those of the ops, watches
every op with compute-sanitizer, and runs the benchmarks. Each stage is a process with a time limit of its own, which is
killed with all its children when that is over; the next stage runs all the same. The results, GPU-DATE.json and .md in
benchmarks/results, are written anew after every stage. The exit code is 0 only if every stage has passed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SECONDS_IN_ALL = 570  # of ten minutes; what is over goes to starting and ending
TAIL = 3000  # characters of a failed stage's output that are kept
# Module, and the package that brings it.
REQUIRED = {
    "torch": "torch>=2.10",
    "torchvision": "torchvision",
    "numpy": "numpy",
    "safetensors": "safetensors",
    "rich": "rich",
    "accelerate": "accelerate",
    "torchmetrics": "torchmetrics",
    "lightning_utilities": "lightning-utilities",
    "yaml": "pyyaml",
    "scipy": "scipy",
    "networkx": "networkx",
    "pytest": "pytest",
    "iniconfig": "iniconfig",
    "pluggy": "pluggy",
    "packaging": "packaging",
    "pygments": "pygments",
    "pytest_benchmark": "pytest-benchmark",
    "cpuinfo": "py-cpuinfo2",
    "hypothesis": "hypothesis",
    "sortedcontainers": "sortedcontainers",
    "setuptools": "setuptools>=77",
    "pybind11": "pybind11",
    "ninja": "ninja",
}
OP_TESTS = ("filter_graphs", "components", "covering", "trajectories")
BENCHMARKS = ("filter_graphs", "components", "trajectories", "plan", "covering", "redundancy")
# Run by the interpreter that runs the stages: prints the missing modules, or facts about the machine, as JSON.
FIND_MODULES = """
import importlib.util, json, sys
print(json.dumps([name for name in sys.argv[1:] if importlib.util.find_spec(name) is None]))
"""
DESCRIBE = """
import json, platform, torch
info = {"python": platform.python_version(), "torch": torch.__version__, "torch_cuda": torch.version.cuda}
info |= {"gpu": None, "gpus": torch.cuda.device_count()}
if torch.cuda.is_available():
    info["gpu"] = torch.cuda.get_device_name(0)
    info["arch"] = "%d.%d" % torch.cuda.get_device_capability(0)
    info["gpu_memory_gib"] = round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1)
print(json.dumps(info))
"""
REQUIRE_BUILD = """
import sys, srr_ext
info = srr_ext.build_info()
print(info)
sys.exit(0 if info["build"] in sys.argv[1:] else f"srr_ext was built as {info['build']!r}: see the stage build")
"""


@dataclass
class Stage:
    """A process to run.

    Attributes
    ----------
    name : str
        What the report calls it, and its log.
    command : list of str
        Arguments of the Python interpreter, or a program and its arguments.
    seconds : float
        Limit; less where the time for everything runs out.
    variables : dict of str to str
        Environment variables added.
    """

    name: str
    command: list[str]
    seconds: float
    variables: dict[str, str] = field(default_factory=dict)


@dataclass
class Outcome:
    """What became of a stage: passed, failed, timed out or not run; and the end of its output unless it passed."""

    name: str
    status: str
    seconds: float
    limit: float
    tail: str = ""


class Runner:
    """Runs stages one after the other, until the time for everything is over."""

    def __init__(self, logs: Path, variables: dict[str, str], seconds: float) -> None:
        self.logs, self.environment = logs, {**os.environ, **variables}
        self.deadline = time.monotonic() + seconds
        self.outcomes: list[Outcome] = []
        logs.mkdir(parents=True, exist_ok=True)

    def run(self, stage: Stage) -> str | None:
        """Run a stage, record what became of it, and return its output if it passed."""
        started = time.monotonic()
        limit = min(stage.seconds, self.deadline - started)
        if limit < 1:
            self.record(Outcome(stage.name, "not run", 0.0, 0.0, "the time for everything was over"))
            return None
        print(f"{stage.name}: at most {limit:.0f} s", flush=True)
        log = self.logs / f"{stage.name}.log"
        with log.open("wb") as output:
            try:
                process = subprocess.Popen(
                    stage.command,
                    cwd=ROOT,
                    env={**self.environment, **stage.variables},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # so that it can be killed with its children
                )
            except OSError as error:
                self.record(Outcome(stage.name, "failed", 0.0, limit, without_places(str(error))))
                return None
            try:
                status = "passed" if process.wait(limit) == 0 else "failed"
            except subprocess.TimeoutExpired:
                status = "timed out"
            finally:
                kill(process)
        text = log.read_text(encoding="utf-8", errors="replace")
        tail = "" if status == "passed" else without_places(text[-TAIL:])
        self.record(Outcome(stage.name, status, round(time.monotonic() - started, 1), round(limit, 1), tail))
        return text if status == "passed" else None

    def record(self, outcome: Outcome) -> None:
        """Keep and show an outcome."""
        self.outcomes.append(outcome)
        print(f"{outcome.name}: {outcome.status}, {outcome.seconds:.1f} s", flush=True)
        if outcome.tail:
            print(outcome.tail, flush=True)


def without_places(text: str) -> str:
    """Replace the folders of this machine: the record is published."""
    for place, name in ((sys.prefix, "PYTHON"), (str(ROOT), "."), (str(Path.home()), "~")):
        text = text.replace(place, name)
    return text


def kill(process: subprocess.Popen[bytes]) -> None:
    """End what is left of a process group; a process that a driver holds is not waited for."""
    for number, patience in ((signal.SIGTERM, 3), (signal.SIGKILL, 3)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        if process.poll() is not None and number is signal.SIGTERM:
            continue  # its children, if any is left, get the second signal at once
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)


def last_json(text: str | None) -> Any:
    """Return what the last line of an output says in JSON, or None."""
    with contextlib.suppress(ValueError, IndexError):
        return json.loads((text or "").strip().splitlines()[-1])
    return None


def said(*command: str) -> str | None:
    """Return what a program says, or None where it is missing, fails or hangs."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    return None


def find_program(name: str) -> str | None:
    """Find a program of the CUDA toolkit: on the PATH, in CUDA_HOME, in the usual place, or among pip's packages."""
    homes = [Path(os.environ[key]) for key in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(key)]
    homes += [
        Path("/usr/local/cuda"),
        *(found for entry in sys.path for found in Path(entry or ".").glob("nvidia/cu*")),
    ]
    return shutil.which(name) or next((str(h / "bin" / name) for h in homes if (h / "bin" / name).is_file()), None)


def read_environment(facts: dict[str, Any]) -> dict[str, Any]:
    """Add driver, compiler and commit to what torch knows."""
    driver = said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    nvcc = find_program("nvcc")
    release = re.search(r"release (\S+),", (said(nvcc, "--version") if nvcc else None) or "")
    commit = said("git", "rev-parse", "HEAD")
    changed = said("git", "status", "--porcelain", "--untracked-files=no")
    return {
        **facts,
        "driver": driver.splitlines()[0] if driver else None,
        "nvcc": release[1] if release else None,
        "cores": os.cpu_count(),
        "commit": f"{commit} and uncommitted changes" if commit and changed else commit,
    }


def test_stages(python: str, device: str) -> list[Stage]:
    """Tests of the kernels, then of the ops in general; on a GPU every test that is skipped is listed."""
    # Names of tests and a traceback tell what hangs; a file that cannot be read does not keep the others from running.
    pytest = [python, "-m", "pytest", "-v", "-rs", "-p", "no:cacheprovider", "--strict-markers"]
    pytest += ["--continue-on-collection-errors", "-o", "faulthandler_timeout=60"]
    of_ops = [f"python_tests/test_{op}.py" for op in OP_TESTS]
    # Only the files that have such a test are read: others may need packages that have nothing to do with it.
    marked = [str(path) for path in sorted(ROOT.glob("python_tests/test_*.py")) if "mark.cuda" in path.read_text()]
    if device == "cpu":
        rehearsed = ["python_tests/test_cuda_graph_ops.py", "python_tests/test_cuda_runtime.py"]
        return [Stage("tests", [*pytest, "-m", "not cuda", *rehearsed], 60)]
    return [
        Stage("library", [python, "-c", REQUIRE_BUILD, "cuda"], 40),
        # A process each: an error on the device spoils all that comes after it in the same one.
        *(Stage(f"cuda {Path(path).stem}", [*pytest, "-m", "cuda", path], 100) for path in marked),
        Stage("op tests", [*pytest, *of_ops], 60),
    ]


def sanitizer_stages(python: str, device: str) -> list[Stage]:
    """Every op under each tool of compute-sanitizer; without a GPU the same script alone."""
    script = [python, "python_tests/every_op.py", "--device", device]
    if device == "cpu":
        return [Stage("every op", script, 40)]
    program = find_program("compute-sanitizer") or "compute-sanitizer"
    # Memory of its own for every tensor: in torch's pool, an access beyond one is within another and goes unseen.
    own = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    # Of torch itself it is known that some calls are answered with an error, which it expects.
    command = [program, "--error-exitcode", "99", "--print-limit", "20", "--report-api-errors", "no"]
    stages = [Stage("every op", script, 40)]
    for tool, seconds in (("memcheck", 70), ("racecheck", 90), ("synccheck", 40), ("initcheck", 60)):
        # What our kernels read and write is watched whole; races and barriers only in them, which saves time.
        only = ["--kernel-name", "kns=srr"] if tool in ("racecheck", "synccheck") else []
        stages.append(Stage(tool, [*command, "--tool", tool, *only, *script], seconds, own))
    return stages


def benchmark_stages(python: str, device: str, folder: Path, quick: bool) -> list[Stage]:
    """One process for each file of benchmarks, so that one that is slow does not cost the others."""
    options = ["--benchmark-only", "--device", device, "--quick", "-q", "-p", "no:cacheprovider"]
    if quick:
        options += ["-k", "resnet56 and not reference and not networkx"]
    stages = []
    for name in BENCHMARKS[:2] if quick else BENCHMARKS:
        record = f"--benchmark-json={folder / f'{name}.json'}"
        command = [python, "-m", "pytest", f"benchmarks/bench_{name}.py", *options, record]
        stages.append(Stage(f"bench {name}", command, 90))
    return stages


def merge_benchmarks(records: Iterable[Path]) -> dict[str, Any]:
    """Put the records of several runs of pytest-benchmark into one, in the form that benchmarks/table.py reads."""
    merged: dict[str, Any] = {"machine_info": {}, "benchmarks": []}
    for path in records:
        if not path.is_file() or path.stat().st_size == 0:
            continue
        record = json.loads(path.read_text(encoding="utf-8"))
        rows = merged["benchmarks"] + record["benchmarks"]
        merged = {"machine_info": record["machine_info"], "quick": record.get("quick"), "benchmarks": rows}
    return merged


def write(path: Path, text: str) -> None:
    """Write a file under a temporary name and rename it; srr_ext.files does the same, but may not be built yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def as_markdown(result: dict[str, Any], table: str | None) -> str:
    """Return the result for people."""
    verdict = "passed" if result["passed"] else "failed"
    lines = [f"# gpu-check: {verdict}, {result['environment'].get('gpu') or 'CPU'}, {result['date']}", ""]
    lines += ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in result["environment"].items()), ""]
    lines += ["| stage | result | seconds | at most |", "|---|---|--:|--:|"]
    lines += [f"| {s['name']} | {s['status']} | {s['seconds']:.1f} | {s['limit']:.0f} |" for s in result["stages"]]
    return "\n".join(lines) + "\n" + (f"\n{table.strip()}\n" if table else "")


def check(options: argparse.Namespace) -> bool:
    """Run all stages and write the results."""
    python, started = sys.executable, datetime.now(UTC)
    output = options.output or ROOT / "benchmarks" / "results"
    work = options.output / "logs" if options.output else ROOT / "build" / "gpu-check"
    shutil.rmtree(work, ignore_errors=True)
    site = work / "site"
    # The package is built in place and not installed; wheels go before what the machine has.
    paths = [str(site)] * bool(options.wheels) + [str(ROOT), os.environ.get("PYTHONPATH")]
    variables = {"PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    runner = Runner(work, variables, options.seconds)
    environment: dict[str, Any] = {"gpu": None}
    table: str | None = None

    def save() -> bool:
        passed = all(outcome.status == "passed" for outcome in runner.outcomes)
        name = re.sub(r"[^a-z0-9]+", "-", (environment["gpu"] or options.device).lower()).strip("-")
        path = output / f"{name}-{started:%Y-%m-%d}.json"
        stages = [asdict(outcome) for outcome in runner.outcomes]
        result = {"date": f"{started:%Y-%m-%d}", "passed": passed, "environment": environment, "stages": stages}
        result |= merge_benchmarks(work / f"{name}.json" for name in BENCHMARKS)
        write(path, json.dumps(result, indent=1) + "\n")
        write(path.with_suffix(".md"), as_markdown(result, table))
        return passed

    def run(stages: Sequence[Stage]) -> None:
        for stage in stages:
            runner.run(stage)
            save()

    try:
        if options.wheels:
            wheels = [str(path) for path in sorted(options.wheels.glob("*.whl"))]
            install = ["-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--target", str(site)]
            runner.run(Stage("wheels", [python, *install, *wheels], 90))
        check_modules(runner, python)
        environment = read_environment(
            last_json(runner.run(Stage("machine", [python, "-c", DESCRIBE], 60))) or environment
        )
        if options.device == "cuda":
            if environment["gpu"] is None:
                runner.record(
                    Outcome("gpu", "failed", 0.0, 0.0, "torch finds no CUDA device: nothing was built or run")
                )
                return False
            build = {"SRR_BUILD": "cuda", "TORCH_CUDA_ARCH_LIST": environment.get("arch", "9.0")}
            run([Stage("build", [python, "setup.py", "build_ext", "--inplace"], 180, build)])
        run(test_stages(python, options.device))
        run(sanitizer_stages(python, options.device))
        run(benchmark_stages(python, options.device, work, options.quick))
        write(work / "all.json", json.dumps(merge_benchmarks(work / f"{name}.json" for name in BENCHMARKS)))
        table = runner.run(Stage("table", [python, "benchmarks/table.py", str(work / "all.json")], 30))
    except KeyboardInterrupt:
        runner.record(Outcome("everything", "failed", 0.0, 0.0, "interrupted"))
    return save()


def check_modules(runner: Runner, python: str) -> None:
    """Name the packages that are missing before anything fails for want of them."""
    missing = last_json(runner.run(Stage("modules", [python, "-c", FIND_MODULES, *REQUIRED], 60)))
    if missing:
        packages = " ".join(f"'{REQUIRED[module]}'" for module in missing)
        runner.record(
            Outcome(
                "packages",
                "failed",
                0.0,
                0.0,
                f"missing: {packages}. With a network: pip install {packages}. Without one: on a machine that has one, "
                f"pip download --only-binary=:all: --python-version {sys.version_info[0]}.{sys.version_info[1]} "
                f"--no-deps -d FOLDER {packages}, bring FOLDER here, and give it as --wheels FOLDER",
            )
        )


def main() -> None:
    """Read the options, check, and leave with the verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal")
    parser.add_argument("--quick", action="store_true", help="one small network and two benchmarks only")
    parser.add_argument("--output", type=Path, help="folder for the results; default benchmarks/results")
    parser.add_argument("--wheels", type=Path, help="folder of wheels that are installed for this run alone")
    parser.add_argument("--seconds", type=float, default=SECONDS_IN_ALL, help="for everything; default %(default)s")
    options = parser.parse_args()
    if options.device == "cpu" and options.output is None:
        parser.error("--device cpu is a rehearsal: give --output FOLDER, so that it is not taken for a result")
    for name in ("output", "wheels"):
        if getattr(options, name):
            setattr(options, name, getattr(options, name).resolve())
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    passed = check(options)
    print("gpu-check: " + ("passed" if passed else "failed"), flush=True)
    sys.exit(not passed)


if __name__ == "__main__":
    main()
