"""Measured times, remembered per device: what has been measured once is read from then on."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from srr_ext.files import cache_folder, read_json, write_json
from srr_ext.latency_table.operations import Operation
from srr_ext.latency_table.stopwatch import Stopwatch, TorchStopwatch

VERSION = 1


class LatencyTable:
    """Times of operations and of whole networks on one device.

    Parameters
    ----------
    device : torch.device or str
        Where they are computed.
    stopwatch : Stopwatch, optional
        What measures; by default the real times of the device.
    cache : bool or Path, default True
        Where they are kept: True for ``$XDG_CACHE_HOME/srr_ext/latency`` (``~/.cache/srr_ext/latency`` without that
        variable), a folder of your own, or False for nowhere.

    Attributes
    ----------
    environment : dict
        What times depend on beside the shapes: ``device`` (name of the processor or GPU), ``capability`` (its vector
        instructions), ``threads``, ``torch`` and ``settings`` of torch that choose algorithms. Each has a file of its
        own.

    Warns
    -----
    UserWarning
        If a file of the cache is damaged, which is made anew, or the cache cannot be written.

    Notes
    -----
    Two processes may use the same file: each adds what it has measured to what the file then holds, under a lock, and
    puts the new file in the place of the old one. What stands there first stays.
    """

    def __init__(
        self, device: torch.device | str, *, stopwatch: Stopwatch | None = None, cache: bool | Path = True
    ) -> None:
        self.environment = environment_of(torch.device(device))
        self._stopwatch = stopwatch or TorchStopwatch()
        self._path = self._find(cache)
        self._operations: dict[str, int | None] = {}
        self._networks: dict[str, list[int]] = {}
        self._asked: dict[str, Any] = {}
        self._new = False
        if self._path is not None and self._path.is_file():
            self._operations, self._networks = self._read(self._path)

    @property
    def block(self) -> int:
        """How many channels the device computes at once, which is where times go up by steps."""
        return 16 if "512" in self.environment["capability"] else 8

    def begin(self, device: torch.device) -> None:
        """Forget what has been asked so far, which `digest` is about; what has been measured stays.

        Parameters
        ----------
        device : torch.device
            Where the next operations are.

        Raises
        ------
        ValueError
            If the table is of another device or number of threads: its times would be remembered as those.
        """
        here = environment_of(device)
        for name in ("device", "threads"):
            if here[name] != self.environment[name]:
                raise ValueError(
                    f"latency_table: is of {self.environment[name]!r} ({name}), and here it is {here[name]!r}; make it "
                    "for the model's device, after the number of threads is set"
                )
        self._asked = {}

    def operation(self, operation: Operation) -> int | None:
        """Return the nanoseconds of an operation; None if it cannot be measured by itself."""
        key = operation.key
        if key not in self._operations:
            self._operations[key] = self._stopwatch.operation(operation)
            self._new = True
        self._asked[key] = self._operations[key]
        return self._operations[key]

    def networks(self, names: Sequence[str], inputs: Any, make: Callable[[], Sequence[Any]]) -> list[int]:
        """Return the nanoseconds of a forward pass of some networks, measured in turns.

        Parameters
        ----------
        names : sequence of str
            One digest per network, of all that it does; see `digest_of`.
        inputs : Tensor, tuple or dict
            Their arguments.
        make : callable
            Returns the networks, if they are not known.
        """
        key = " ".join(names)
        if key not in self._networks:
            self._networks[key] = list(self._stopwatch.networks(make(), inputs))
            self._new = True
        self._asked[key] = self._networks[key]
        return self._networks[key]

    @property
    def digest(self) -> str:
        """SHA-256 of the environment and of everything that has been asked for since `begin`, with the answers."""
        content = json.dumps([self.environment, self._asked], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def save(self) -> None:
        """Add what is new to the file of the cache."""
        if self._path is None or not self._new:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self._path):
                operations, networks = self._read(self._path) if self._path.is_file() else ({}, {})
                record = {
                    "version": VERSION,
                    "environment": self.environment,
                    "operations_ns": dict(sorted((self._operations | operations).items())),
                    "networks_ns": dict(sorted((self._networks | networks).items())),
                }
                write_json(self._path, record)
        except OSError as error:
            warnings.warn(
                f"the cache cannot be written ({error}); set XDG_CACHE_HOME to a folder of yours", stacklevel=2
            )
        self._new = False

    def _find(self, cache: bool | Path) -> Path | None:
        """Return the file of this environment."""
        if cache is False:
            return None
        try:
            folder = cache_folder() / "latency" if cache is True else Path(cache)
        except RuntimeError as error:  # no home folder
            warnings.warn(f"the cache cannot be written ({error}); set XDG_CACHE_HOME", stacklevel=3)
            return None
        text = json.dumps(self.environment, sort_keys=True)
        name = re.sub(r"\W+", "-", self.environment["device"]).strip("-").lower()[:40]
        return folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"

    def _read(self, path: Path) -> tuple[dict[str, int | None], dict[str, list[int]]]:
        """Return what a file holds; nothing, with a warning, if it is damaged."""
        try:
            return _checked(read_json(path), self.environment)
        except (ValueError, OSError) as error:
            warnings.warn(f"{path} is no whole table of latencies ({error}); it is made anew", stacklevel=3)
            return {}, {}


def digest_of(operations: Sequence[Operation]) -> str:
    """Return the digest of a network that does these operations."""
    return hashlib.sha256("\n".join(operation.key for operation in operations).encode()).hexdigest()


def environment_of(device: torch.device) -> dict[str, Any]:
    """Return what times depend on beside the shapes."""
    found: dict[str, Any] = {"torch": torch.__version__}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        backends = torch.backends
        settings = [torch.get_float32_matmul_precision(), backends.cudnn.enabled, backends.cudnn.benchmark]
        name, version = properties.name, f"{properties.major}.{properties.minor}"
        return {"device": name, "capability": version, "threads": 0, "settings": settings} | found
    settings = [torch.get_float32_matmul_precision(), torch.backends.mkldnn.enabled]
    return {
        "device": _processor() if device.type == "cpu" else str(device),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "settings": settings,
    } | found


def _processor() -> str:
    """Name the processor."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    named = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    return named[1].strip() if named else platform.processor() or platform.machine()


def _checked(record: Any, environment: dict[str, Any]) -> tuple[dict[str, int | None], dict[str, list[int]]]:
    """Return what a cache file holds, if it is a table of this environment."""
    try:
        operations, networks = record["operations_ns"], record["networks_ns"]
        whole = record["version"] == VERSION and record["environment"] == environment
        whole &= all(value is None or _is_time(value) for value in operations.values())
        whole &= all(len(key.split()) == len(value) and all(map(_is_time, value)) for key, value in networks.items())
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a table: {error!r}") from error
    if not whole:
        raise ValueError("not the table its name says, or with times that are none")
    return operations, networks


def _is_time(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other processes and threads from writing the same file."""
    import fcntl

    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
