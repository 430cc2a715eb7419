"""Build srr_ext's native code.

    pip install .                              # isolated: torch, pybind11 and ninja come as build requirements
    pip install --no-build-isolation -e .      # against the torch that is installed, for development
    SRR_BUILD=cpu pip install .                # no CUDA kernels, even where nvcc is found

``SRR_BUILD`` chooses what is built, and the choice is announced: ``auto`` (default) builds the CPU kernels, and the
CUDA ones when csrc/cuda has any, torch has CUDA and a fitting nvcc is found, whether or not a GPU is present; ``cpu``;
``cuda``, which fails when it cannot; ``none``, after which the package computes with its plain Python reference and
says so. nvcc may be a system's or pip's; docs/building.md tells where it is looked for.

``SRR_SANITIZE=address`` with ``SRR_BUILD=cpu`` builds the CPU kernels under AddressSanitizer and UBSan, for
`python_tests/sanitized_ops.py`; nothing is left in the source tree then.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
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
# For SRR_SANITIZE=address. Frames are kept for readable reports; every finding ends the process.
SANITIZE_FLAGS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g", "-O1"]
# -lineinfo costs no speed and lets profilers and compute-sanitizer name lines; all architectures are compiled at once.
NVCC_FLAGS = ["-O3", "-std=c++20", "-fmad=false", "-lineinfo", "--threads=0"]
TORCH_TARGET = "2.10"  # the oldest torch whose stable ABI has all we call; one build serves it and every later one
DEFAULT_CUDA_ARCHS = "8.0;9.0+PTX"  # used when there is no GPU to ask and TORCH_CUDA_ARCH_LIST is not set
# What nvcc has to find, and the pip package that brings it.
CUDA_HEADERS = {
    "cuda_runtime.h": "nvidia-cuda-runtime",
    "crt/host_config.h": "nvidia-cuda-crt",
    "nv/target": "nvidia-cuda-cccl",
}


@dataclass(frozen=True)
class Toolkit:
    """A CUDA compiler, and the headers and the static runtime that go with it.

    Attributes
    ----------
    home : Path
        Folder with bin/nvcc.
    version : str
        Of nvcc, such as "13.0".
    headers : tuple of Path
        Include folders that nvcc has to be told of, because they do not lie in its own.
    library : Path or None
        Folder with libcudart_static.a; None where only the linker may know.
    """

    home: Path
    version: str
    headers: tuple[Path, ...] = ()
    library: Path | None = None


def sources(pattern: str) -> list[str]:
    """Paths relative to the root, as setuptools wants them, in an order that does not depend on the file system."""
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob(pattern))


def requested_mode() -> str:
    """Return SRR_BUILD, checked."""
    mode = os.environ.get("SRR_BUILD", "auto").lower()
    if mode not in MODES:
        sys.exit(f"SRR_BUILD must be one of {', '.join(MODES)}, got {mode!r}")
    return mode


def sanitized(mode: str) -> bool:
    """Whether SRR_SANITIZE asks for a build under sanitizers, which is one of the CPU kernels alone."""
    kind = os.environ.get("SRR_SANITIZE", "")
    if kind not in ("", "address"):
        sys.exit(f"SRR_SANITIZE must be address or empty, got {kind!r}")
    if kind and mode != "cpu":
        sys.exit(f"SRR_SANITIZE={kind} goes with SRR_BUILD=cpu, got SRR_BUILD={mode}")
    return bool(kind)


def pip_folders() -> list[Path]:
    """Folders in which pip puts CUDA 13 and later: site-packages/nvidia/cu13 has bin, include and lib."""
    found = [path for entry in sys.path for path in sorted(Path(entry or ".").glob("nvidia/cu[0-9]*"), reverse=True)]
    return [path.resolve() for path in dict.fromkeys(found)]


def toolkit_folders() -> list[Path]:
    """Folders that may have bin/nvcc: CUDA_HOME alone if it is set, else pip's, the PATH's and the usual ones."""
    chosen = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if chosen:
        return [Path(chosen)]
    folders = pip_folders()
    nvcc = shutil.which("nvcc")
    if nvcc:
        folders.append(Path(nvcc).resolve().parent.parent)
    folders += [Path("/usr/local/cuda"), *sorted(Path("/usr/local").glob("cuda-*"), reverse=True)]
    return list({folder.resolve(): folder for folder in reversed(folders)}.values())[::-1]  # one name for each


def inspect_toolkit(home: Path) -> Toolkit | str:
    """Return the toolkit whose nvcc lies in a folder, completed from pip's packages, or say what it lacks."""
    nvcc = home / "bin" / "nvcc"
    if not nvcc.is_file():
        return f"{home} has no bin/nvcc"
    # An nvcc on the PATH may be a wrapper: without its profile or headers beside it, it is not where the toolkit is.
    if not ((home / "bin" / "nvcc.profile").is_file() or (home / "include" / "cuda_runtime.h").is_file()):
        return f"{home} has neither bin/nvcc.profile nor include/cuda_runtime.h"
    own, others = [home / "include", home / "include" / "cccl"], []
    for folder in pip_folders():
        others += [folder / "include", folder / "include" / "cccl"]
    headers = []
    for header, package in CUDA_HEADERS.items():
        folder = next((folder for folder in [*own, *others] if (folder / header).is_file()), None)
        if folder is None:
            return f"{home} has no include/{header}: install it, or `pip install {package}`"
        if folder not in [*own, *headers]:
            headers.append(folder)
    told = subprocess.run([str(nvcc), "--version"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"release (\d+\.\d+)", told)
    if version is None:
        return f"{nvcc} --version does not tell its release"
    places = [home / name for name in ("lib64", "lib", "targets/x86_64-linux/lib")]
    places += [folder.parent / "lib" for folder in headers]
    library = next((place for place in places if (place / "libcudart_static.a").is_file()), None)
    return Toolkit(home, version[1], tuple(headers), library)


def find_toolkit(torch_cuda: str) -> Toolkit | str:
    """Return the first toolkit that torch's version of CUDA can be compiled with, or say why there is none."""
    reasons = []
    for home in toolkit_folders():
        found = inspect_toolkit(home)
        if isinstance(found, str):
            reasons.append(found)
        elif found.version.split(".")[0] != torch_cuda.split(".")[0]:
            reasons.append(f"{home} has nvcc {found.version}, but this torch has CUDA {torch_cuda}")
        else:
            return found
    known = [reason for reason in reasons if not reason.endswith("no bin/nvcc") or len(reasons) == 1]
    return "; ".join(known) or "no CUDA toolkit found; set CUDA_HOME to a folder with bin/nvcc"


def decide_cuda(mode: str) -> tuple[Toolkit | None, str]:
    """Return the toolkit to build the CUDA kernels with, or None, and why."""
    if mode in ("cpu", "none"):
        return None, f"SRR_BUILD={mode}"
    found: Toolkit | str = "csrc/cuda has no kernels"
    if sources("cuda/*.cu"):
        import torch

        found = "this torch has no CUDA" if torch.version.cuda is None else find_toolkit(torch.version.cuda)
    if isinstance(found, Toolkit):
        return found, f"nvcc {found.version} in {found.home}"
    if mode == "cuda":
        sys.exit(f"SRR_BUILD=cuda, but {found}")
    return None, found


def torch_target_flag() -> str:
    """Return the macro that pins the stable ABI."""
    major, minor = map(int, TORCH_TARGET.split("."))
    return f"-DTORCH_TARGET_VERSION=0x{major:02x}{minor:02x}000000000000"


def extensions(toolkit: Toolkit | None, sanitize: bool = False) -> list[Extension]:
    """List the objects to build: _C, and _C_cuda with the CUDA kernels."""
    if toolkit:  # before torch.utils.cpp_extension is imported: it reads both once, and fails without a GPU
        os.environ["CUDA_HOME"] = str(toolkit.home)
        import torch

        if not torch.cuda.is_available():
            os.environ.setdefault("TORCH_CUDA_ARCH_LIST", DEFAULT_CUDA_ARCHS)
    import pybind11
    from torch.utils.cpp_extension import CppExtension

    flags = SANITIZE_FLAGS if sanitize else []
    built = [
        CppExtension(
            f"{PACKAGE}._C",
            ["csrc/library.cpp", *sources("cpu/*.cpp")],
            include_dirs=[pybind11.get_include()],
            extra_compile_args={"cxx": [*CXX_FLAGS, torch_target_flag(), *flags]},
            extra_link_args=flags,
            depends=sources("**/*.*h"),
        )
    ]
    return [*built, cuda_extension(toolkit)] if toolkit else built


def cuda_extension(toolkit: Toolkit) -> Extension:
    """Describe _C_cuda.

    The CUDA runtime is linked statically and its symbols are kept inside: the object then loads under any torch, also
    one that brings another version of the runtime, as the stable ABI allows. What it needs of the machine is a driver
    of its own CUDA version or a later one.
    """
    from torch.utils.cpp_extension import CUDAExtension

    extension = CUDAExtension(
        f"{PACKAGE}._C_cuda",
        sources("cuda/*.cu"),
        include_dirs=[str(folder) for folder in toolkit.headers],
        library_dirs=[str(toolkit.library)] if toolkit.library else [],
        extra_compile_args={
            "cxx": [*CXX_FLAGS, torch_target_flag()],
            "nvcc": [*NVCC_FLAGS, torch_target_flag()],
        },
        extra_link_args=["-Wl,--exclude-libs,libcudart_static.a"],
        depends=sources("**/*.*h"),
    )
    extension.libraries = [name for name in extension.libraries if name != "cudart"]
    extension.libraries += ["cudart_static", "dl", "pthread", "rt"]
    return extension


def build_config(mode: str, toolkit: Toolkit | None) -> dict[str, object]:
    """Describe the build, for the package to read when it loads."""
    if mode == "none":
        return {"requested": mode, "build": "none", "cuda": None, "cuda_archs": [], "torch_target": None}
    config: dict[str, object] = {"requested": mode, "build": "cuda" if toolkit else "cpu", "torch_target": TORCH_TARGET}
    config["cuda"], config["cuda_archs"] = None, []
    if toolkit:
        config["cuda"] = toolkit.version
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
    sanitize = sanitized(mode)
    toolkit, reason = decide_cuda(mode)
    built = "none" if mode == "none" else "cuda" if toolkit else "cpu"
    print(f"srr_ext: SRR_BUILD={mode}, building {built} ({reason})", file=sys.stderr, flush=True)
    if mode == "none":
        BuildPy.config = build_config(mode, toolkit)
        setup(cmdclass={"build_py": BuildPy})
        return

    ext_modules = extensions(toolkit, sanitize)
    BuildPy.config = build_config(mode, toolkit)  # after extensions(), which settles the CUDA architectures
    from torch.utils.cpp_extension import BuildExtension

    class BuildExt(BuildExtension):
        """BuildExtension that leaves objects and record in the source tree too, which shadows an installed copy."""

        def run(self) -> None:
            if sanitize and self.inplace:
                sys.exit("SRR_SANITIZE goes without an editable install: the library would lie in the source tree")
            super().run()
            if sanitize:
                return  # whoever imports it from the source tree without the sanitizers' libraries could not load it
            if not self.inplace:
                self.copy_extensions_to_source()
            write_config(ROOT / PACKAGE, BuildPy.config)

    setup(ext_modules=ext_modules, cmdclass={"build_py": BuildPy, "build_ext": BuildExt})


if __name__ == "__main__":
    main()
