"""Write the network of a run to one file for elsewhere, and check that file on test images.

    python -m srr_ext.export runs/digits_cnn-digits-001                          # runs/.../model.onnx
    python -m srr_ext.export runs/digits_cnn-digits-001 --format exported-program --output digits.pt2
    python -m srr_ext.export --model resnet56 --weights resnet56.th --data folder:PATH --output resnet56.onnx

What is written, and how it is checked, is in :mod:`srr_ext.exporting`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from srr_ext.artifacts import CHECKPOINT, WEIGHTS
from srr_ext.cli import steps
from srr_ext.cli.loading import trained_network
from srr_ext.cli.parsing import UsageError, blame, command
from srr_ext.cli.running import Session, on_screen, terminable
from srr_ext.cli.tables import make_console
from srr_ext.config import ExportConfig
from srr_ext.exporting import Exported, export, suffix_of

_READ_BY = {
    "onnx": "onnxruntime.InferenceSession({!r})",
    "exported-program": "torch.export.load({!r}).module()",
    "torchscript": "torch.jit.load({!r})",
}


def export_network(config: ExportConfig, session: Session) -> Exported:
    """Write the file.

    Parameters
    ----------
    config : ExportConfig
        Which network, which images to check it on, and what to write.
    session : Session
        Shows how far the work is.

    Returns
    -------
    Exported

    Raises
    ------
    UsageError
        Something the user can put right; nothing is then left behind.
    """
    path = place_of(config)
    if config.run is not None and (config.run / CHECKPOINT).exists() and not (config.run / WEIGHTS).exists():
        raise UsageError("--run", f"{config.run} was stopped before its network was there; go on with --resume")
    network, images = trained_network(config, session)
    if images.size("test") < 2:
        raise UsageError("--data", f"{images.name} has a single test image; the file is compared on two or more")
    batch, _ = next(iter(images.batches("test", min(config.images, images.size("test")))))
    with blame("--output", ExportConfig):
        return export(network, batch, path, config.format, tolerance=config.tolerance)


def place_of(config: ExportConfig) -> Path:
    """Return the file to write, or refuse a place that is taken or missing."""
    if config.output is None and config.run is None:
        raise UsageError("--output", "name the file to write; without --run there is no folder for it")
    path = config.output or Path(str(config.run), f"model{suffix_of(config.format)}")
    if path.exists() or (config.output is not None and not path.parent.is_dir()):
        raise UsageError("--output", f"{path} is there already, or its folder is not; name a new file")
    return path


def export_and_show(config: ExportConfig, arguments: list[str], prog: str) -> None:
    """Export and say what was compared."""
    steps.check(config)
    if config.images < 2:
        raise UsageError("--images", f"must be at least 2, but is {config.images}")
    with terminable():
        made = export_network(config, on_screen())
    console = make_console()
    console.print(
        f"{made.path}: {made.format}, {made.n_bytes:,} bytes; loaded back, its scores of {made.batch_sizes[-1]} test "
        f"images, one alone and all at once, differ by at most {made.difference:.1e} (the largest is "
        f"{made.largest:.3g})",
        markup=False,
        soft_wrap=True,
    )
    console.print(f"next: {_READ_BY[made.format].format(str(made.path))}", markup=False, soft_wrap=True)


_main = command(ExportConfig, "srr_ext.export", export_and_show)


def main(argv: Sequence[str] | None = None, prog: str = "python -m srr_ext.export") -> int:
    """Run the command; its first argument may be the run folder, without ``--run``.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; default those of the process.
    prog : str
        Name of the command.

    Returns
    -------
    int
        Exit code.
    """
    return _main(with_flag(sys.argv[1:] if argv is None else argv), prog)


def with_flag(arguments: Sequence[str]) -> list[str]:
    """Put ``--run`` before a first argument that is no flag."""
    bare = bool(arguments) and not arguments[0].startswith("-")
    return ["--run", *arguments] if bare else list(arguments)


if __name__ == "__main__":
    sys.exit(main())
