"""The trained network that a command looks at, of a run folder or by name with a checkpoint, and its images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from srr_ext import artifacts
from srr_ext.bottleneck import load_bottlenecks
from srr_ext.bottleneck.applying import PLAN as BOTTLENECKS
from srr_ext.cli import steps
from srr_ext.cli.parsing import UsageError, blame
from srr_ext.cli.running import Session
from srr_ext.config import EvaluateConfig, ModelAndData
from srr_ext.data import ImageData
from srr_ext.files import read_json


def trained_network(config: EvaluateConfig, session: Session) -> tuple[nn.Module, ImageData]:
    """Load a network and the test images that it is for.

    Parameters
    ----------
    config : EvaluateConfig
        Which network and which images.
    session : Session
        Shows how far the work is.

    Returns
    -------
    network : nn.Module
        On the CPU.
    images : ImageData
        The test images alone.

    Raises
    ------
    UsageError
        Something the user can put right.
    """
    if config.run is None and config.weights is None:
        raise UsageError("--weights", "name a checkpoint, or a run folder with --run; new weights know nothing")
    if config.run is None:
        config = replace(config, model=config.model or ModelAndData.model, data=config.data or ModelAndData.data)
        images = steps.load_data(config, session, test_only=True)
        return steps.make_model(config, images, session), images
    code = config.model if artifacts.is_code(config.model) else None  # which no folder may name by itself
    for flag, value in (("--weights", config.weights), ("--model", config.model if code is None else "")):
        if value:
            raise UsageError("--run", f"goes without {flag}: the folder holds both network and weights")
    if (config.run / artifacts.CHECKPOINT).is_dir():
        session.say(f"{config.run} is not finished: this is what it has come to")
    with blame("--run"):
        network = network_of_run(config.run, code)
        config = replace(config, **_images_of_run(config))
    images = steps.load_data(config, session, test_only=True)
    with blame("--data"):
        steps.check_fit(network, f"the network of {config.run}", images)
    return network, images


def network_of_run(folder: Path, code: str | None = None) -> nn.Module:
    """Load the network that a run has made: the pruned one, that with bottlenecks, or the dense one it only trained.

    Parameters
    ----------
    folder : Path
        The run folder.
    code : str, optional
        The ``package.module:function`` that made the dense network, if one did.

    Returns
    -------
    nn.Module
        In evaluation mode, on the CPU.

    Raises
    ------
    ValueError
        Missing or damaged files, or a network that was not made by name, or by other code.
    """
    model = None if code is None else artifacts.dense_architecture(folder, code)
    if (folder / BOTTLENECKS).is_file():
        return load_bottlenecks(folder, model)
    only_trained = (folder / artifacts.DENSE).is_file() and not (folder / artifacts.PLAN).is_file()
    return artifacts.load_dense(folder, model) if only_trained else artifacts.load(folder, model)


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
    of_files = data.startswith(("folder:", "imagenet:"))
    size, skip = (record.get(name) if of_files else None for name in ("image_size", "skip_corrupt"))
    return {"data": data, "image_size": config.image_size or size, "skip_corrupt": config.skip_corrupt or skip is True}
