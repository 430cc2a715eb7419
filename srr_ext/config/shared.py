"""What several commands ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from srr_ext.allocators import available_allocators
from srr_ext.criteria import available_selectors
from srr_ext.data import Augment
from srr_ext.latency_table.cost import DEFAULT_BATCH
from srr_ext.redundancy import DEFAULT_KEEP_MACS
from srr_ext.retraining import Retrain, Retraining, retraining
from srr_ext.sparsity.scores import available_scores
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
    skip_corrupt : bool
        For folder and imagenet: look at every image first and leave out, with a count, those that cannot be read, which
        are an error otherwise.
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
    skip_corrupt: bool = False
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
    shard : bool
        Under torchrun: divide weights, gradients and optimiser state among the processes while training (FSDP), for
        networks that do not fit into one GPU with them.
    """

    validation: float = 0.1
    split_seed: int | None = None
    augment: Augment = field(default_factory=Augment)
    dense: TrainConfig = field(default_factory=TrainConfig)
    shard: bool = False


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
    keep_latency : float, optional
        Share of the time of a forward pass to keep, measured on this device.
    latency_batch : int
        Images of the forward passes that are timed.
    """

    keep_macs: float | None = None
    keep_params: float | None = None
    keep_channels: float | None = None
    keep_latency: float | None = None
    latency_batch: int = DEFAULT_BATCH

    @property
    def targets(self) -> dict[str, float]:
        """The targets that were given, as arguments of ``make_plan``."""
        names = ("keep_macs", "keep_params", "keep_channels", "keep_latency")
        return {name: keep for name in names if (keep := getattr(self, name)) is not None}

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
