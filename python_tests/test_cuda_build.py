"""The CUDA kernels compile for the GPUs we name, without register spills; and nvcc is found wherever it may lie.

Needs nvcc, but no GPU. ``pytest -s`` prints the registers and the shared memory of every kernel.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import build_script
import pytest
import torch

from srr_ext import _native

ROOT = build_script.ROOT
script = build_script.load()
CUDA_FILES = script.sources("cuda/*.cu")
# sm_80, sm_90 and the PTX that newer GPUs compile for themselves; sm_100 is what one of those makes of it.
TARGETS = ("-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90,code=[compute_90,sm_90,sm_100]")
COMPILED = ("sm_100", "sm_80", "sm_90")
FLAGS = [flag for flag in script.NVCC_FLAGS if not flag.startswith("--threads")]  # which would mix up their reports


def toolkit():
    """Return the CUDA compiler that setup.py would take, or skip, saying why there is none."""
    if torch.version.cuda is None:
        pytest.skip("this torch has no CUDA")
    found = script.find_toolkit(torch.version.cuda)
    if isinstance(found, str):
        pytest.skip(f"nvcc is not installed: {found}")
    return found


@dataclass(frozen=True)
class Usage:
    """What ptxas reports of one kernel on one GPU."""

    kernel: str
    gpu: str
    registers: int
    spill_stores: int
    spill_loads: int
    shared_bytes: int


def read_usage(report: str) -> list[Usage]:
    """Read the report of ``-Xptxas -v``, which names the kernel, then its spills, then its registers."""
    kernel = re.compile(
        r"Compiling entry function '(?P<name>\w+)' for '(?P<gpu>sm_\w+)'\n"
        r"(?:(?!Compiling entry).*\n)*?"
        r".*?(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads\n"
        r".*Used (?P<registers>\d+) registers(?P<rest>.*)"
    )
    found = []
    for m in kernel.finditer(report):
        shared = re.search(r"(\d+) bytes smem", m["rest"])
        numbers = (int(m["registers"]), int(m["stores"]), int(m["loads"]), int(shared[1]) if shared else 0)
        found.append(Usage(m["name"], m["gpu"], *numbers))
    return found


def compile_for_gpus(source: Path, folder: Path) -> list[Usage]:
    """Compile with setup.py's flags for the GPUs above, warnings being errors."""
    cuda = toolkit()
    includes = [Path(torch.__file__).parent / "include", *cuda.headers]
    command = [str(cuda.home / "bin" / "nvcc"), "-c", str(source), "-o", str(folder / "kernels.o"), "-Xptxas", "-v"]
    command += [*FLAGS, script.torch_target_flag(), "--expt-relaxed-constexpr", *TARGETS]
    command += ["-Werror", "all-warnings", *(f"-isystem={path}" for path in includes)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return read_usage(done.stdout + done.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("source", [pytest.param(path, id=Path(path).stem) for path in CUDA_FILES])
def test_kernels_compile_without_register_spills(source, tmp_path):
    usages = compile_for_gpus(ROOT / source, tmp_path)
    kernels = {usage.kernel for usage in usages}
    assert kernels and sorted((u.kernel, u.gpu) for u in usages) == [(k, g) for k in sorted(kernels) for g in COMPILED]
    for usage in usages:
        print(f"{usage.gpu:7}{usage.registers:4} registers {usage.shared_bytes:6} bytes shared  {usage.kernel}")
    spills = [usage for usage in usages if usage.spill_stores or usage.spill_loads]
    assert not spills, spills


@pytest.mark.slow
def test_a_spill_would_be_seen(tmp_path):
    """A kernel that keeps more values than it is given registers."""
    source = tmp_path / "spill.cu"
    source.write_text(
        "__global__ void __launch_bounds__(1024, 2) keep(float* x) {\n"
        "  float kept[96];\n"
        "#pragma unroll\n  for (int i = 0; i < 96; ++i) kept[i] = x[i * 7];\n  __syncthreads();\n"
        "#pragma unroll\n  for (int i = 0; i < 96; ++i) x[i * 7 + 1] = kept[i] * kept[95 - i];\n}\n"
    )
    usages = compile_for_gpus(source, tmp_path)
    assert [usage.gpu for usage in sorted(usages, key=lambda usage: usage.gpu)] == list(COMPILED)
    assert all(usage.registers <= 32 and usage.spill_stores > 0 and usage.spill_loads > 0 for usage in usages)


@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf is not installed")
def test_the_library_brings_its_own_runtime():
    """So it loads under a torch with another CUDA, and exports no name that could be taken for that torch's runtime."""
    if _native.build_info()["build"] != "cuda":
        pytest.skip("built without CUDA")
    library = str(_native._find("_C_cuda"))
    needed = subprocess.run(["readelf", "-dW", library], capture_output=True, text=True, check=True).stdout
    symbols = subprocess.run(
        ["readelf", "--dyn-syms", "-W", library], capture_output=True, text=True, check=True
    ).stdout
    assert "libcudart" not in needed and "libc10.so" in needed
    assert not re.search(r" (?:__)?cuda\w+(?:@\S+)?$", symbols, re.M)


def make_toolkit(folder: Path, release: str, headers: tuple[str, ...]) -> Path:
    """Make a folder that looks like a toolkit, with an nvcc that only tells its version."""
    nvcc = folder / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.88'\n")
    nvcc.chmod(0o755)
    (folder / "bin" / "nvcc.profile").touch()
    add_headers(folder, headers)
    return folder


def add_headers(folder: Path, headers: tuple[str, ...]) -> None:
    for header in headers:
        path = folder / "include" / header
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


ALL_HEADERS = tuple(script.CUDA_HEADERS)


@pytest.fixture
def bare(tmp_path, monkeypatch) -> Path:
    """Hide every toolkit of this machine but /usr/local/cuda, which is looked at last."""
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(script.sys, "path", [str(tmp_path / "site")])
    monkeypatch.setattr(script.shutil, "which", lambda name: None)
    return tmp_path


def test_a_system_toolkit_is_found_by_cuda_home(bare, monkeypatch):
    home = make_toolkit(bare / "system", "13.0", ALL_HEADERS)
    (home / "lib64").mkdir()
    (home / "lib64" / "libcudart_static.a").touch()
    monkeypatch.setenv("CUDA_HOME", str(home))
    assert script.find_toolkit("13.2") == script.Toolkit(home, "13.0", (), home / "lib64")


def test_the_toolkit_of_pip_is_found(bare):
    home = make_toolkit(bare / "site" / "nvidia" / "cu13", "13.0", ALL_HEADERS)
    assert script.find_toolkit("13.0") == script.Toolkit(home, "13.0")


def test_an_nvcc_without_headers_is_given_those_that_came_with_torch(bare, monkeypatch):
    home = make_toolkit(bare / "alone", "13.0", ("crt/host_config.h", "cccl/nv/target"))
    came = bare / "site" / "nvidia" / "cu13"
    add_headers(came, ("cuda_runtime.h",))
    (came / "lib").mkdir()
    (came / "lib" / "libcudart_static.a").touch()
    monkeypatch.setenv("CUDA_HOME", str(home))
    assert script.find_toolkit("13.0") == script.Toolkit(home, "13.0", (came / "include",), came / "lib")


def test_a_header_that_is_nowhere_is_named_with_its_package(bare, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(make_toolkit(bare / "alone", "13.0", ("cuda_runtime.h", "nv/target"))))
    assert "has no include/crt/host_config.h: install it, or `pip install nvidia-cuda-crt`" in script.find_toolkit(
        "13.0"
    )


def test_cuda_home_is_taken_at_its_word(bare, monkeypatch):
    make_toolkit(bare / "site" / "nvidia" / "cu13", "13.0", ALL_HEADERS)
    monkeypatch.setenv("CUDA_HOME", str(bare / "elsewhere"))
    assert script.find_toolkit("13.0") == f"{bare / 'elsewhere'} has no bin/nvcc"


def test_an_nvcc_of_another_major_version_is_passed_over(bare, monkeypatch):
    make_toolkit(bare / "site" / "nvidia" / "cu13", "13.0", ALL_HEADERS)
    older = make_toolkit(bare / "older", "12.8", ALL_HEADERS)
    monkeypatch.setattr(script.shutil, "which", lambda name: str(older / "bin" / "nvcc"))
    assert script.find_toolkit("12.4").home == older
    monkeypatch.setenv("CUDA_HOME", str(older))
    assert script.find_toolkit("13.0") == f"{older} has nvcc 12.8, but this torch has CUDA 13.0"


def test_a_wrapper_on_the_path_is_not_mistaken_for_the_toolkit(bare, monkeypatch):
    home = make_toolkit(bare / "site" / "nvidia" / "cu13", "13.0", ALL_HEADERS)
    wrapper = make_toolkit(bare / "usr", "13.0", ())
    (wrapper / "bin" / "nvcc.profile").unlink()
    assert "has neither bin/nvcc.profile nor include/cuda_runtime.h" in script.inspect_toolkit(wrapper)
    monkeypatch.setattr(script.shutil, "which", lambda name: str(wrapper / "bin" / "nvcc"))
    assert script.find_toolkit("13.0").home == home
