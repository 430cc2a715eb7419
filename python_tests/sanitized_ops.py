"""Run the tests of the ops on a library built under AddressSanitizer and UBSan, and see that it would report a fault.

    make sanitize       # or: python python_tests/sanitized_ops.py

The library is built into `build/asan`; that of the source tree stays as it is. Anything that a sanitizer finds ends the
process with its report. Faults planted first, in memory of torch's own, show that it does. Leaks are left to
`make soak`: Python and torch keep much that they never free.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import subprocess
import sys
from pathlib import Path

import build_script

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "asan"
TESTS = (
    "test_components.py", "test_covering.py", "test_trajectories.py", "test_filter_graphs.py", "test_bit_graphs.py",
    "test_fuzz_ops.py::test_eight_threads_get_the_same_answers",
)  # fmt: skip
# A function that reads beyond what it is given, one that adds beyond what fits, and one that does neither.
PLANTED = """
extern "C" long beyond(const long* values, long n) { return values[n]; }
extern "C" long overflow(const long* values, long n) { return values[0] + n; }
extern "C" long last(const long* values, long n) { return values[n - 1]; }
"""
REPORTS = {"beyond": "heap-buffer-overflow", "overflow": "signed integer overflow"}


def preloaded() -> str:
    """Return what has to be loaded before Python, which was built without sanitizers; libstdc++ for its exceptions."""
    found = []
    for name in ("libasan.so", "libubsan.so", "libstdc++.so.6"):
        told = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout
        path = Path(told.strip()).resolve()
        if not path.is_file():
            sys.exit(f"sanitized_ops: g++ has no {name}; install GCC with its sanitizers")
        found.append(str(path))
    return ":".join(found)


def environment() -> dict[str, str]:
    """Return the environment of a process that uses the sanitized library."""
    return os.environ | {
        "LD_PRELOAD": preloaded(),
        "PYTHONPATH": str(FOLDER / "lib"),
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1:detect_stack_use_after_return=1",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "OMP_NUM_THREADS": "2",  # the threads of a call are what may step on each other
        "OMP_WAIT_POLICY": "passive",  # and on a busy machine they would wait for each other by turning in circles
    }


def build() -> None:
    """Build the library and copy the package's modules beside it."""
    switches = {"SRR_BUILD": "cpu", "SRR_SANITIZE": "address"}
    base, library = f"--build-base={FOLDER}", f"--build-lib={FOLDER / 'lib'}"
    told = subprocess.run(
        [sys.executable, "setup.py", "-q", "build", base, library],
        cwd=ROOT, env=os.environ | switches, capture_output=True, text=True,
    )  # fmt: skip
    if told.returncode:
        sys.exit(f"sanitized_ops: the library cannot be built\n{told.stdout}{told.stderr}")


def plant() -> Path:
    """Compile the planted faults with the flags of the library."""
    source, library = FOLDER / "planted.cpp", FOLDER / "planted.so"
    source.write_text(PLANTED, encoding="utf-8")
    flags = build_script.load().SANITIZE_FLAGS
    subprocess.run(["g++", "-shared", "-fPIC", *flags, str(source), "-o", str(library)], check=True)
    return library


def call_planted(name: str) -> None:
    """Call the planted function that is right on a tensor, then a faulty one, which comes back if nobody watches."""
    import torch

    values = torch.full((7,), (1 << 63) - 1, dtype=torch.int64)
    library = ctypes.CDLL(str(FOLDER / "planted.so"))
    for function in ("last", name):
        call = getattr(library, function)
        call.restype, call.argtypes = ctypes.c_long, [ctypes.c_void_p, ctypes.c_long]
        print(function, "came back with", call(values.data_ptr(), len(values)), flush=True)


def check_planted() -> None:
    """See that each planted fault ends its process with a report, and that what is right comes back."""
    plant()
    for name, report in REPORTS.items():
        command = [sys.executable, __file__, "--call", name]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True)
        told = done.stdout + done.stderr
        assert "last came back" in done.stdout, f"what is right did not come back: {told}"
        assert done.returncode != 0 and report in told and f"{name} came back" not in told, f"not reported: {told}"
    print(f"sanitized_ops: planted faults are reported: {', '.join(REPORTS.values())}", flush=True)


def run_tests(arguments: list[str]) -> int:
    """Run the tests, in this process, once it is sure that it has the sanitized library."""
    import pytest

    import srr_ext

    loaded = FOLDER / "lib" / "srr_ext"
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    assert Path(srr_ext.__file__).parent == loaded, f"another package was imported: {srr_ext.__file__}"
    assert srr_ext.build_info().get("sanitizer") == "address", "the library was built without a sanitizer"
    assert f"{loaded}/_C." in maps and "libasan" in maps and "libubsan" in maps, "the library is not the one loaded"
    assert f"{ROOT / 'srr_ext'}/_C" not in maps, "the library of the source tree is loaded, too"
    print(f"sanitized_ops: {loaded} with {srr_ext.build_info()['compiler']}", flush=True)
    names = [str(ROOT / "python_tests" / name) for name in TESTS]
    return int(pytest.main(["-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), *names, *arguments]))


def main() -> int:
    """Build, see that faults are found, and run the tests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--call", choices=tuple(REPORTS), help=argparse.SUPPRESS)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given, rest = parser.parse_known_args()
    if given.call:
        call_planted(given.call)
        return 0
    if given.inside:
        return run_tests(rest)
    build()
    check_planted()
    return subprocess.run([sys.executable, __file__, "--inside", *rest], env=environment(), cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
