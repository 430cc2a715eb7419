"""Rewinding in a comparison: which moments of the dense training its methods go back to, and whether they are there."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from srr_ext import models
from srr_ext.artifacts import snapshot_name
from srr_ext.cli.parsing import UsageError, blame
from srr_ext.cli.training import check_moments, steps_per_epoch
from srr_ext.comparison.grid import REWINDS, Cell
from srr_ext.config import CompareConfig
from srr_ext.data import ImageData


def moments(cells: Sequence[Cell]) -> tuple[str, ...]:
    """Return the moments of the dense training whose weights cells go back to, in the order in which they appear."""
    return tuple(dict.fromkeys(str(cell.config.retraining.begin) for cell in _rewound(cells)))


def check(config: CompareConfig, cells: Sequence[Cell], dense: Path) -> None:
    """Refuse rewinding to where there is nothing, and settings for it that no method asks for.

    Parameters
    ----------
    config : CompareConfig
        Everything the user decides.
    cells : sequence of Cell
        Whose settings are valid by themselves.
    dense : Path
        Folder of the dense network, if the comparison has trained it already.

    Raises
    ------
    UsageError
        It names the flag.
    """
    wanted = moments(cells)
    if config.rewind_to is not None and not any(cell.config.rewind_to == config.rewind_to for cell in cells):
        raise UsageError("--rewind-to", f"is {config.rewind_to}, but no method that rewinds leaves the moment to it")
    if config.weights is None:
        if config.rewind_weights is not None:
            raise UsageError("--rewind-weights", "goes with --weights; a network that is trained here keeps its own")
        for cell in _rewound(cells):
            moment = cell.config.retraining.begin
            if dense.is_dir() and not (dense / snapshot_name(moment)).is_file():
                raise UsageError(
                    "--methods",
                    f"{cell.method.text!r} rewinds weights to {moment}, which were not kept when {dense} was trained; "
                    "name a new folder",
                )
    elif config.rewind_weights is not None and len(wanted) != 1:
        found = f"methods rewind weights to {' and '.join(wanted)}" if wanted else "no method rewinds weights"
        raise UsageError("--rewind-weights", f"is the network at one moment of its training, but {found}")


def rehearse(config: CompareConfig, cells: Sequence[Cell], network: nn.Module, images: ImageData) -> None:
    """Refuse moments after the end of the dense training, and weights to rewind to that are not the network's.

    Raises
    ------
    UsageError
        It names the flag.
    """
    per_epoch = steps_per_epoch(images, config.dense)
    for cell in cells:
        if cell.config.retrain in REWINDS:
            begin = cell.config.retraining.begin
            try:
                check_moments({str(begin): begin.step(per_epoch)}, per_epoch * config.dense.epochs, "")
            except UsageError as error:
                raise UsageError("--methods", f"{cell.method.text!r}: {error}") from error
    if config.rewind_weights is not None:
        with blame("--rewind-weights"):
            if Path(config.rewind_weights).is_dir():
                raise ValueError(f"{config.rewind_weights} is a folder; name the checkpoint file in it")
            models.load_weights(copy.deepcopy(network), config.rewind_weights)


def _rewound(cells: Sequence[Cell]) -> list[Cell]:
    return [cell for cell in cells if cell.config.retrain == "weight-rewind"]
