"""What is computed over the images of all processes: batch normalisation, in whatever layer, and mean gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from srr_ext.processes import Processes

_NAMES = {  # of the arguments
    torch.batch_norm: "input weight bias running_mean running_var training momentum eps cudnn_enabled".split(),
    nn.functional.batch_norm: "input running_mean running_var weight bias training momentum eps".split(),
}
_DEFAULTS = {"weight": None, "bias": None, "training": False, "momentum": 0.1, "eps": 1e-5}


@contextmanager
def synchronised_batch_norm(processes: Processes) -> Iterator[None]:
    """Let batch normalisation in training mode take mean and variance over the images of all processes, for a while.

    torch's own SyncBatchNorm is a layer that takes the place of others, knows GPUs alone, and not the layers that
    packages make of batch normalisation. Here the computation itself is replaced, wherever it is called.

    Parameters
    ----------
    processes : Processes
        All of them have to come through the same layers; a single one computes as ever.
    """
    if processes.count == 1:
        yield
        return
    with _Together(processes):
        yield


def mean_in_order(processes: Processes, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Average gradients over processes, added up in the order of their ranks; a hook of DistributedDataParallel.

    The sums of libraries begin with another process at other places of a bucket, and torch arranges the buckets anew
    after the first step of a training: one that goes on after a stop would be rounded otherwise, with three processes
    or more.

    Parameters
    ----------
    processes : Processes
        This one and the others.
    bucket : GradBucket
        Gradients of some parameters.
    """
    future: torch.futures.Future[Tensor] = torch.futures.Future()
    future.set_result(functools.reduce(torch.add, processes.gather(bucket.buffer())) / processes.count)
    return future


class _Together(TorchFunctionMode):
    def __init__(self, processes: Processes) -> None:
        super().__init__()
        self.processes = processes

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func not in _NAMES:
            return func(*args, **(kwargs or {}))
        given = _DEFAULTS | dict(zip(_NAMES[func], args, strict=False)) | dict(kwargs or {})
        if not given["training"]:
            return func(*args, **(kwargs or {}))
        x, means, variances = given["input"], given["running_mean"], given["running_var"]
        result, mean, variance, n = _BatchNorm.apply(x, given["weight"], given["bias"], given["eps"], self.processes)
        if means is not None:
            with torch.no_grad():
                means.lerp_(mean.to(means.dtype), given["momentum"])
                variances.lerp_((variance * (n / (n - 1).clamp(min=1))).to(variances.dtype), given["momentum"])
        return result


class _BatchNorm(torch.autograd.Function):
    r"""y = (x - m) / sqrt(v + eps) * w + b, with m and v over the images and places of all processes.

    With z the normalised x, n the number of values of a channel, and sums over all of these,
    dx = w / sqrt(v + eps) * (dy - sum(dy) / n - z * sum(dy z) / n); dw and db are sums over this process alone, since
    those of all are added up with the other gradients.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, processes: Processes
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        values = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        around = [dim for dim in range(x.ndim) if dim != 1]
        centre = values.mean(around)
        shape = [1, -1] + [1] * (x.ndim - 2)
        here = (values - centre.view(shape)).square_().mean(around)  # many times as fast as torch.var_mean on a CPU
        n = values.numel() // values.shape[1]
        every = processes.gather(torch.cat([centre, here, centre.new_tensor([n])]).double())
        counts, (centres, spreads) = every[:, -1:], every[:, :-1].chunk(2, dim=1)
        n_all = counts.sum()
        mean = (counts * centres).sum(0) / n_all
        variance = (counts * (spreads + (centres - mean).square())).sum(0) / n_all
        mean, variance = mean.to(values.dtype), variance.to(values.dtype)
        ctx.save_for_backward(x, weight, mean, variance, n_all)
        ctx.processes, ctx.eps = processes, eps
        ctx.mark_non_differentiable(mean, variance, n_all)
        return nn.functional.batch_norm(x, mean, variance, weight, bias, eps=eps), mean, variance, n_all

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance, n_all = ctx.saved_tensors
        # As if mean and variance were constants, which torch has a kernel for; then what comes of their not being so.
        known = (grad, x, weight, mean, variance, None, None, False, ctx.eps, [True, True, True])
        x_grad, weight_grad, bias_grad = torch.ops.aten.native_batch_norm_backward(*known)
        sums = torch.stack([weight_grad, bias_grad]).double()
        of_all = ctx.processes.gather(sums).sum(0) / n_all
        scale = (variance.double() + ctx.eps).rsqrt() * (1 if weight is None else weight.double())
        of_z, of_one = (of_all * scale).to(mean.dtype)
        x_grad = x_grad - nn.functional.batch_norm(x, mean, variance, of_z, of_one, eps=ctx.eps)
        grads = (x_grad, weight_grad, bias_grad)
        return (
            *(grad if wanted else None for grad, wanted in zip(grads, ctx.needs_input_grad, strict=False)),
            None,
            None,
        )
