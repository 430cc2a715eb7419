"""``python -m srr_ext.evaluate``: the accuracy of a network, dense or pruned, on the test images.

For example ``python -m srr_ext.evaluate --model resnet56 --weights resnet56.th --data folder:PATH`` or, for a pruned
network, ``python -m srr_ext.evaluate --run runs/digits_cnn-digits-001``.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from srr_ext import artifacts
from srr_ext.bottleneck import load_bottlenecks
from srr_ext.bottleneck.applying import PLAN as BOTTLENECKS
from srr_ext.cli import steps
from srr_ext.cli.parsing import UsageError, blame, command
from srr_ext.cli.running import Session, on_screen
from srr_ext.cli.tables import make_console
from srr_ext.config import EvaluateConfig, ModelAndData
from srr_ext.files import read_json
from srr_ext.training import evaluate_topk


def measure(config: EvaluateConfig, session: Session) -> tuple[dict[str, float], int]:
    """Measure.

    Parameters
    ----------
    config : EvaluateConfig
        Which network and which images.
    session : Session
        Shows how far the work is.

    Returns
    -------
    accuracy : dict of str to float
        ``top1`` and, for more than five classes, ``top5``, in percent.
    n : int
        Number of test images.

    Raises
    ------
    UsageError
        Something the user can put right.
    """
    device = steps.check_device(config)
    if config.run is None and config.weights is None:
        raise UsageError("--weights", "name a checkpoint, or a run folder with --run; new weights know nothing")
    if config.run is None:
        config = replace(config, model=config.model or ModelAndData.model, data=config.data or ModelAndData.data)
        images = steps.load_data(config, session, test_only=True)
        network = steps.make_model(config, images, session)
    else:
        for flag, value in (("--weights", config.weights), ("--model", config.model)):
            if value:
                raise UsageError("--run", f"goes without {flag}: the folder holds both network and weights")
        with blame("--run"):
            network = _network_of_run(config.run)
            config = replace(config, **_images_of_run(config))
        images = steps.load_data(config, session, test_only=True)
        with blame("--data"):
            steps.check_fit(network, f"the network of {config.run}", images)
    accuracy = evaluate_topk(network.to(device), images, "test", progress=session.progress)
    return accuracy, images.size("test")


def _network_of_run(folder: Path) -> nn.Module:
    """Load the pruned network, that with bottlenecks, or the dense one of a run that has only trained."""
    if (folder / BOTTLENECKS).is_file():
        return load_bottlenecks(folder)
    only_trained = (folder / artifacts.DENSE).is_file() and not (folder / artifacts.PLAN).is_file()
    return artifacts.load_dense(folder) if only_trained else artifacts.load(folder)


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
    size = record.get("image_size") if data.startswith(("folder:", "imagenet:")) else None
    return {"data": data, "image_size": config.image_size or size}


def measure_and_show(config: EvaluateConfig, arguments: list[str], prog: str) -> None:
    """Measure and print."""
    steps.check(config)
    accuracy, n = measure(config, on_screen())
    shares = ", ".join(f"{name.replace('top', 'top-')} {share:.2f} %" for name, share in accuracy.items())
    make_console().print(f"{shares} of {n:,} test images")


main = command(EvaluateConfig, "srr_ext.evaluate", measure_and_show)

if __name__ == "__main__":
    sys.exit(main())
