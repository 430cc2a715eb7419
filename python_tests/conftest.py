"""What every test gets: seeded random numbers, and one thread per worker; and the device, for those that ask for it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Make examples and initial weights the same in every run, whatever ran before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def why_no_cuda() -> str | None:
    """Say why tests with a GPU cannot run here, or None where they can."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    from srr_ext import _native

    if _native.build_info()["build"] != "cuda":
        return "srr_ext was built without CUDA"
    return None


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Run the test on the CPU, and on the GPU where there is one."""
    if request.param == "cuda" and (reason := why_no_cuda()):
        pytest.skip(reason)
    return torch.device(request.param)


@pytest.fixture
def cuda() -> torch.device:
    """Give the GPU to a test that makes no sense without one."""
    if reason := why_no_cuda():
        pytest.skip(reason)
    return torch.device("cuda")
