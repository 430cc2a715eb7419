"""Devices, precision, memory formats and compilation."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn
from training_data import random_data, small_net, vector

from srr_ext import data, models
from srr_ext.training import TrainConfig, evaluate, loop, make_accelerator, resolve_precision, train

RECIPE = TrainConfig(epochs=2, batch_size=8)
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def fresh_state() -> Iterator[None]:
    """Let accelerate begin anew, and leave nothing of it to other tests."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def trained(
    config: TrainConfig = RECIPE, device: str = "cpu", drop_out: float = 0.1
) -> tuple[nn.Module, set[torch.dtype]]:
    """Return a trained small network, and the types that its first layer has computed."""
    model, seen = small_net(), set[torch.dtype]()
    model[4].p = drop_out
    hook = model[0].register_forward_hook(lambda module, _, out: seen.add(out.dtype) if module.training else None)
    train(model, random_data(), config, device=device)
    hook.remove()
    return model, seen


def test_devices_that_are_not_there_are_refused() -> None:
    """No silent change to the CPU."""
    with pytest.raises(ValueError, match="device must be one of auto, cpu, cuda"):
        make_accelerator("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="torch finds no GPU"):
            make_accelerator("cuda")


def test_one_process_changes_its_device_and_nobody_elses(fresh_state: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """From CPU to GPU and back, beside an accelerator of the caller (a GPU need not be there to be named)."""
    from accelerate import Accelerator
    from accelerate.state import PartialState

    callers = Accelerator(cpu=True)
    assert make_accelerator("cpu").device == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert make_accelerator("cuda").device == make_accelerator("auto").device == GPU
    assert callers.device == CPU == make_accelerator("cpu").device
    PartialState._shared_state["device"] = torch.device("cuda", 1)
    assert make_accelerator("cpu").device == CPU and make_accelerator("cuda").device == torch.device("cuda", 1)


def test_processes_that_train_together_share_a_device(fresh_state: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks on the CPU cannot be asked for a GPU one by one."""
    from accelerate.state import PartialState

    make_accelerator("cpu")
    PartialState._shared_state["num_processes"] = 2
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match="the processes that train together run on 'cpu'"):
        make_accelerator("cuda")


def test_precision_is_what_the_device_has() -> None:
    """And an error names the field where it is not."""
    assert resolve_precision("auto", CPU) == resolve_precision("fp32", CPU) == "fp32"
    assert resolve_precision("bf16", CPU) == "bf16"
    with pytest.raises(ValueError, match=r"^precision fp16 needs a GPU"):
        train(small_net(), random_data(), replace(RECIPE, precision="fp16"), device="cpu")


@pytest.mark.parametrize("has", [True, False])
def test_precision_on_a_gpu_depends_on_its_age(has: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Emulated bf16 does not count."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has or including_emulation)
    assert resolve_precision("auto", GPU) == ("bf16" if has else "fp32")
    assert resolve_precision("fp16", GPU) == "fp16" and resolve_precision("fp32", GPU) == "fp32"
    if has:
        assert resolve_precision("bf16", GPU) == "bf16"
    else:
        with pytest.raises(ValueError, match=r"^precision bf16 needs a GPU of compute capability 8.0"):
            resolve_precision("bf16", GPU)


def test_each_training_has_its_own_precision(fresh_state: None) -> None:
    """Also after others in this process, and beside an accelerator of the caller in bf16."""
    from accelerate import Accelerator

    plain, seen = trained()
    assert seen == {torch.float32}
    half, seen = trained(replace(RECIPE, precision="bf16"))
    assert seen == {torch.bfloat16} and {p.dtype for p in half.parameters()} == {torch.float32}
    assert not torch.equal(vector(half), vector(plain))
    type(make_accelerator("cpu").state)._reset_state(reset_partial_state=True)
    assert Accelerator(cpu=True, mixed_precision="bf16").native_amp
    again, seen = trained()
    assert seen == {torch.float32} and torch.equal(vector(again), vector(plain))
    assert "forward" not in vars(again) and not hasattr(again, "_is_accelerate_prepared")


def test_bf16_on_a_cpu_learns() -> None:
    """Measured in float32, as always."""
    digits = data.load("digits")
    torch.manual_seed(0)
    model = models.create("digits_cnn")
    train(model, digits, TrainConfig(epochs=3, precision="bf16"), device="cpu")
    assert evaluate(model, digits, "test") > 90


@pytest.mark.parametrize("clip_norm", [0.0, 0.3])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_scaling_the_loss_changes_nothing(clip_norm: float, optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power of two goes in and comes out again, before anything looks at the gradients (fp16 itself needs a GPU)."""
    config = replace(RECIPE, clip_norm=clip_norm, optimizer=optimizer, lr=0.01)
    plain, _ = trained(config)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    monkeypatch.setattr(loop, "make_scaler", lambda *_: scaler)
    scaled, _ = trained(config)
    assert scaler._growth_tracker == 6  # it has been through every step
    torch.testing.assert_close(vector(scaled), vector(plain), rtol=1e-6, atol=1e-7)


def test_steps_that_overflow_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a scale beyond float32 no step is taken, and the scale goes down."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    monkeypatch.setattr(loop, "make_scaler", lambda *_: scaler)
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(32, 7)), random_data(scale=1000.0)
    before = vector(model)
    train(model, images, replace(RECIPE, epochs=1), device="cpu")
    assert torch.equal(vector(model), before) and scaler.get_scale() == 2.0**124


def test_memory_format_stays_with_the_caller() -> None:
    """Channels come last while training, and each parameter gets its own strides back."""
    for channels_last in (True, False):
        model, seen = small_net(), set[bool]()
        model[0].weight.data = model[0].weight.data.contiguous(memory_format=torch.channels_last)
        strides = [p.stride() for p in model.parameters()]
        parameters = list(model.parameters())
        for layer in (model[0], model[3]):
            layer.register_forward_pre_hook(
                lambda _, args, seen=seen: seen.add(args[0].is_contiguous(memory_format=torch.channels_last))
            )
        model[3].register_forward_hook(
            lambda module, *_, seen=seen: seen.add(module.weight.is_contiguous(memory_format=torch.channels_last))
        )
        train(model, random_data(), replace(RECIPE, channels_last=channels_last), device="cpu")
        assert [p.stride() for p in model.parameters()] == strides
        assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
        assert all(p.grad is None for p in model.parameters())
        if channels_last:
            assert seen == {True}


def test_the_two_memory_formats_train_alike() -> None:
    """Up to rounding; only drop-out draws its mask in the order of the memory."""
    last, first = (trained(replace(RECIPE, channels_last=which), drop_out=0.0)[0] for which in (True, False))
    torch.testing.assert_close(vector(last), vector(first), rtol=1e-4, atol=1e-4)


def test_compiling_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before the first step."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"^compile needs the C\+\+ compiler no-such-compiler"):
        train(small_net(), random_data(), replace(RECIPE, compile=True), device="cpu")


@pytest.mark.slow
def test_a_compiled_network_trains_and_stays_itself() -> None:
    """One epoch, much like the one without; class, names and layers are the caller's."""
    if shutil.which("g++") is None:
        pytest.skip("there is no C++ compiler")
    digits = data.load("digits")
    digits = replace(digits, train=digits.train.take(torch.arange(1024)))  # batches of one size compile once
    histories = []
    for compiled in (True, False):
        torch.manual_seed(0)
        model = models.create("digits_cnn")
        kind, names, layers = type(model), list(model.state_dict()), list(model.modules())
        config = TrainConfig(epochs=1, compile=compiled)
        histories += train(model, digits, config, device="cpu")
        assert type(model) is kind and list(model.state_dict()) == names
        assert all(a is b for a, b in zip(layers, model.modules(), strict=True))
        copy.deepcopy(model)(digits.example())
    assert histories[0]["loss"] == pytest.approx(histories[1]["loss"], rel=0.02)
    assert histories[0]["validation_top1"] == pytest.approx(histories[1]["validation_top1"], abs=5)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16", "fp16"])
def test_a_gpu_trains_and_gives_the_model_back(precision: str) -> None:
    """Between two trainings on the CPU that agree bit for bit."""
    first, _ = trained()
    config = replace(RECIPE, precision=precision, clip_norm=1.0, ema=0.5)
    model, seen = trained(config, "cuda")
    wanted = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    assert seen == {wanted[resolve_precision(precision, GPU)]}
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    second, _ = trained()
    assert torch.equal(vector(first), vector(second)) and not torch.equal(vector(model), vector(second))
