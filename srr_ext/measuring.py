"""Run a model to measure something: no trace is left in the caller's random state, and failures blame the images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def measuring(seed: int) -> Iterator[None]:
    """Fix random numbers, also for models that draw some in evaluation mode, and leave the caller's as they were."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices), torch.inference_mode(False):
        torch.manual_seed(seed)
        yield


@contextmanager
def differentiating() -> Iterator[None]:
    """Turn what PyTorch says of a loss that cannot be computed or differentiated into a ValueError about the data.

    An operation may have no derivative, or overwrite what its derivative needs; inputs and targets may not fit.
    """
    try:
        yield
    except RuntimeError as error:
        problem = str(error).splitlines()[0]
        raise ValueError(f"data: the loss of a batch cannot be computed and differentiated ({problem})") from error


@contextmanager
def attention_in_steps() -> Iterator[None]:
    """Keep torch from running an attention layer as one operation, whose products its FLOP counter does not see."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def require_gradient(loss: Tensor) -> None:
    """Refuse a loss from which nothing leads back to the model."""
    if not loss.requires_grad:
        raise ValueError("data: the loss has no gradient; does the model, or the loss, compute without gradients?")
