"""``python -m srr_ext.evaluate``: top-1 accuracy of a network, dense or pruned, on the test images.

For example ``python -m srr_ext.evaluate --model resnet56 --weights resnet56.th --data folder:PATH`` or, for a pruned
network, ``python -m srr_ext.evaluate --run runs/digits_cnn-digits-001``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from srr_ext import artifacts
from srr_ext.cli import steps
from srr_ext.cli.parsing import UsageError, blame, parse, run_command
from srr_ext.cli.tables import make_console
from srr_ext.config import EvaluateConfig, ModelAndData
from srr_ext.files import read_json
from srr_ext.progress import Progress, on
from srr_ext.training import evaluate, make_accelerator


def measure(config: EvaluateConfig, progress: Progress) -> tuple[float, int]:
    """Measure.

    Parameters
    ----------
    config : EvaluateConfig
        Which network and which images.
    progress : Progress
        Shows how far the work is.

    Returns
    -------
    top1 : float
        Percent.
    n : int
        Number of test images.

    Raises
    ------
    UsageError
        Something the user can put right.
    """
    with blame("--device"):
        device = make_accelerator(config.device).device
    if config.run is None and config.weights is None:
        raise UsageError("--weights", "name a checkpoint, or a run folder with --run; new weights know nothing")
    if config.run is None:
        config = replace(config, model=config.model or ModelAndData.model, data=config.data or ModelAndData.data)
        images = steps.load_data(config, progress, test_only=True)
        network = steps.make_model(config, images)
    else:
        for flag, value in (("--weights", config.weights), ("--model", config.model)):
            if value:
                raise UsageError("--run", f"goes without {flag}: the folder holds both network and weights")
        with blame("--run"):
            network = artifacts.load(config.run)
            config = replace(config, **_images_of_run(config))
        images = steps.load_data(config, progress, test_only=True)
        with blame("--data"):
            steps.check_fit(network, f"the network of {config.run}", images)
    return evaluate(network.to(device), images, "test", progress=progress), len(images.test)


def _images_of_run(config: EvaluateConfig) -> dict[str, Any]:
    """Fill in what the command line leaves open about the images from the record of the run."""
    assert config.run is not None
    path = config.run / artifacts.CONFIG
    if config.data and not path.is_file():  # a network saved from Python has no such record, and here needs none
        return {}
    record = read_json(path)
    if not isinstance(record, dict) or not isinstance(record.get("data"), str):
        raise ValueError(f"{path} does not say which images the run used; name them with --data")
    data = config.data or record["data"]
    size = record.get("image_size") if data.startswith("folder:") else None
    return {"data": data, "image_size": config.image_size or size}


def main(argv: Sequence[str] | None = None, prog: str = "python -m srr_ext.evaluate") -> int:
    """Run the command.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; default those of the process.
    prog : str
        Name of the command in messages.

    Returns
    -------
    int
        Exit code.
    """

    def command() -> None:
        config = parse(EvaluateConfig, argv, prog)
        top1, n = measure(config, on(make_console(stderr=True)))
        make_console().print(f"top-1 {top1:.2f} % of {n:,} test images")

    return run_command(command, prog)


if __name__ == "__main__":
    sys.exit(main())
