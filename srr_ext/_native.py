"""Load the native library, once, and tell how it was built.

Importing this module registers ``torch.ops.srr_ext``. A build with ``SRR_BUILD=none`` wanted no library: then
``AVAILABLE`` is False, one warning says so, and the package computes with its plain Python reference. A library that
was wanted and is missing is an error, never a silent change of speed.
"""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

_FOLDER = Path(__file__).resolve().parent
_HOW = "build it with `pip install --no-build-isolation -e .` in a clone, or install the package again"


def _read_config() -> dict[str, Any]:
    path = _FOLDER / "_build_config.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def _load(config: dict[str, Any]) -> ModuleType | None:
    if config.get("build") == "none":
        warnings.warn(
            "srr_ext was built with SRR_BUILD=none: its ops run as plain Python, correct but thousands of times slower",
            RuntimeWarning,
            stacklevel=_level_outside_the_package(),
        )
        return None
    _find("_C")
    try:
        library = importlib.import_module("._C", __package__)
    except ImportError as error:
        raise ImportError(f"srr_ext's native library could not be loaded ({error}): {_HOW}") from error
    if torch.version.cuda is not None and config.get("build") == "cuda":
        path = _find("_C_cuda")
        try:
            torch.ops.load_library(str(path))
        except OSError as error:
            raise ImportError(f"srr_ext's CUDA kernels could not be loaded ({error}): {_HOW}") from error
    return library


def _level_outside_the_package() -> int:
    """Stack level, for a warning of the calling function, of the first frame that is not this package's."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and Path(frame.f_code.co_filename).is_relative_to(_FOLDER):
        frame = frame.f_back
        while frame.f_back is not None and "importlib._bootstrap" in frame.f_code.co_filename:
            frame = frame.f_back  # the warnings module does not count these
        level += 1
    return level


def _find(name: str) -> Path:
    for suffix in EXTENSION_SUFFIXES:
        if (_FOLDER / f"{name}{suffix}").is_file():
            return _FOLDER / f"{name}{suffix}"
    raise ImportError(f"srr_ext's native library {name} is missing from {_FOLDER}: {_HOW}")


_CONFIG = _read_config()
_LIBRARY = _load(_CONFIG)

AVAILABLE = _LIBRARY is not None


def build_info() -> dict[str, Any]:
    """How the native library was built, and what it uses here.

    Returns
    -------
    dict
        ``build`` ("cpu", "cuda", "none", or "unknown" when the record of the build is missing), ``requested`` (the
        SRR_BUILD that was asked for), ``compiler``, ``cxx_standard``, ``cuda`` (toolkit version or None),
        ``cuda_archs``, ``torch_target`` (oldest torch the library runs under), ``torch_built`` (the one it was compiled
        against), ``torch`` (the one it runs under), ``cpu_features`` and ``cpu_kernel`` (what this CPU has, and which
        matrix kernel was chosen for it), ``sanitizer`` ("address" for a build with SRR_SANITIZE=address, else empty).
        Without a library the facts about it are None or empty.

    Examples
    --------
    >>> sorted(build_info())[:3]
    ['build', 'compiler', 'cpu_features']
    """
    info: dict[str, Any] = {
        "build": "unknown",
        "requested": None,
        "compiler": None,
        "cxx_standard": None,
        "cuda": None,
        "cuda_archs": [],
        "torch_target": None,
        "torch_built": None,
        "torch": torch.__version__,
        "cpu_features": [],
        "cpu_kernel": None,
        "sanitizer": "",
    }
    info.update(_CONFIG)
    if _LIBRARY is not None:
        info.update(_LIBRARY.build_info())
    return info
