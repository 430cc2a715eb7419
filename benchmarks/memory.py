"""Peak memory of one call, beyond what was there before it."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from pathlib import Path

import torch


def _resident(kind: str) -> int:
    """Bytes of this process in memory now ("VmRSS") or at most so far ("VmHWM")."""
    found = re.search(rf"^{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"), re.M)
    assert found is not None
    return 1024 * int(found[1])


def peak_bytes(function: Callable[[], object], device: torch.device) -> int:
    """Call a function, and return by how much memory rose at most meanwhile, its result included.

    On a CPU, that of the process, as Linux counts it; freed memory that the C library (glibc) keeps is handed back
    before. Take a fresh process, where nothing else allocates. On a GPU, that of torch's allocator.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak so far is forgotten
    before = _resident("VmRSS")
    function()
    return _resident("VmHWM") - before
