"""Processes that do one job together, as torchrun starts them: who is who, and the few words that they exchange.

All do the same steps on the same settings. In between they divide images and exchange gradients, statistics and counts;
every decision is made by each, and compared. What only one may do, to write files say, the first does.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

_GRACE = 5.0  # seconds
_PATIENCE = timedelta(hours=2)  # of those who wait for the first, which takes times and draws figures in between


@dataclass(frozen=True)
class Processes:
    """Who this process is among those that it works with.

    Every method but ``share`` is for all to call, in the same order; with one process they are free.

    Attributes
    ----------
    rank : int
        Of this process, from 0.
    count : int
        Of all of them.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    @property
    def share(self) -> slice:
        """Which of some items are this process's: every ``count``-th."""
        return slice(self.rank, None, self.count)

    def sum(self, *values: float) -> list[float]:
        """Return the sums over all processes, of numbers up to 2^53 exactly where they are whole."""
        if self.count == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def gather(self, tensor: Tensor) -> Tensor:
        """Return the tensors of all processes, [count, ...]; they are of one shape and dtype, on any device."""
        if self.count == 1:
            return tensor[None]
        gathered = tensor.new_empty((self.count, *tensor.shape))
        dist.all_gather(list(gathered.unbind()), tensor.contiguous())
        return gathered

    def from_first(self, make: Callable[[], T]) -> T:
        """Return what the first process alone makes; JSON has to be able to hold it."""
        if self.count == 1:
            return make()
        text = json.dumps(make()).encode() if self.first else b""  # not an object as such: that takes a pickle
        size = torch.tensor(len(text))
        dist.broadcast(size, 0)
        letters = torch.empty(int(size), dtype=torch.uint8)
        if self.first:
            letters = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        dist.broadcast(letters, 0)
        return json.loads(letters.numpy().tobytes())

    def agree(self, what: str, content: bytes) -> None:
        """Make sure that all processes have the same.

        Parameters
        ----------
        what : str
            What it is called in the message.
        content : bytes
            Compared by its SHA-256.

        Raises
        ------
        Disagreement
            They have not.
        """
        if self.count == 1:
            return
        digest = hashlib.sha256(content).digest()
        every = self.gather(torch.frombuffer(bytearray(digest), dtype=torch.uint8))
        odd = [rank for rank, other in enumerate(every) if not torch.equal(other, every[0])]
        if odd:
            found = ", ".join(f"{bytes(every[rank].tolist()).hex()[:8]} in {rank}" for rank in (0, *odd))
            raise Disagreement(
                f"{self.count} processes do not agree on the {what} (SHA-256 {found}), though they did the same steps; "
                "are versions, devices and files the same on all nodes?"
            )

    def wait(self) -> None:
        """Wait for all processes to come here."""
        if self.count > 1:
            self.sum(0)  # a barrier of NCCL would need to know the device


class Disagreement(RuntimeError):
    """Processes that should have the same have not."""


ALONE = Processes()


def processes() -> Processes:
    """Return the processes that this one works with: those of the process group of torch.distributed, if there is one.

    Returns
    -------
    Processes
    """
    if not (dist.is_available() and dist.is_initialized()):
        return ALONE
    return Processes(dist.get_rank(), dist.get_world_size())


def started() -> int:
    """Count the processes that were started together with this one, whether or not they have met yet."""
    try:
        return max(1, int(os.environ.get("WORLD_SIZE", "1")))
    except ValueError:
        return 1


def is_first() -> bool:
    """Whether this is the first of the processes that were started together, whether or not they have met yet."""
    return os.environ.get("RANK", "0") == "0" or started() == 1


def leave(code: int) -> int:
    """Return the exit code of a process that failed; one of several ends here, where Python would abort it.

    What ends Python in order waits for threads of the group, which wait for the other processes.
    """
    if started() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def let_the_first_speak() -> None:
    """Wait, in the other processes, before an error is told that most likely all have met.

    When the first has told it and ended, torchrun ends the others.
    """
    if not is_first():
        time.sleep(_GRACE)


@contextmanager
def together() -> Iterator[Processes]:
    """Let processes that torchrun has started meet, and part at the end; a single one needs nobody.

    Each takes the GPU of its number on its node, if there is one. Tensors on CPUs go through gloo, those on GPUs
    through NCCL.

    Yields
    ------
    Processes
    """
    if started() == 1 or dist.is_initialized():
        yield processes()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        dist.init_process_group("cpu:gloo,cuda:nccl", timeout=_PATIENCE)
    else:
        dist.init_process_group("gloo", timeout=_PATIENCE)
    yield processes()
    # Not after an error: the others may not come here, and torchrun ends them.
    gc.collect()  # networks prepared for several processes hold on to the group, whose threads would outlive Python
    dist.destroy_process_group()


@contextmanager
def one_by_one_on_a_node() -> Iterator[None]:
    """Let one process of every node go through this before the others, as for what is downloaded and then there."""
    here, leads = processes(), os.environ.get("LOCAL_RANK", "0") == "0"
    if not leads:
        here.wait()
    yield
    if leads:
        here.wait()


def is_lost(error: BaseException) -> bool:
    """Whether an error says that another process has gone, which no library has a class for."""
    words = ("gloo", "nccl", "connection closed by peer", "connection reset", "process group")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
