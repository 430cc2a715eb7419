"""What the commands ask for that look at a network and leave it as it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from srr_ext.config.shared import ModelAndData, Planning
from srr_ext.exporting import TOLERANCE, Format


@dataclass(frozen=True)
class AnalyzeConfig(Planning):
    """Show the structural redundancy of every group of channels, and which channels must stay and why.

    Attributes
    ----------
    output : Path, optional
        File for the report as JSON.
    """

    output: Path | None = None


@dataclass(frozen=True)
class EvaluateConfig(ModelAndData):
    """Measure the accuracy on the test images.

    Attributes
    ----------
    model : str
        As for the other commands; default digits_cnn.
    data : str
        As for the other commands; default the images of the run, without a run digits.
    image_size : int, optional
        For folder and imagenet: scale and crop the images to this many pixels; default that of the run.
    run : Path, optional
        Run folder: measure the network in it, pruned or only trained, instead of model and weights.
    """

    model: str = ""
    data: str = ""
    run: Path | None = None


@dataclass(frozen=True)
class ExportConfig(EvaluateConfig):
    """Write a trained network to one file for elsewhere, load it back and compare its scores.

    Attributes
    ----------
    model : str
        As for the other commands; beside run only package.module:factory, where that has made the network of the run.
    run : Path, optional
        Run folder of the network, pruned or only trained; may come first, without the flag.
    format : {"onnx", "exported-program", "torchscript"}
        What to write: for ONNX Runtime, torch.export.load or torch.jit.load.
    output : Path, optional
        A new file; default model.onnx, model.pt2 or model.ts in the run folder.
    images : int
        Test images to compare on, one alone and all at once.
    tolerance : float
        Largest absolute difference of a score that is accepted.
    device : {"cpu"}
        Files are made and compared on the CPU; what reads them takes them elsewhere.
    """

    format: Format = "onnx"
    output: Path | None = None
    images: int = 64
    tolerance: float = TOLERANCE
    device: Literal["cpu"] = "cpu"
