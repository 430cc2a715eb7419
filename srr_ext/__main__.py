"""The console script ``srr`` and ``python -m srr_ext``: ``srr prune``, ``srr train``, ..."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

# Module of each command and what it does; imported when asked for, so that help comes at once.
COMMANDS = {
    "prune": ("srr_ext.prune", "train or load a network, prune it, fine-tune it, write a run folder"),
    "sparsify": ("srr_ext.sparsify", "the same for single weights instead of channels: masks, tickets, rewinding"),
    "compare": ("srr_ext.compare", "compare methods over targets and seeds, beside controls; running it again goes on"),
    "train": ("srr_ext.train", "train a dense network and write a run folder"),
    "analyze": ("srr_ext.cli.analyze", "show the structural redundancy of every group of channels"),
    "evaluate": ("srr_ext.evaluate", "measure the accuracy of a network, dense or pruned, on the test images"),
    "export": ("srr_ext.export", "write a network as ONNX, exported program or TorchScript, and compare the file"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    argv : sequence of str, optional
        The command's name and its arguments; default those of the process.

    Returns
    -------
    int
        Exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    listing = "\n".join(f"  {name:<10}{text}" for name, (_, text) in COMMANDS.items())
    usage = f"usage: srr COMMAND [options]\n\n{listing}\n\nsrr COMMAND --help lists the options.\n"
    if arguments and arguments[0] in ("-h", "--help"):
        sys.stdout.write(usage)
        return 0
    if not arguments or arguments[0] not in COMMANDS:
        given = f"{arguments[0]!r} is no command" if arguments else "a command is missing"
        sys.stderr.write(f"srr: error: {given}; there are {', '.join(COMMANDS)}\n")
        return 2
    if "" not in sys.path:
        sys.path.insert(0, "")  # as python -m does: --model package.module:factory may be in the current folder
    name, _ = COMMANDS[arguments[0]]
    return int(importlib.import_module(name).main(arguments[1:], prog=f"srr {arguments[0]}"))


if __name__ == "__main__":
    sys.exit(main())
