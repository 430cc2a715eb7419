"""The commands' configuration: every field is a flag, a key of ``--config`` files, and part of the record of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from srr_ext.allocators import available_allocators
from srr_ext.criteria import available_selectors
from srr_ext.data import Augment
from srr_ext.redundancy import DEFAULT_KEEP_MACS
from srr_ext.training import Device, SparseConfig, TrainConfig
from srr_ext.updates import available_updates


@dataclass(frozen=True)
class ModelAndData:
    """Which network on which images; common to all commands.

    Attributes
    ----------
    model : str
        Name of the network (see ``srr_ext.models.available_models()``), timm/NAME, or package.module:factory.
    weights : str, optional
        Checkpoint of the dense network (.th, .pt, .pth, .safetensors), or pretrained for the published weights of
        torchvision and timm, which these download.
    data : str
        digits, mnist, fashion-mnist, cifar10 or cifar100 (each with an optional :PATH), imagenet:PATH, or folder:PATH
        with train/CLASS/ and test/CLASS/ (or val/CLASS/).
    image_size : int, optional
        For folder and imagenet: scale and crop the images to this many pixels.
    download : bool
        Let torchvision fetch a data set that is not there.
    workers : int, optional
        Processes that decode images while others train, for sets too large for memory; default one per core, at most 8.
    device : {"auto", "cpu", "cuda"}
        Where to compute; auto takes a GPU when there is one.
    seed : int
        Fixes initial weights, validation split, order and augmentation of the images, and the plan.
    """

    # Second spellings of flags that are used often, and what lists the names that a flag takes.
    SHORT: ClassVar[dict[str, str]] = {}
    NAMES: ClassVar[dict[str, Callable[[], list[str]]]] = {
        "allocator": available_allocators,
        "selector": available_selectors,
        "update": available_updates,
    }

    model: str = "digits_cnn"
    weights: str | None = None
    data: str = "digits"
    image_size: int | None = None
    download: bool = False
    workers: int | None = None
    device: Device = "auto"
    seed: int = 0


@dataclass(frozen=True)
class Training(ModelAndData):
    """What every command needs that may train the dense network.

    Attributes
    ----------
    validation : float
        Share of the training images that is held out for every choice; the test images are for the end.
    split_seed : int, optional
        Fixes which training images are held out, for runs that differ in their seed alone; default the seed.
    augment : Augment
        Random changes of the training images.
    dense : TrainConfig
        Training of the dense network.
    """

    validation: float = 0.1
    split_seed: int | None = None
    augment: Augment = field(default_factory=Augment)
    dense: TrainConfig = field(default_factory=TrainConfig)


@dataclass(frozen=True)
class TrainRunConfig(Training):
    """Train a dense network and write a run folder.

    Attributes
    ----------
    weights : str, optional
        Start from this checkpoint (.th, .pt, .pth, .safetensors), or pretrained for published weights.
    output : Path, optional
        Folder for the results, new or empty; default runs/MODEL-DATA-NNN.
    """

    SHORT: ClassVar[dict[str, str]] = {f"dense.{name}": f"--{name}" for name in ("epochs", "lr")}

    output: Path | None = None


@dataclass(frozen=True)
class PlanOptions(Training):
    """How a plan is made, whatever its target.

    Attributes
    ----------
    gamma : float or "auto"
        Distance below which two filters count as redundant; auto finds the smallest one that meets the target.
    distance : {"rms", "euclidean"}
        What gamma bounds: the distance of two filters of length 1 divided by the square root of their number of weights
        (rms, as a public reproduction of the method has it), or the distance itself, the same angle in every layer.
    streams : {"keep", "prune"}
        Whether channels that additions tie together (residual streams) may go.
    ignored : tuple of str
        Modules whose output channels all stay.
    dense : TrainConfig
        Training of the dense network, where no weights are given.
    """

    gamma: float | Literal["auto"] = "auto"
    distance: Literal["rms", "euclidean"] = "rms"
    streams: Literal["keep", "prune"] = "keep"
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class Planning(PlanOptions):
    """What pruning and analysis both need.

    Attributes
    ----------
    keep_macs : float, optional
        Share of the multiply-accumulates to keep, in (0, 1]; 0.5 unless another target is given.
    keep_params : float, optional
        Share of the parameters to keep.
    keep_channels : float, optional
        Share of the channels to keep.
    """

    keep_macs: float | None = None
    keep_params: float | None = None
    keep_channels: float | None = None

    @property
    def targets(self) -> dict[str, float]:
        """The targets that were given, as arguments of ``make_plan``."""
        wanted = {"keep_macs": self.keep_macs, "keep_params": self.keep_params, "keep_channels": self.keep_channels}
        return {name: keep for name, keep in wanted.items() if keep is not None}

    @property
    def target(self) -> dict[str, Any]:
        """The target that was given, as an argument of ``make_plan``; half the MACs if none was."""
        return self.targets or {"keep_macs": DEFAULT_KEEP_MACS}


@dataclass(frozen=True)
class PruneOptions(PlanOptions):
    """How a network is pruned and trained again, whatever the method and its target.

    Attributes
    ----------
    floor : float
        Share of the channels that every group keeps.
    round_to : int
        Keep multiples of this many channels.
    rounds : int
        Prune and fine-tune this many times; each round keeps the same share of what it begins with.
    calibration : int
        Training images that methods which look at images may look at, in whole batches of 64.
    sparse : SparseConfig
        Training under a penalty before the plan is made.
    update : str
        What is done to the weights that stay before they are trained; none for nothing.
    retrain : {"finetune", "scratch"}
        Train the pruned network on, or, as a control, from new weights by the recipe of the dense network for as many
        epochs as that and the fine-tuning take together.
    fine_tune : TrainConfig
        Training of the pruned network.
    """

    floor: float = 0.1
    round_to: int = 1
    rounds: int = 1
    calibration: int = 1024
    update: str = "none"
    retrain: Literal["finetune", "scratch"] = "finetune"
    sparse: SparseConfig = field(default_factory=SparseConfig)
    fine_tune: TrainConfig = field(default_factory=TrainConfig)


@dataclass(frozen=True)
class PruneConfig(Planning, PruneOptions):
    """Train or load a network, prune it, fine-tune it, and write a run folder.

    Attributes
    ----------
    allocator : str
        How many channels each group loses; NAME:key=value sets an option, package.module:function is one of your own.
    selector : str
        Which channels go first, likewise.
    plan : Path, optional
        Cut by this plan.json instead of making a plan; the flags that say how to make one then do nothing.
    output : Path, optional
        Folder for the results, new or empty; default runs/MODEL-DATA-NNN.
    """

    SHORT: ClassVar[dict[str, str]] = {f"fine_tune.{name}": f"--{name}" for name in ("epochs", "lr")}

    allocator: str = "srr"
    selector: str = "l1"
    plan: Path | None = None
    output: Path | None = None


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
class CompareConfig(PruneOptions):
    """Compare methods at several targets over several seeds, beside controls; running it again goes on.

    Attributes
    ----------
    seed : int
        Fixes the dense network, which all share, and which training images are held out.
    methods : tuple of str
        Each is ALLOCATOR[+SELECTOR[+UPDATE]], with l1 where no selector is named, or bottleneck; then settings of srr
        prune that it alone has, as in "srr+l2 distance=euclidean"; as=NAME gives it another name in the results.
    keep : tuple of float
        Shares to keep, in (0, 1].
    quantity : {"macs", "params", "channels"}
        Of what.
    seeds : tuple of int
        Of the plan and the fine-tuning; the results are means over them.
    controls : bool
        Add random choice, uniform l1, the first method's architecture trained from scratch, and the dense network
        trained for the extra epochs, each unless it is among the methods.
    executor : {"local", "ray"}
        Run cells in processes of this machine, or as tasks of a Ray cluster (see docs/comparing.md).
    jobs : int, optional
        Cells at the same time; default one per GPU or, without any, one per so many cores as a cell has threads. With
        ray as many as the cluster takes.
    threads : int
        Threads of a cell; sums are rounded differently with more.
    launcher : str
        Start every cell as a command of its own with this before it: torchrun --standalone --nproc-per-node 1, say.
    output : Path, optional
        Folder for the results: new, empty, or begun with the same settings; default runs/compare-MODEL-DATA.
    """

    SHORT: ClassVar[dict[str, str]] = {f"fine_tune.{name}": f"--{name}" for name in ("epochs", "lr")}

    methods: tuple[str, ...] = ("srr", "uniform+fpgm", "global")
    keep: tuple[float, ...] = (0.75, 0.5, 0.25)
    quantity: Literal["macs", "params", "channels"] = "macs"
    seeds: tuple[int, ...] = (0, 1, 2)
    controls: bool = True
    executor: Literal["local", "ray"] = "local"
    jobs: int | None = None
    threads: int = 1
    launcher: str = ""
    output: Path | None = None
