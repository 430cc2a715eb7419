"""How long each layer takes, before and after, measured inside the running networks."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from srr_ext.inputs import as_arguments, tensors_in


@torch.inference_mode()
def layer_latency(
    dense: nn.Module, final: nn.Module, sample: Any, *, rounds: int = 10, seconds: float = 2.0
) -> list[dict[str, Any]]:
    """Time every module without children, with hooks that are removed afterwards.

    Parameters
    ----------
    dense, final : nn.Module
        Two networks with the same module names, on the device of ``sample``; used in evaluation mode and left as they
        were.
    sample : Tensor, tuple or dict
        One batch of inputs.
    rounds : int, default 10
        Passes through each network at most, in turns, after one that is not counted.
    seconds : float, default 2.0
        No new round begins after this time, but three are always made.

    Returns
    -------
    list of dict
        ``name``, ``kind`` (class of the module), ``dense_ms`` and ``pruned_ms``: milliseconds per batch in the fastest
        round, all calls of the module together; None where one of the networks does not run it. In order of execution.

    Raises
    ------
    ValueError
        If ``rounds`` is below 1.

    Notes
    -----
    The hooks cost microseconds per module, and on a GPU each module is waited for, so the sum of all is more than the
    latency of the network.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    arguments, keywords = as_arguments(sample)
    device = next((tensor.device for tensor in tensors_in(sample) if tensor.is_cuda), None)
    times: tuple[dict[str, list[float]], dict[str, list[float]]] = ({}, {})
    kinds: dict[str, str] = {}
    with ExitStack() as stack:
        clocks = [_install(stack, model, device, kinds) for model in (dense, final)]
        end = time.perf_counter() + seconds
        for turn in range(rounds + 1):
            if turn > 3 and time.perf_counter() > end:
                break
            for model, clock, taken in zip((dense, final), clocks, times, strict=True):
                clock.clear()
                model(*arguments, **keywords)
                if turn:  # the first pass chooses algorithms and allocates
                    for name, spent in clock.items():
                        taken.setdefault(name, []).append(spent)

    def fastest(taken: dict[str, list[float]], name: str) -> float | None:
        return round(1000 * min(taken[name]), 6) if name in taken else None

    return [
        {"name": name, "kind": kinds[name], "dense_ms": fastest(times[0], name), "pruned_ms": fastest(times[1], name)}
        for name in dict.fromkeys([*times[0], *times[1]])
    ]


def _install(
    stack: ExitStack, model: nn.Module, device: torch.device | None, kinds: dict[str, str]
) -> dict[str, float]:
    """Put a model into evaluation mode with a stopwatch on each leaf, until the stack is closed."""
    for module in model.modules():
        stack.callback(setattr, module, "training", module.training)
    model.eval()
    spent: dict[str, float] = {}
    started: dict[str, float] = {}

    def now() -> float:
        if device is not None:
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def start(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            started[name] = now()

        return hook

    def stop(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Any) -> None:
            spent[name] = spent.get(name, 0.0) + now() - started[name]

        return hook

    for name, module in model.named_modules():
        if next(module.children(), None) is None:
            kinds.setdefault(name, type(module).__name__)
            for handle in (module.register_forward_pre_hook(start(name)), module.register_forward_hook(stop(name))):
                stack.callback(handle.remove)
    return spent
