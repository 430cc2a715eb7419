"""The callback for transformers.Trainer, with the real library and tiny models made from a configuration."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import srr_ext
from srr_ext.surgery import prune_optimizer

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here is on the hub
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
from srr_ext.adapters.transformers import SRRPruningCallback, _unwrapped  # noqa: E402

OPTIONS: dict[str, Any] = {"keep_macs": 0.6, "allocator": "uniform"}
STATE = transformers.TrainerState(max_steps=9, num_train_epochs=3)
EXAMPLE = {"pixel_values": torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(5))}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    transformers.utils.logging.disable_progress_bar()
    assert transformers.Trainer and transformers.ResNetForImageClassification  # imported now, and not in a test's time
    yield
    transformers.utils.logging.enable_progress_bar()


def resnet(seed: int = 3) -> Any:
    torch.manual_seed(seed)
    return transformers.ResNetForImageClassification(
        transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[2, 2], layer_type="basic", num_labels=4
        )
    )


class Plain(nn.Module):
    """No model of the library's: a module that returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        # A bias before BatchNorm has no gradient but rounding errors, of which Adam would make steps.
        self.first, self.norm = nn.Conv2d(3, 12, 3, bias=False), nn.BatchNorm2d(12)
        self.second, self.head = nn.Conv2d(12, 16, 3), nn.Linear(16, 4)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        x = self.second(self.norm(self.first(pixel_values)).relu()).relu()
        logits = self.head(x.mean((2, 3)))
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Images(torch.utils.data.IterableDataset[dict[str, Tensor]]):
    """Always the same images, in the same order."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(9)
        for index in range(24):
            yield {"pixel_values": torch.randn(3, 12, 12, generator=generator), "labels": torch.tensor(index % 4)}


def trainer(folder: Path, model: nn.Module, *callbacks: Any, **options: Any) -> Any:
    plain: dict[str, Any] = {
        "max_steps": 9,
        "per_device_train_batch_size": 8,
        "save_strategy": "no",
        "optim": "adamw_torch",
    }
    args = transformers.TrainingArguments(
        str(folder),
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        learning_rate=0.01,
        dataloader_pin_memory=False,
        **plain | options,
    )
    return transformers.Trainer(model, args, train_dataset=Images(), callbacks=[*callbacks])


def by_hand(model: nn.Module, steps: int, at_step: int) -> nn.Module:
    """Train as Trainer does: AdamW, gradients clipped at norm 1, a rate that falls to 0; surgery in between."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0)
    for step in range(steps):
        if step == at_step:
            plan = srr_ext.make_plan(model, EXAMPLE, **OPTIONS)
            small = srr_ext.apply_plan(model, plan, EXAMPLE)
            model, optimiser = small, prune_optimizer(optimiser, model, small, plan)
        optimiser.param_groups[0]["lr"] = 0.01 * (steps - step) / steps
        images = [image for index, image in enumerate(Images()) if index // 8 == step % 3]
        batch = {key: torch.stack([image[key] for image in images]) for key in images[0]}
        model.train()
        optimiser.zero_grad()
        model(**batch)["loss"].backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    return model


@pytest.mark.parametrize("make", [pytest.param(resnet, marks=pytest.mark.slow), Plain])
@pytest.mark.parametrize("moment", [{"at_step": 4}, {"at_epoch": 1}])
def test_it_trains_what_a_loop_by_hand_trains(make: Any, moment: dict[str, int], tmp_path: Path) -> None:
    """The plan of that moment, the optimiser's cut state, the schedule; the module stays the trainer's."""
    torch.manual_seed(3)
    model, callback = make(), SRRPruningCallback(EXAMPLE, **moment, **OPTIONS)
    torch.manual_seed(3)
    wanted = by_hand(make(), 9, moment.get("at_step", 3)).state_dict()
    run = trainer(tmp_path, model, callback)
    run.train()
    assert run.model is model and callback.plan is not None and callback.plan.layers
    state = model.state_dict()
    assert state.keys() == wanted.keys()
    for key, value in state.items():
        torch.testing.assert_close(value, wanted[key], rtol=1e-5, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")
    assert sum(p.numel() for p in model.parameters()) == callback.plan.cost["params"]["pruned"]
    (logged,) = [entry for entry in run.state.log_history if "srr/macs" in entry]
    assert logged["srr/macs"] == callback.plan.cost["macs"]["pruned"] and logged["step"] == moment.get("at_step", 3)


@pytest.mark.slow
def test_a_training_goes_on_from_its_checkpoints(tmp_path: Path) -> None:
    """From one before the pruning and one after it, with another model and callback: the same end."""
    model, callback = resnet(), SRRPruningCallback(EXAMPLE, at_step=4, **OPTIONS)
    trainer(tmp_path, model, callback, save_strategy="steps", save_steps=3).train()
    wanted = model.state_dict()
    for step in (3, 6):
        folder = tmp_path / f"checkpoint-{step}"
        assert (folder / "plan.json").is_file() == (step > 4)
        again, second = resnet(seed=8), SRRPruningCallback(EXAMPLE, at_step=4, **OPTIONS)
        run = trainer(tmp_path / "again", again, second)
        second.restore(run.model, folder)
        run.train(resume_from_checkpoint=str(folder))
        assert second.plan == callback.plan
        for key, value in again.state_dict().items():
            torch.testing.assert_close(value, wanted[key], rtol=1e-6, atol=1e-7)
    with pytest.raises(ValueError, match="there is no folder"):
        second.restore(run.model, tmp_path / "nowhere")
    with pytest.raises(RuntimeError, match="size mismatch"):  # loud where it was forgotten
        run = trainer(tmp_path / "again", resnet(), SRRPruningCallback(EXAMPLE, at_step=4, **OPTIONS))
        run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))


def test_what_was_saved_is_loaded_again(tmp_path: Path) -> None:
    """`save_model` and the plan beside it, or a checkpoint as it is, with `srr_ext.load`; no pickle."""
    model, callback = resnet(), SRRPruningCallback(EXAMPLE, **OPTIONS)
    run = trainer(tmp_path, model, callback, save_strategy="steps", save_steps=9)
    run.train()
    assert callback.plan is not None
    run.save_model(str(tmp_path / "small"))
    callback.plan.save(tmp_path / "small" / "plan.json")
    wanted = model.eval()(**EXAMPLE).logits
    for folder in ("small", "checkpoint-9"):
        config = transformers.AutoConfig.from_pretrained(tmp_path / folder)
        dense = transformers.ResNetForImageClassification(config)
        assert torch.equal(srr_ext.load(tmp_path / folder, model=dense)(**EXAMPLE).logits, wanted)
    assert json.loads((tmp_path / "small" / "plan.json").read_text())["layers"]


def test_mixed_precision_and_accumulation(tmp_path: Path) -> None:
    """What is planned and proven is the network without the autocast around it; steps count optimiser steps."""
    model, callback = resnet(), SRRPruningCallback(EXAMPLE, at_step=2, **OPTIONS)
    run = trainer(tmp_path, model, callback, bf16=True, gradient_accumulation_steps=3, max_steps=4)
    run.train()
    (logged,) = [entry for entry in run.state.log_history if "srr/macs" in entry]
    assert logged["step"] == 2 and callback.plan is not None
    assert "_original_forward" in vars(model)  # accelerate's wrapping is where it was
    plain, itself = _unwrapped(model.eval()), type(model).forward(model, **EXAMPLE).logits  # and planning goes without
    assert torch.equal(plain(**EXAMPLE).logits, itself) and not torch.equal(model(**EXAMPLE).logits, itself)
    assert sum(p.numel() for p in model.parameters()) == callback.plan.cost["params"]["pruned"]
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_a_second_training_of_another_model_prunes_again(tmp_path: Path) -> None:
    callback = SRRPruningCallback(EXAMPLE, **OPTIONS)
    torch.manual_seed(3)
    first = Plain()
    trainer(tmp_path, first, callback, max_steps=1).train()
    plan = callback.plan
    trainer(tmp_path, first, callback, max_steps=1).train()
    assert callback.plan == plan
    trainer(tmp_path, Plain(), callback, max_steps=1).train()
    assert callback.plan is not None and callback.plan != plan


def test_what_cannot_work_is_refused_before_the_first_step(tmp_path: Path) -> None:
    refused = SRRPruningCallback(EXAMPLE, at_step=5, **{**OPTIONS, "keep_macs": 0.001})
    with pytest.raises(ValueError, match="out of reach"):
        trainer(tmp_path, resnet(), refused).train()
    best = {"load_best_model_at_end": True, "save_strategy": "steps", "eval_strategy": "steps", "save_steps": 3}
    args = transformers.TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], eval_steps=3, **best)
    for callback, message in (
        (SRRPruningCallback(EXAMPLE, at_step=5, **OPTIONS), "prune at epoch 0"),
        (SRRPruningCallback(EXAMPLE, at_epoch=1, **OPTIONS), "prune at epoch 0"),
    ):
        with pytest.raises(ValueError, match=message):
            callback.on_train_begin(args, STATE, None, model=resnet())  # type: ignore[arg-type]
    SRRPruningCallback(EXAMPLE, **OPTIONS).on_train_begin(args, STATE, None, model=resnet())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not with distributed"):
        refused.on_train_begin(_Several(), STATE, None, model=resnet())  # type: ignore[arg-type]
    for moment in ({"at_epoch": 1, "at_step": 1}, {"at_epoch": -1}, {"at_step": True}, {"at_step": 0.5}):
        with pytest.raises(ValueError, match=r"at_epoch|at_step"):
            SRRPruningCallback(EXAMPLE, **moment, **OPTIONS)
    with pytest.raises(ValueError, match="exactly one"):
        SRRPruningCallback(EXAMPLE)


def test_state_that_cannot_be_cut_is_refused_after_the_first_step(tmp_path: Path) -> None:
    """And not when it is time to prune, which may be days later."""
    run = trainer(tmp_path, Plain(), SRRPruningCallback(EXAMPLE, at_step=5, **OPTIONS), optim="adafactor")
    with pytest.raises(ValueError, match="Adafactor keeps state of another shape"):
        run.train()
    assert run.state.global_step == 1


def test_a_moment_that_never_comes_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for moment, said in (({"at_step": 1}, 0), ({"at_step": 2}, 1), ({"at_epoch": 1}, 1)):
        caplog.clear()
        callback = SRRPruningCallback(EXAMPLE, **moment, **OPTIONS)
        run = trainer(tmp_path, Plain(), callback, max_steps=2)
        run.train_dataset = [*Images()]  # their number is known, and so is that of the epochs
        run.train()
        assert caplog.text.count("nothing will be pruned") == said and (callback.plan is None) == bool(said)


class _Several:
    """Arguments of a training in several processes."""

    parallel_mode = transformers.training_args.ParallelMode.DISTRIBUTED
    deepspeed = None
