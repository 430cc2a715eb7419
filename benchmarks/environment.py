"""What the measurements were made with."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch

from srr_ext import _native


def cpu_name() -> str:
    """Name of the processor, as the system has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def describe(device: torch.device) -> dict[str, Any]:
    """Describe the machine, the device and the versions, without names of hosts or users."""
    info = _native.build_info()
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": cpu_name(),
        "cpu_kernel": info["cpu_kernel"],
        "threads": torch.get_num_threads(),
        "build": info["build"],
        "cuda": info["cuda"],
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
