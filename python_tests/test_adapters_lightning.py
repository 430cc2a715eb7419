"""The Lightning callback, with the real library: training, schedules, checkpoints, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import srr_ext
from srr_ext.surgery import prune_optimizer

pl = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging  # noqa: E402
from lightning.pytorch.loggers import CSVLogger  # noqa: E402

from srr_ext.adapters.lightning import SRRPruning, load_checkpoint  # noqa: E402

# The library's own warnings: advice about workers and intervals, and a use of torch that torch deprecates.
pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]
EXAMPLE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))
OPTIONS: dict[str, Any] = {"keep_macs": 0.6, "allocator": "uniform"}


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 16, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 4),
    )


class Lit(pl.LightningModule):
    """A network, a parameter beside it, a schedule; and a hook of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net, self.scale = network(), nn.Parameter(torch.ones(()))
        self.loaded: list[str] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * self.scale

    def training_step(self, batch: Any, index: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("score", F.cross_entropy(self(batch[0]), batch[1]))

    test_step = validation_step

    def configure_optimizers(self) -> Any:
        optimiser = torch.optim.Adam(self.parameters(), lr=0.01)
        return [optimiser], [torch.optim.lr_scheduler.StepLR(optimiser, 1, 0.5)]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.loaded.append("own")


def data() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(9)
    images = torch.randn(24, 3, 8, 8, generator=generator)
    return DataLoader(TensorDataset(images, torch.arange(24) % 4), batch_size=8)


def trainer(folder: Path, *callbacks: Any, epochs: int = 3, **options: Any) -> Any:
    plain = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    if not any(isinstance(callback, ModelCheckpoint) for callback in callbacks):
        plain["enable_checkpointing"] = False
    return pl.Trainer(
        max_epochs=epochs, accelerator="cpu", default_root_dir=folder, callbacks=[*callbacks], **plain | options
    )


def lit(seed: int = 3) -> Lit:
    torch.manual_seed(seed)
    return Lit()


@pytest.fixture
def checkpoints(tmp_path: Path) -> Iterator[ModelCheckpoint]:
    yield ModelCheckpoint(tmp_path / "kept", filename="{epoch}", save_top_k=-1)


def by_hand(epochs: int, at_epoch: int) -> tuple[Lit, list[float]]:
    """Train without Lightning: plain loops, `apply_plan` and `prune_optimizer`."""
    model = lit()
    optimiser, rate, rates = torch.optim.Adam(model.parameters(), lr=0.01), 0.01, []
    for epoch in range(epochs):
        if epoch == at_epoch:
            plan = srr_ext.make_plan(model, EXAMPLE, **OPTIONS)
            small = srr_ext.apply_plan(model, plan, EXAMPLE)
            model, optimiser = small, prune_optimizer(optimiser, model, small, plan)
        optimiser.param_groups[0]["lr"] = rate
        for images, labels in data():
            optimiser.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimiser.step()
        rates.append(rate)
        rate *= 0.5
    return model, rates


@pytest.mark.parametrize("name", ["net", ""])
def test_it_trains_what_a_loop_by_hand_trains(name: str, tmp_path: Path) -> None:
    """Bit for bit: the plan of the second epoch's beginning, the optimiser's cut state, the schedule."""
    wanted, rates = by_hand(3, 1)
    model, callback = lit(), SRRPruning(at_epoch=1, network=name, example_inputs=EXAMPLE, **OPTIONS)
    run = trainer(tmp_path, callback)
    run.fit(model, data())
    assert callback.plan is not None and callback.plan.cost["macs"]["pruned"] < callback.plan.cost["macs"]["dense"]
    state = wanted.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(rates[-1] / 2)
    assert {name for name in vars(model) if name == "on_load_checkpoint"} == set()


@pytest.mark.parametrize("after", [0, 1])
def test_a_training_goes_on_from_a_checkpoint(after: int, checkpoints: ModelCheckpoint, tmp_path: Path) -> None:
    """From one before the pruning and one after it: a new module and callback end where the whole training ends."""
    whole = lit()
    first = SRRPruning(at_epoch=1, network="net", example_inputs=EXAMPLE, **OPTIONS)
    run = trainer(tmp_path, first, checkpoints)
    run.fit(whole, data())
    path = tmp_path / "kept" / f"epoch={after}.ckpt"
    state = torch.load(path, weights_only=True)["callbacks"].get("SRRPruning")
    assert (state is None) == (after == 0)
    if state is not None:  # JSON text and a name
        assert all(isinstance(value, str) for value in state.values()) and json.loads(state["plan"])["layers"]

    again = lit(seed=8)
    second = SRRPruning(at_epoch=1, network="net", example_inputs=EXAMPLE, **OPTIONS)
    other = trainer(tmp_path, second)
    other.fit(again, data(), ckpt_path=path)
    assert again.loaded == ["own"]
    assert second.plan == first.plan
    wanted = whole.state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in again.state_dict().items())
    kept, there = (r.optimizers[0].state_dict() for r in (other, run))
    assert kept["param_groups"] == there["param_groups"]
    assert all(torch.equal(v, there["state"][i][k]) for i, s in kept["state"].items() for k, v in s.items())


def test_a_pruned_checkpoint_is_read_by_others(checkpoints: ModelCheckpoint, tmp_path: Path) -> None:
    """By `validate` and `test` with a new module, by `load_checkpoint`, and by `srr_ext.save` and `load`."""
    model, callback = lit(), SRRPruning(network="net", example_inputs=EXAMPLE, **OPTIONS)
    trainer(tmp_path, callback, checkpoints, epochs=1).fit(model, data())
    path = tmp_path / "kept" / "epoch=0.ckpt"
    scores = trainer(tmp_path).validate(model, data(), verbose=False)
    for verb in ("validate", "test"):
        fresh = lit(seed=7)
        run = trainer(tmp_path, SRRPruning(network="net", example_inputs=EXAMPLE, **OPTIONS))
        assert getattr(run, verb)(fresh, data(), ckpt_path=path, verbose=False) == scores
        # The same callback, whose plan is there already, meets another dense module.
        assert getattr(run, verb)(lit(seed=6), data(), ckpt_path=path, verbose=False) == scores

    fresh = lit(seed=7)
    assert load_checkpoint(path, fresh) == callback.plan
    assert torch.equal(fresh.eval()(EXAMPLE), model.eval()(EXAMPLE))
    assert load_checkpoint(path, fresh) == callback.plan  # into what has these shapes already

    assert callback.plan is not None
    srr_ext.save(tmp_path / "run", model.net, callback.plan)
    assert torch.equal(srr_ext.load(tmp_path / "run", model=lit().net)(EXAMPLE), model.net(EXAMPLE))


def test_a_dense_checkpoint_does_not_go_into_a_pruned_module(checkpoints: ModelCheckpoint, tmp_path: Path) -> None:
    model, callback = lit(), SRRPruning(at_epoch=1, network="net", example_inputs=EXAMPLE, **OPTIONS)
    run = trainer(tmp_path, callback, checkpoints, epochs=2)
    run.fit(model, data())
    with pytest.raises(ValueError, match="from before the pruning"):
        run.validate(model, data(), ckpt_path=tmp_path / "kept" / "epoch=0.ckpt", verbose=False)
    assert "on_load_checkpoint" not in vars(model)
    other = trainer(tmp_path, SRRPruning(example_inputs=EXAMPLE, **OPTIONS))
    with pytest.raises(ValueError, match="has 'net' pruned, this callback is for ''"):
        other.validate(lit(), data(), ckpt_path=tmp_path / "kept" / "epoch=1.ckpt", verbose=False)
    assert load_checkpoint(tmp_path / "kept" / "epoch=0.ckpt", lit()) is None


def test_the_callback_serves_a_second_module(tmp_path: Path) -> None:
    """A new training prunes again, by a plan of its own; a pruned module that is trained on stays as it is."""
    callback = SRRPruning(network="net", example_inputs=EXAMPLE, **OPTIONS)
    model = lit()
    trainer(tmp_path, callback, epochs=1).fit(model, data())
    plan = callback.plan
    trainer(tmp_path, callback, epochs=1).fit(model, data())
    assert callback.plan == plan
    trainer(tmp_path, callback, epochs=1).fit(other := lit(seed=4), data())
    assert callback.plan != plan and sum(p.numel() for p in other.parameters()) < sum(
        p.numel() for p in lit().parameters()
    )


def test_costs_are_logged(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    callback = SRRPruning(at_epoch=1, network="net", example_inputs=EXAMPLE, **OPTIONS)
    trainer(tmp_path, callback, epochs=2, logger=logger).fit(lit(), data())
    lines = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    assert callback.plan is not None and "srr/macs_kept" in lines[0]
    place = lines[0].split(",").index("srr/macs")
    assert str(float(callback.plan.cost["macs"]["pruned"])) in [line.split(",")[place] for line in lines[1:]]


def test_what_cannot_work_is_refused_before_the_first_epoch(tmp_path: Path) -> None:
    for options, message in (
        ({"network": "net"}, "example_inputs: SRRPruning has none"),
        ({"network": "nets", "example_inputs": EXAMPLE}, "no submodule 'nets'"),
        ({"network": "net", "example_inputs": torch.randn(1, 5, 8, 8)}, "5 channels|expected"),
        ({"network": "net", "example_inputs": EXAMPLE, "keep_macs": 0.001}, "out of reach"),
    ):
        callback = SRRPruning(at_epoch=2, **{**OPTIONS, **options})
        with pytest.raises((ValueError, RuntimeError), match=message):
            trainer(tmp_path, callback).fit(lit(), data())
    callback = SRRPruning(network="net", example_inputs=EXAMPLE, **OPTIONS)
    with pytest.raises(ValueError, match="StochasticWeightAveraging averages"):
        trainer(tmp_path, callback, StochasticWeightAveraging(0.01)).fit(lit(), data())
    with pytest.raises(ValueError, match="on one device, not with DDPStrategy"):
        callback.setup(_Several(), lit(), "fit")
    with pytest.raises(TypeError, match=r"one of lightning\.pytorch, not of builtins"):
        callback.setup(object(), lit(), "fit")  # type: ignore[arg-type]
    for options in ({"at_epoch": -1}, {"at_epoch": True}, {"at_epoch": 1.5}):
        with pytest.raises(ValueError, match="at_epoch"):
            SRRPruning(**options, **OPTIONS)
    with pytest.raises(TypeError, match="network"):
        SRRPruning(network=network(), **OPTIONS)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="exactly one"):
        SRRPruning(network="net")


def test_checkpoints_without_a_plan_are_refused(tmp_path: Path) -> None:
    """Lightning leaves callbacks out of files of weights, and the weights alone do not say what was cut."""
    callback = SRRPruning(network="net", example_inputs=EXAMPLE, **OPTIONS)
    with pytest.raises(ValueError, match="save_weights_only=True leaves the plan out"):
        trainer(tmp_path, callback, ModelCheckpoint(tmp_path, save_weights_only=True)).fit(lit(), data())


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "bf16-mixed"])
def test_precisions(precision: str, tmp_path: Path) -> None:
    """The example follows the module, as its batches do."""
    model, callback = lit(), SRRPruning(at_epoch=1, network="net", example_inputs=EXAMPLE, **OPTIONS)
    trainer(tmp_path, callback, epochs=2, precision=precision).fit(model, data())
    assert callback.plan is not None and callback.plan.layers
    wanted = {"64-true": torch.float64, "bf16-true": torch.bfloat16}.get(precision, torch.float32)
    assert {parameter.dtype for parameter in model.parameters()} == {wanted}
    assert sum(p.numel() for p in model.net.parameters()) == callback.plan.cost["params"]["pruned"]


def test_state_that_cannot_be_cut_is_refused_after_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not when it is time to prune, which may be days later."""
    model = lit()
    monkeypatch.setattr(model, "configure_optimizers", lambda: torch.optim.Adafactor(model.parameters()))
    run = trainer(tmp_path, SRRPruning(at_epoch=2, network="net", example_inputs=EXAMPLE, **OPTIONS), epochs=3)
    with pytest.raises(ValueError, match="Adafactor keeps state of another shape"):
        run.fit(model, data())
    assert run.global_step == 1


def test_an_epoch_that_never_comes_is_said(tmp_path: Path) -> None:
    callback = SRRPruning(at_epoch=1, network="net", example_inputs=EXAMPLE, **OPTIONS)
    with pytest.warns(UserWarning, match="nothing will be pruned: at_epoch is 1, .* has 1 epochs"):
        trainer(tmp_path, callback, epochs=1).fit(lit(), data())
    assert callback.plan is None


class _Several(pl.Trainer):
    """A trainer on several devices."""

    strategy = pl.strategies.DDPStrategy()

    def __init__(self) -> None: ...


def test_the_example_of_the_module_is_taken(tmp_path: Path) -> None:
    model = lit()
    model.example_input_array = EXAMPLE
    callback = SRRPruning(**OPTIONS)
    trainer(tmp_path, callback, epochs=1).fit(model, data())
    assert callback.plan is not None and all(name.startswith("net.") for name in callback.plan.layers)
