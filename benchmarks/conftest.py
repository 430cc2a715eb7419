"""Options and fixtures of the benchmarks: where they compute, how long, and how a path is timed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import environment
import layers
import pytest
import torch
from race import Race

TWO_CORES = 2  # the CPU path that a GPU is compared with


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("srr_ext")
    group.addoption("--device", choices=("cpu", "cuda"), default="cpu", help="where ours and the peers compute")
    group.addoption("--quick", action="store_true", help=f"few rounds, fewer rows; {' and '.join(layers.QUICK)} alone")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--device") == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda: there is no CUDA device here; leave it out to measure the CPU")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what the options exclude: other networks, training, and a second CPU path beside the first."""

    def wanted(item: pytest.Item) -> bool:
        parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        if config.getoption("--quick") and parameters.get("network") not in layers.QUICK:
            return False
        if config.getoption("--quick") and (
            parameters.get("density") == "half" or parameters.get("path") == "networkx"
        ):
            return False  # NetworkX takes half a minute for each; a sparse graph is evaluated with it
        if config.getoption("--quick") and parameters.get("gamma") == "given" and parameters["path"] != "reference":
            return False
        return parameters.get("path") != "ours_cpu" or config.getoption("--device") == "cuda"

    config.hook.pytest_deselected(items=[item for item in items if not wanted(item)])
    items[:] = filter(wanted, items)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Write what the figures depend on, and no name of a host."""
    machine_info.clear()
    machine_info.update(environment.describe(torch.device(config.getoption("--device"))))


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """Write the statistics without every single round, so that records can be kept."""
    output_json["quick"] = config.getoption("--quick")
    output_json["commit_info"] = {key: output_json["commit_info"].get(key) for key in ("id", "dirty")}
    for record in output_json["benchmarks"]:
        record["stats"].pop("data", None)


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where ours and the peers compute."""
    return torch.device(request.config.getoption("--device"))


@pytest.fixture
def race(request: pytest.FixtureRequest, benchmark: Any, device: torch.device) -> Iterator[Race]:
    """Timer of one row; of the row "ours_cpu" with two threads."""
    threads, path = torch.get_num_threads(), request.node.callspec.params["path"]
    if path == "ours_cpu":
        torch.set_num_threads(TWO_CORES)
    yield Race(benchmark, device, path, request.config.getoption("--quick"))
    torch.set_num_threads(threads)
