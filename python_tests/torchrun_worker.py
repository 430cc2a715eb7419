"""What test_torchrun.py lets torchrun start: commands of the package, watched, and ended where the test wants it.

    torchrun --standalone --nproc-per-node 2 torchrun_worker.py '[["prune", "--output", "run"], ["train"]]'

Latency is measured in next to no time, and the state of every epoch is kept. A process other than the first that
changes a file below the current folder ends at once. ``DIE`` says who dies when and how: ``1@3:kill`` is rank 1, by
SIGKILL, when it comes for the third time to the end of an epoch or to something that the first process writes;
``0@2:term`` sends SIGTERM to torchrun, ``*@2:kill`` ends all, ``1@2:error`` raises what nobody expects.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srr_ext.__main__ import main
from srr_ext.channels.records import ChannelGroup
from srr_ext.cli import running
from srr_ext.criteria import SelectorContext, get_selector, register_selector
from srr_ext.processes import is_first, together
from srr_ext.training import loop

RANK = os.environ.get("RANK", "0")
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree"}


def stay_out_of_files() -> None:
    """End this process when it changes a file below the current folder."""
    here = str(Path.cwd())

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        changes = event in CHANGES or (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        )
        if changes and isinstance(arguments[0], (str, bytes, os.PathLike)):
            path = os.path.abspath(os.fsdecode(arguments[0]))
            if path.startswith(here):
                os.write(2, f"\nrank {RANK} changes {path} ({event})\n".encode())
                os._exit(77)

    sys.addaudithook(look)


def die_as_told(told: str) -> None:
    """Count the moments that all processes come to alike, and die at one of them."""
    rank, _, rest = told.partition("@")
    moment, _, how = rest.partition(":")
    passed = 0

    def tick() -> None:
        nonlocal passed
        passed += 1
        if passed == int(moment) and rank in (RANK, "*"):
            if how == "error":
                raise RuntimeError("planted")
            if how == "term":
                os.kill(os.getppid(), signal.SIGTERM)
            else:
                os.kill(os.getpid(), signal.SIGKILL)

    def ticking(do: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            result = do(*arguments, **keywords)
            tick()
            return result

        return wrapped

    loop.state_of = ticking(loop.state_of)
    running.Run.write = ticking(running.Run.write)  # type: ignore[method-assign]


def by_rank(groups: Sequence[ChannelGroup], context: SelectorContext) -> list[Tensor]:
    """Score channels otherwise in every process."""
    scores = get_selector("l1")(groups, context)
    return scores if is_first() else [-score for score in scores]


def run(commands: list[list[str]]) -> int:
    """Run them one after the other; return the first exit code that is not 0."""
    on_screen = running.on_screen
    running.on_screen = lambda: replace(on_screen(), seconds=0.01)
    running.SECONDS_BETWEEN_STATES = 0.0
    torch.set_num_threads(1)
    if not is_first():
        stay_out_of_files()
    if told := os.environ.get("DIE"):
        die_as_told(told)
    if len(commands) == 1:
        return main(commands[0])
    with together():
        return next((code for command in commands if (code := main(command))), 0)


if __name__ == "__main__":
    if "BY_RANK" in os.environ:
        register_selector("by_rank")(by_rank)
    sys.exit(run(json.loads(sys.argv[1])))
