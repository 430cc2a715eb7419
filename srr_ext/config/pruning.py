"""What the commands ask for that train and prune."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from srr_ext.config.shared import Planning, PruneOptions, RetrainOptions, Training
from srr_ext.retraining import Retraining
from srr_ext.sparsity.schedule import Gradual

DEFAULT_COMPRESSION = 4.0


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
        Start every cell as a command of its own with this before it: torchrun --standalone --nproc-per-node 2, say.
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
