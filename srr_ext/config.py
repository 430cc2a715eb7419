"""The commands' configuration: every field is a flag, a key of ``--config`` files, and part of the record of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from srr_ext.training import Device, TrainConfig

DEFAULT_KEEP_MACS = 0.5


@dataclass(frozen=True)
class ModelAndData:
    """Which network on which images; common to all commands.

    Attributes
    ----------
    model : str
        Name of the network (see ``srr_ext.models.available_models()``) or package.module:factory.
    weights : str, optional
        Checkpoint of the dense network (.th, .pt, .pth, .safetensors), or the name of published torchvision weights.
    data : str
        digits, mnist[:PATH], cifar10[:PATH] or folder:PATH with train/CLASS/ and test/CLASS/ (or val/CLASS/).
    image_size : int, optional
        For folder: scale and centre-crop the images to this many pixels.
    download : bool
        Let torchvision fetch mnist or cifar10.
    device : {"auto", "cpu", "cuda"}
        Where to compute; auto takes a GPU when there is one.
    seed : int
        Fixes initial weights, validation split, order and augmentation of the images, and the plan.
    """

    model: str = "digits_cnn"
    weights: str | None = None
    data: str = "digits"
    image_size: int | None = None
    download: bool = False
    device: Device = "auto"
    seed: int = 0


@dataclass(frozen=True)
class Planning(ModelAndData):
    """What pruning and analysis both need.

    Attributes
    ----------
    keep_macs : float, optional
        Share of the multiply-accumulates to keep, in (0, 1]; 0.5 unless another target is given.
    keep_params : float, optional
        Share of the parameters to keep.
    keep_channels : float, optional
        Share of the channels to keep.
    gamma : float or "auto"
        Distance below which two filters count as redundant; auto finds the smallest one that meets the target.
    streams : {"keep", "prune"}
        Whether channels that additions tie together (residual streams) may go.
    ignored : tuple of str
        Modules whose output channels all stay.
    dense : TrainConfig
        Training of the dense network, where no weights are given.
    """

    keep_macs: float | None = None
    keep_params: float | None = None
    keep_channels: float | None = None
    gamma: float | Literal["auto"] = "auto"
    streams: Literal["keep", "prune"] = "keep"
    ignored: tuple[str, ...] = ()
    dense: TrainConfig = field(default_factory=TrainConfig)

    @property
    def target(self) -> dict[str, Any]:
        """The targets that were given, as arguments of ``make_plan``; half the MACs if none was."""
        given = {"keep_macs": self.keep_macs, "keep_params": self.keep_params, "keep_channels": self.keep_channels}
        return {name: keep for name, keep in given.items() if keep is not None} or {"keep_macs": DEFAULT_KEEP_MACS}


@dataclass(frozen=True)
class PruneConfig(Planning):
    """Train or load a network, prune it, fine-tune it, and write a run folder.

    Attributes
    ----------
    allocator : str
        How many channels each group loses: srr, uniform, widest, global, or one of an installed package.
    selector : str
        Which channels go first: l1, l2, fpgm, random, or one of an installed package.
    floor : float
        Share of the channels that every group keeps.
    round_to : int
        Keep multiples of this many channels.
    output : Path, optional
        Folder for the results, new or empty; default runs/MODEL-DATA-NNN.
    fine_tune : TrainConfig
        Training of the pruned network.
    """

    allocator: str = "srr"
    selector: str = "l1"
    floor: float = 0.1
    round_to: int = 1
    output: Path | None = None
    fine_tune: TrainConfig = field(default_factory=TrainConfig)


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
    """Measure top-1 accuracy on the test images.

    Attributes
    ----------
    model : str
        Name of the network (see ``srr_ext.models.available_models()``) or package.module:factory; default digits_cnn.
    data : str
        digits, mnist[:PATH], cifar10[:PATH] or folder:PATH; default the images of the run, without a run digits.
    image_size : int, optional
        For folder: scale and centre-crop the images to this many pixels; default that of the run.
    run : Path, optional
        Run folder: measure the pruned network in it instead of model and weights.
    """

    model: str = ""
    data: str = ""
    run: Path | None = None
