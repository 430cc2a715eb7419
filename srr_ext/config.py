"""The commands' configuration: every field is a flag, a key of ``--config`` files, and part of the record of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from srr_ext.allocators import available_allocators
from srr_ext.criteria import available_selectors
from srr_ext.data import Augment
from srr_ext.exporting import TOLERANCE, Format
from srr_ext.redundancy import DEFAULT_KEEP_MACS
from srr_ext.retraining import Retrain, Retraining, retraining
from srr_ext.sparsity.schedule import Gradual
from srr_ext.sparsity.scores import available_scores
from srr_ext.training import Device, SparseConfig, TrainConfig
from srr_ext.updates import available_updates

DEFAULT_COMPRESSION = 4.0


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
        "score": available_scores,
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
    snapshots : tuple of str
        Moments of the training whose weights are kept, too, as dense-MOMENT.safetensors, to rewind to: 0ep 500it, say.
    output : Path, optional
        Folder for the results, new or empty; default runs/MODEL-DATA-NNN.
    resume : Path, optional
        Run folder to go on with after it was stopped, with the settings in it; goes alone.
    """

    SHORT: ClassVar[dict[str, str]] = {f"dense.{name}": f"--{name}" for name in ("epochs", "lr")}

    snapshots: tuple[str, ...] = ()
    output: Path | None = None
    resume: Path | None = None


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
class RetrainOptions(Training):
    """How a network is trained around its pruning, of channels or of single weights.

    Attributes
    ----------
    calibration : int
        Training images that methods which look at images may look at, in whole batches of 64.
    sparse : SparseConfig
        Training under a penalty before anything is pruned.
    rewind_to : str, optional
        Moment of the training of the dense network to which lr-rewind and weight-rewind go back, as in 0ep, 2.5ep or
        500it; default so many epochs before its end as fine_tune.epochs says.
    rewind_weights : str, optional
        Checkpoint of the dense network at that moment, for weight-rewind where weights are given.
    fine_tune : TrainConfig
        Training of the pruned network by finetune; the others take the recipe of the dense network.
    """

    calibration: int = 1024
    sparse: SparseConfig = field(default_factory=SparseConfig)
    rewind_to: str | None = None
    rewind_weights: str | None = None
    fine_tune: TrainConfig = field(default_factory=TrainConfig)

    def retrain_by(self, name: Retrain) -> Retraining:
        """Return what is trained after pruning.

        Raises
        ------
        ValueError
            Rewinding to where there is nothing; the message begins with the name of the field.
        """
        sparse = self.sparse.epochs if self.sparse.penalty != "none" else 0
        return retraining(name, self.dense, self.fine_tune, rewind_to=self.rewind_to, sparse_epochs=sparse)


@dataclass(frozen=True)
class PruneOptions(PlanOptions, RetrainOptions):
    """How a network is pruned and trained again, whatever the method and its target.

    Attributes
    ----------
    floor : float
        Share of the channels that every group keeps.
    round_to : int
        Keep multiples of this many channels.
    rounds : int
        Prune and fine-tune this many times; each round keeps the same share of what it begins with.
    update : str
        What is done to the weights that stay before they are trained; none for nothing.
    retrain : {"finetune", "lr-rewind", "weight-rewind", "scratch"}
        Train the pruned network on by its own recipe; by the last epochs of the dense network's recipe; by these with
        the weights that the dense network had before them; or, as a control, from new weights by that recipe for as
        many epochs as the trainings of both take together.
    """

    floor: float = 0.1
    round_to: int = 1
    rounds: int = 1
    update: str = "none"
    retrain: Retrain = "finetune"

    @property
    def retraining(self) -> Retraining:
        """What is trained after pruning."""
        return self.retrain_by(self.retrain)


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
    resume : Path, optional
        Run folder to go on with after it was stopped, with the settings in it; goes alone.
    """

    SHORT: ClassVar[dict[str, str]] = {f"fine_tune.{name}": f"--{name}" for name in ("epochs", "lr")}

    allocator: str = "srr"
    selector: str = "l1"
    plan: Path | None = None
    output: Path | None = None
    resume: Path | None = None


@dataclass(frozen=True)
class SparsifyConfig(RetrainOptions):
    """Train or load a network, remove single weights, train it again, and write a run folder.

    Attributes
    ----------
    dense : TrainConfig
        Training of the dense network, where no weights are given, and what rewinding goes back in.
    compression : float, optional
        How many times fewer parameters shall be left, all of them counted; 4 unless density is given.
    density : float, optional
        Share to keep of the weights that may go, in (0, 1].
    score : str
        How much a weight matters; NAME:key=value sets an option, package.module:function is one of your own.
    scope : str
        Where weights are compared: global, over all layers; layerwise, each layer keeping the same share; or N:M, as in
        2:4, the N largest of every M consecutive ones.
    schedule : {"one-shot", "iterative", "gradual"}
        Prune once and train; in rounds of a training each; or on the way of one training.
    rate : float
        Share of what is left that goes in every round, for iterative.
    gradual : Gradual
        When weights go in the training, for gradual.
    retrain : {"finetune", "lr-rewind", "weight-rewind", "reinit"}
        Train what is left on by its own recipe; by the last epochs of the dense network's recipe; by these with the
        weights that the dense network had before them; or, as a control, from new weights by that recipe for as many
        epochs as the trainings of both take together.
    classifier : bool
        Whether the last layer may lose weights.
    ignored : tuple of str
        Modules whose weights all stay.
    masks : Path, optional
        Prune by these masks of another run (its masks.safetensors) instead of choosing some; goes without the flags
        that say how to choose.
    output : Path, optional
        Folder for the results, new or empty; default runs/MODEL-DATA-NNN.
    resume : Path, optional
        Run folder to go on with after it was stopped, with the settings in it; goes alone.
    """

    SHORT: ClassVar[dict[str, str]] = {f"fine_tune.{name}": f"--{name}" for name in ("epochs", "lr")}

    compression: float | None = None
    density: float | None = None
    score: str = "magnitude"
    scope: str = "global"
    schedule: Literal["one-shot", "iterative", "gradual"] = "one-shot"
    rate: float = 0.2
    gradual: Gradual = field(default_factory=Gradual)
    retrain: Literal["finetune", "lr-rewind", "weight-rewind", "reinit"] = "finetune"
    classifier: bool = False
    ignored: tuple[str, ...] = ()
    masks: Path | None = None
    output: Path | None = None
    resume: Path | None = None

    @property
    def target(self) -> dict[str, float]:
        """How much is to be left, as an argument of ``weights_to_keep``."""
        if self.density is not None:
            return {"density": self.density}
        return {"compression": DEFAULT_COMPRESSION if self.compression is None else self.compression}

    @property
    def retraining(self) -> Retraining:
        """What is trained after pruning."""
        return self.retrain_by("scratch" if self.retrain == "reinit" else self.retrain)


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


@dataclass(frozen=True)
class CompareConfig(PruneOptions):
    """Compare methods at several targets over several seeds, beside controls; running it again goes on.

    Attributes
    ----------
    seed : int
        Fixes the dense network, which all share, and which training images are held out.
    methods : tuple of str
        Each is ALLOCATOR[+SELECTOR[+UPDATE]], with l1 where no selector is named, or bottleneck, then settings of srr
        prune that it alone has, as in "srr+l2 distance=euclidean"; or sparsify, with settings of srr sparsify, as in
        "sparsify schedule=iterative retrain=lr-rewind". as=NAME gives it another name in the results.
    keep : tuple of float
        Shares to keep, in (0, 1].
    quantity : {"macs", "params", "channels"}
        Of what; params where sparsify is among the methods.
    rewind_to : str, optional
        Moment of the training of the dense network to which all methods that rewind go back, as in 0ep, 2.5ep or
        500it, unless they name another; default so many epochs before its end as fine_tune.epochs says.
    rewind_weights : str, optional
        Checkpoint of the dense network at that moment, for methods with retrain=weight-rewind where weights are given.
    seeds : tuple of int
        Of the plan and the fine-tuning; the results are means over them.
    controls : bool
        Add random choice, the same share of every layer, what the first method leaves trained from scratch, and the
        dense network trained for the extra epochs, each unless it is among the methods.
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
    resume : Path, optional
        Folder of a comparison to go on with, with the settings in it; goes alone.
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
    resume: Path | None = None
