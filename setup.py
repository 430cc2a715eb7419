"""Build srr_ext's native code.

    pip install .                              # isolated: torch, pybind11 and ninja come as build requirements
    pip install --no-build-isolation -e .      # against the torch that is installed, for development
    SRR_BUILD=cpu pip install .                # no CUDA kernels, even where nvcc is found

``SRR_BUILD`` chooses what is built, and the choice is announced: ``auto`` (default) builds the CPU kernels, and the
CUDA ones when csrc/cuda has any, torch has CUDA and nvcc is found, whether or not a GPU is present; ``cpu``; ``cuda``,
which fails when it cannot; ``none``, after which the package computes with its plain Python reference and says so.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
PACKAGE = "srr_ext"
CONFIG_NAME = "_build_config.json"
MODES = ("auto", "cpu", "cuda", "none")
# Contraction off: decisions in double precision must be the same on every machine (see csrc/cpu/unit_filters.h).
CXX_FLAGS = ["-O3", "-std=c++20", "-ffp-contract=off", "-fvisibility=hidden"]
CXX_FLAGS += ["-Wall", "-Wextra", "-Wno-unused-parameter"]  # torch's headers have unused parameters
NVCC_FLAGS = ["-O3", "-std=c++20", "-fmad=false"]
TORCH_TARGET = "2.10"  # the oldest torch whose stable ABI has all we call; one build serves it and every later one
DEFAULT_CUDA_ARCHS = "8.0;9.0+PTX"  # used when there is no GPU to ask and TORCH_CUDA_ARCH_LIST is not set


def sources(pattern: str) -> list[str]:
    """Paths relative to the root, as setuptools wants them, in an order that does not depend on the file system."""
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob(pattern))


def requested_mode() -> str:
    """Return SRR_BUILD, checked."""
    mode = os.environ.get("SRR_BUILD", "auto").lower()
    if mode not in MODES:
        sys.exit(f"SRR_BUILD must be one of {', '.join(MODES)}, got {mode!r}")
    return mode


def find_cuda_home() -> Path | None:
    """Find the toolkit: a folder with include/cuda_runtime.h. nvcc on the PATH may be a wrapper outside of it."""
    candidates = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    nvcc = shutil.which("nvcc")
    if nvcc:
        candidates.append(Path(nvcc).resolve().parent.parent)
    candidates += [Path("/usr/local/cuda"), *sorted(Path("/usr/local").glob("cuda-*"), reverse=True)]
    for folder in candidates:
        if (folder / "include" / "cuda_runtime.h").is_file() and (folder / "bin" / "nvcc").is_file():
            return folder
    return None


def decide_cuda(mode: str) -> tuple[bool, str]:
    """Whether to build the CUDA kernels, and why."""
    if mode == "cpu":
        return False, "SRR_BUILD=cpu"
    missing = []
    if not sources("cuda/*.cu"):
        missing.append("csrc/cuda has no kernels")
    else:
        import torch

        if torch.version.cuda is None:
            missing.append("this torch has no CUDA")
        if find_cuda_home() is None:
            missing.append("no CUDA toolkit with nvcc and include/cuda_runtime.h found; set CUDA_HOME")
    if missing and mode == "cuda":
        sys.exit("SRR_BUILD=cuda, but " + "; ".join(missing))
    return not missing, "; ".join(missing) or "nvcc and a torch with CUDA found"


def torch_target_flag() -> str:
    """Return the macro that pins the stable ABI."""
    major, minor = map(int, TORCH_TARGET.split("."))
    return f"-DTORCH_TARGET_VERSION=0x{major:02x}{minor:02x}000000000000"


def extensions(cuda: bool) -> list[Extension]:
    """List the objects to build: _C, and _C_cuda with the CUDA kernels."""
    if cuda:  # before torch.utils.cpp_extension is imported: it reads both once, and fails without a GPU
        os.environ["CUDA_HOME"] = str(find_cuda_home())
        import torch

        if not torch.cuda.is_available():
            os.environ.setdefault("TORCH_CUDA_ARCH_LIST", DEFAULT_CUDA_ARCHS)
    import pybind11
    from torch.utils.cpp_extension import CppExtension, CUDAExtension

    headers = [str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.h*")]
    cxx = [*CXX_FLAGS, torch_target_flag()]
    built = [
        CppExtension(
            f"{PACKAGE}._C",
            ["csrc/library.cpp", *sources("cpu/*.cpp")],
            include_dirs=[pybind11.get_include()],
            extra_compile_args={"cxx": cxx},
            depends=headers,
        )
    ]
    if cuda:
        built.append(
            CUDAExtension(
                f"{PACKAGE}._C_cuda",
                sources("cuda/*.cu"),
                extra_compile_args={"cxx": cxx, "nvcc": [*NVCC_FLAGS, torch_target_flag()]},
                depends=headers,
            )
        )
    return built


def build_config(mode: str, cuda: bool) -> dict[str, object]:
    """Describe the build, for the package to read when it loads."""
    if mode == "none":
        return {"requested": mode, "build": "none", "cuda": None, "cuda_archs": [], "torch_target": None}
    config: dict[str, object] = {"requested": mode, "build": "cuda" if cuda else "cpu", "torch_target": TORCH_TARGET}
    config["cuda"], config["cuda_archs"] = None, []
    if cuda:
        import torch

        config["cuda"] = torch.version.cuda
        config["cuda_archs"] = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split() or ["native"]
    return config


def write_config(folder: Path, config: dict[str, object]) -> None:
    """Write the build's description under a temporary name, then rename it."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / (CONFIG_NAME + ".tmp")
    temporary.write_text(json.dumps(config, indent=2) + "\n")
    temporary.replace(folder / CONFIG_NAME)


class BuildPy(build_py):
    """build_py that records what was built in the wheel, and in the source tree a build without objects.

    A source tree that has a library keeps the record of that library, unless an editable install asks for none.
    """

    config: dict[str, object]

    def run(self) -> None:
        """Copy the modules, then write the record."""
        super().run()
        if not self.editable_mode:
            write_config(Path(self.build_lib) / PACKAGE, self.config)
        has_library = any((ROOT / PACKAGE).glob("_C.*"))
        if self.config["build"] == "none" and (self.editable_mode or not has_library):
            write_config(ROOT / PACKAGE, self.config)


def main() -> None:
    """Decide, announce, build."""
    mode = requested_mode()
    cuda, reason = (False, "SRR_BUILD=none") if mode == "none" else decide_cuda(mode)
    built = "none" if mode == "none" else "cuda" if cuda else "cpu"
    print(f"srr_ext: SRR_BUILD={mode}, building {built} ({reason})", file=sys.stderr, flush=True)
    if mode == "none":
        BuildPy.config = build_config(mode, cuda)
        setup(cmdclass={"build_py": BuildPy})
        return

    ext_modules = extensions(cuda)
    BuildPy.config = build_config(mode, cuda)  # after extensions(), which settles the CUDA architectures
    from torch.utils.cpp_extension import BuildExtension

    class BuildExt(BuildExtension):
        """BuildExtension that leaves objects and record in the source tree too, which shadows an installed copy."""

        def run(self) -> None:
            super().run()
            if not self.inplace:
                self.copy_extensions_to_source()
            write_config(ROOT / PACKAGE, BuildPy.config)

    setup(ext_modules=ext_modules, cmdclass={"build_py": BuildPy, "build_ext": BuildExt})


main()
