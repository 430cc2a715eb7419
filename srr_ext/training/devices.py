"""Where to compute, and with how many digits."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import nn

from srr_ext.training.config import Precision

if TYPE_CHECKING:  # it takes a second, and most users of the package do not train
    from accelerate import Accelerator

Device = Literal["auto", "cpu", "cuda"]
UsedPrecision = Literal["fp32", "bf16", "fp16"]


def make_accelerator(device: Device = "auto") -> Accelerator:
    """Return an accelerator for the device.

    Parameters
    ----------
    device : {"auto", "cpu", "cuda"}, default "auto"
        ``auto`` takes a GPU when there is one.

    Returns
    -------
    Accelerator
        It places nothing and leaves the precision alone: both are the caller's, per training and not per process.

    Raises
    ------
    ValueError
        Unknown device, no GPU where one was asked for, or processes that were started together on another device.
    """
    if device not in get_args(Device):
        raise ValueError(f"device must be one of {', '.join(get_args(Device))}, but is {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is 'cuda', but torch finds no GPU; use cpu or auto")
    kind: Literal["cpu", "cuda"] = "cpu" if device == "cpu" or not torch.cuda.is_available() else "cuda"
    return _accelerator_class()(kind)


@functools.cache
def _accelerator_class() -> Any:
    """Return a kind of accelerator that has a device of its own."""
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import is_initialized

    class OwnDevice(Accelerator):
        """An accelerator whose device and precision are not those of the first one in the process.

        accelerate keeps both in a state that all accelerators of a process share, and refuses to change it. That
        state is right for what belongs to the process (its rank and its group), and stays in charge of it. But one
        process may well train on a GPU in bf16, then on the CPU in fp32; so a process that is alone chooses its device
        here, and the precision is chosen by the training loop with torch's own autocast and gradient scaler, which
        keep no state (see ``autocast`` and ``make_scaler``).
        """

        def __init__(self, kind: Literal["cpu", "cuda"]) -> None:
            # The buffers are alike in all processes, as batch normalisation counts the images of all.
            alike = DistributedDataParallelKwargs(broadcast_buffers=False)
            # A state that exists already refuses the argument where it is on a GPU, and keeps its device anyway.
            alone = kind == "cpu" and not is_initialized()
            super().__init__(device_placement=False, cpu=alone, kwargs_handlers=[alike])
            self.native_amp, self.scaler = False, None  # whatever ACCELERATE_MIXED_PRECISION says
            if self.num_processes > 1 and self.state.device.type != kind:
                raise ValueError(
                    f"device is {kind!r}, but the processes that train together run on {self.state.device.type!r};"
                    " start them on the device that you ask for"
                )
            self._kind = kind

        @property
        def device(self) -> torch.device:
            """Where this accelerator computes."""
            kind = getattr(self, "_kind", None)  # the base class asks while it is being made
            return self.state.device if kind in (None, self.state.device.type) else torch.device(kind)

    return OwnDevice


def resolve_precision(precision: Precision, device: torch.device) -> UsedPrecision:
    """Return the precision that a recipe means on a device.

    Parameters
    ----------
    precision : {"auto", "fp32", "bf16", "fp16"}
        ``auto`` is bf16 on a GPU that computes with it (compute capability 8.0 and later), else fp32.
    device : torch.device
        Where to compute.

    Returns
    -------
    {"fp32", "bf16", "fp16"}

    Raises
    ------
    ValueError
        The device does not have the precision.
    """
    on_gpu = device.type == "cuda"
    has_bf16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "auto":
        return "bf16" if has_bf16 else "fp32"
    if precision == "fp16" and not on_gpu:
        raise ValueError(f"precision fp16 needs a GPU, but the device is {device.type}; use bf16 or fp32")
    if precision == "bf16" and on_gpu and not has_bf16:
        raise ValueError("precision bf16 needs a GPU of compute capability 8.0 or later; use fp16 or fp32")
    return precision


def autocast(precision: UsedPrecision, device: torch.device) -> AbstractContextManager[Any]:
    """Return a context, to be entered any number of times, in which layers compute with this precision.

    Parameters
    ----------
    precision : {"fp32", "bf16", "fp16"}
        The weights stay float32 in any case.
    device : torch.device
        Where to compute.
    """
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)


def make_scaler(precision: UsedPrecision, device: torch.device) -> torch.amp.GradScaler | None:
    """Return what keeps small gradients of fp16 from becoming 0; the exponent of the others is wide enough."""
    return torch.amp.GradScaler(device.type) if precision == "fp16" else None


def device_of(model: nn.Module) -> torch.device:
    """Where the first parameter is."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))
