"""The Fisher information of layers, factored by K-FAC: second moments of their inputs and of their gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from srr_ext.criteria.base import SelectorContext
from srr_ext.inputs import detached, first_argument, run, tensors_in
from srr_ext.measuring import differentiating, measuring

Labels = Literal["sampled", "given", "all"]

_PART = 1 << 24  # elements of unfolded patches held at a time


@dataclass(frozen=True, eq=False)
class Factors:
    """The two factors of a layer's Fisher information.

    Attributes
    ----------
    a : Tensor of float64, shape [groups, d, d]
        Second moments of the inputs, per convolution group (one elsewhere). ``d`` is the fan-in, in the order of
        `srr_ext.filters.channel_weights`, or the input channels alone.
    g : Tensor of float64, shape [groups, n_out / groups, n_out / groups]
        Second moments of the gradients.
    """

    a: Tensor
    g: Tensor


class Recorder(Protocol):
    """Takes down what one layer reads and what gradients it gets."""

    def forward(self, module: nn.Module, inputs: Tensor, outputs: Tensor) -> None:
        """See one call of the layer."""
        ...

    def backward(self, module: nn.Module, gradients: Tensor) -> None:
        """See the gradients of that call's outputs, each of the loss of its own image."""
        ...


def kfac_factors(
    context: SelectorContext, modules: Iterable[str], *, labels: Labels = "sampled", channels: bool = False
) -> dict[str, Factors]:
    r"""Measure the K-FAC factors of layers.

    Parameters
    ----------
    context : SelectorContext
        Gives the model, images and random numbers.
    modules : iterable of str
        Names of (transposed) convolutions, grouped or not, and linear layers.
    labels : {"sampled", "given", "all"}, default "sampled"
        See `fisher_pass`.
    channels : bool, default False
        Moments between input channels alone, averaged over the places of the kernel, instead of between all weights of
        a filter.

    Returns
    -------
    dict of str to Factors
        Without the layers that no gradient has reached. Only sums are held while measuring.

    Raises
    ------
    ValueError
        See `fisher_pass`.

    Notes
    -----
    With input patches :math:`a_{nt}` (zeros of the padding included, biases left out) and gradients :math:`g_{nt}` with
    respect to the outputs before any activation, for :math:`N` images and :math:`T` positions,

    .. math::

        A = \frac{1}{NT} \sum_{n,t} a_{nt} a_{nt}^T, \qquad G = \frac{1}{N} \sum_{n,t} g_{nt} g_{nt}^T, \qquad
        F \approx A \otimes G,

    which is the product that Grosse and Martens have, with the factor :math:`T` on the other side. For one image and a
    linear layer it is exact: nothing is lost by taking inputs and gradients for independent. Several calls of a layer
    count as more positions.

    References
    ----------
    Martens, Grosse. Optimizing neural networks with Kronecker-factored approximate curvature. ICML 2015, arXiv
    1503.05671. Grosse, Martens. A Kronecker-factored approximate Fisher matrix for convolution layers. ICML 2016, arXiv
    1602.01407.
    """
    recorders = {name: FactorSums(channels) for name in modules}
    n_images = fisher_pass(context, recorders, labels)
    return {name: sums.result(n_images) for name, sums in recorders.items() if sums.complete}


def fisher_pass(context: SelectorContext, recorders: Mapping[str, Recorder], labels: Labels = "sampled") -> int:
    """Go through the training batches forwards and backwards, in evaluation mode, while recorders take notes.

    Parameters
    ----------
    context : SelectorContext
        Gives the model, images and random numbers.
    recorders : mapping of str to Recorder
        By module name.
    labels : {"sampled", "given", "all"}, default "sampled"
        Whose loss is followed back: that of one label per image, drawn from the softmax of its scores (the true Fisher
        information); that of the image's own label, by the calibration's loss (the empirical one, for any loss); or
        that of every class, weighted by its probability (the mean over draws, in as many passes back as there are
        classes).

    Returns
    -------
    int
        Number of images.

    Raises
    ------
    ValueError
        If ``labels`` is something else, there are no images, the loss cannot be differentiated, labels cannot be drawn
        because the outputs are no class scores, or the model uses a layer's weights without calling it.
    """
    if labels not in get_args(Labels):
        raise ValueError(f"labels must be one of {', '.join(get_args(Labels))}, got {labels!r}")
    draws, called, n_images = context.generator("kfac"), set[str](), 0
    total = sum(1 for _ in context.calibration.train)
    with measuring(context.seed), torch.enable_grad(), _every_layer_called():
        model = context.working_copy()
        for parameter in model.parameters():
            if parameter.is_leaf:  # copies of scripted modules hold others
                parameter.requires_grad_(False)  # only gradients of outputs are wanted
        handles = [
            model.get_submodule(name).register_forward_hook(_listener(recorder, name, called), with_kwargs=True)
            for name, recorder in recorders.items()
        ]
        with context.progress.stage("fisher", total) as step:
            for inputs, targets in context.batches():
                with differentiating():
                    _there_and_back(model, inputs, targets, labels, draws, context.calibration.loss)
                n_images += len(targets)
                step()
        for handle in handles:
            handle.remove()
        _refuse_borrowed(model, [name for name in recorders if name not in called], inputs)
    return n_images


def _there_and_back(
    model: nn.Module,
    inputs: Any,
    targets: Tensor,
    labels: Labels,
    draws: np.random.Generator,
    loss: Callable[[Any, Tensor], Tensor],
) -> None:
    """Run the model on a batch and follow the losses back; the recorders listen."""
    outputs = run(model, detached(inputs))
    losses: Iterable[tuple[Tensor, bool]]
    if labels == "given":
        losses = [(loss(outputs, targets) * len(targets), False)]
    else:
        losses = _losses(_class_scores(outputs, targets), labels, draws)
    for value, more in losses:
        if value.requires_grad:  # of a recorded layer, that is
            value.backward(retain_graph=more)


@contextmanager
def _every_layer_called() -> Iterator[None]:
    """Keep transformer layers from their fused path, which calls none of the layers inside."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _listener(recorder: Recorder, name: str, called: set[str]) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Tensor) -> Tensor | None:
        called.add(name)
        recorder.forward(module, first_argument(args, kwargs).detach(), outputs.detach())
        if not torch.is_grad_enabled():
            return None
        starts = not outputs.requires_grad
        if starts:  # nothing before it has gradients; a copy, as the next layer may write into it
            outputs = outputs.requires_grad_().clone()
        outputs.register_hook(lambda gradients: recorder.backward(module, gradients.detach()))
        return outputs if starts else None

    return hook


def _class_scores(outputs: Any, targets: Tensor) -> Tensor:
    """Return the outputs if labels can be drawn from them."""
    if not isinstance(outputs, Tensor) or outputs.ndim < 2:
        found = f"shape {list(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(f"labels: drawn from class scores [batch, classes], but the outputs have {found}; use 'given'")
    wanted = outputs.shape[:1] + outputs.shape[2:]
    if targets.is_floating_point() or targets.shape != wanted:
        raise ValueError(
            f"labels: drawn from class scores, but the targets are {targets.dtype} {list(targets.shape)}, no class "
            f"indices {list(wanted)}; use 'given'"
        )
    return outputs if outputs.dtype == torch.float64 else outputs.float()


def _losses(scores: Tensor, labels: Labels, draws: np.random.Generator) -> Iterator[tuple[Tensor, bool]]:
    """Losses to follow back, and whether another one comes."""
    probabilities = scores.detach().double().softmax(1)
    n_classes = scores.shape[1]
    if labels == "sampled":
        uniform = torch.from_numpy(draws.random((len(scores), 1, *scores.shape[2:]))).to(scores.device)
        drawn = (probabilities.cumsum(1) < uniform).sum(1).clamp(max=n_classes - 1)
        yield F.cross_entropy(scores, drawn, reduction="sum"), False
        return
    if scores.ndim > 2:
        raise ValueError(f"labels: 'all' is for one label per image, got scores {list(scores.shape)}; use 'sampled'")
    losses = -scores.log_softmax(1) * probabilities.sqrt().to(scores.dtype)  # squared gradients carry the probability
    for label in range(n_classes):
        yield losses[:, label].sum(), label < n_classes - 1


def _refuse_borrowed(model: nn.Module, uncalled: list[str], inputs: Any) -> None:
    """Refuse layers whose weights the model reads without calling them: what they read cannot be seen."""
    for name in uncalled:
        weight = model.get_submodule(name).weight
        if isinstance(weight, nn.Parameter):
            weight.requires_grad_()
            if any(output.requires_grad for output in tensors_in(run(model, detached(inputs)))):
                raise ValueError(
                    f"layer {name!r}: the model uses its weights without calling it, so its inputs cannot be measured; "
                    "add it to ignored, or take another method"
                )
            weight.requires_grad_(False)


class FactorSums:
    """Adds up the two factors of one layer; see `kfac_factors`."""

    def __init__(self, channels: bool = False) -> None:
        self._channels = channels
        self._a: Tensor | None = None
        self._g: Tensor | None = None
        self._positions = 0

    @property
    def complete(self) -> bool:
        """Whether anything was seen in both directions."""
        return self._a is not None and self._g is not None

    def forward(self, module: nn.Module, inputs: Tensor, outputs: Tensor) -> None:
        """See `Recorder`."""
        for columns in patches(module, inputs, outputs):
            if self._channels:
                columns = columns.unflatten(1, (-1, kernel_elements(module))).flatten(2)
            self._positions += columns.shape[2]
            self._a = _plus(self._a, (columns @ columns.mT).double())

    def backward(self, module: nn.Module, gradients: Tensor) -> None:
        """See `Recorder`."""
        columns = per_channel(module, gradients).unflatten(0, (groups_of(module), -1))
        self._g = _plus(self._g, (columns @ columns.mT).double())

    def result(self, n_images: int) -> Factors:
        """Return the factors."""
        if self._a is None or self._g is None:
            raise ValueError("nothing was measured")
        return Factors(self._a / self._positions, self._g / n_images)


def patches(module: nn.Module, inputs: Tensor, outputs: Tensor) -> Iterator[Tensor]:
    """Go through what each output position of a layer sees, in parts of the batch that fit in memory.

    Parameters
    ----------
    module : nn.Module
        A one- to three-dimensional (transposed) convolution, grouped or not, or a linear layer.
    inputs, outputs : Tensor
        Of one call.

    Yields
    ------
    Tensor, shape [groups, fan_in, positions]
        One column per output position, rows in the order of `srr_ext.filters.channel_weights`: weights times columns
        are the outputs without the bias. At least in float32.
    """
    inputs = _wide(inputs)
    if isinstance(module, nn.Linear):
        yield inputs.reshape(-1, inputs.shape[-1]).T[None]
        return
    assert isinstance(module, _ConvNd)
    inputs, outputs = _batched(module, inputs), _batched(module, outputs)
    per_image = outputs[0, 0].numel() * module.in_channels * kernel_elements(module)
    for part in inputs.split(max(1, _PART // max(1, per_image))):
        columns = _unfold(module, part, outputs.shape[2:])  # [batch, n_in * kernel, positions]
        yield columns.unflatten(1, (module.groups, -1)).permute(1, 2, 0, 3).flatten(2)


def _unfold(module: _ConvNd, inputs: Tensor, shape: torch.Size) -> Tensor:
    """Patches of a batch, [batch, n_in * kernel, positions]."""
    if not isinstance(module, _ConvTransposeNd):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        inputs = F.pad(inputs, module._reversed_padding_repeated_twice, mode=mode)
        if isinstance(module, nn.Conv2d):
            return F.unfold(inputs, module.kernel_size, module.dilation, 0, module.stride)
        if isinstance(module, nn.Conv1d):
            kernel, dilation, stride = ((1, *value) for value in (module.kernel_size, module.dilation, module.stride))
            return F.unfold(inputs[:, :, None], kernel, dilation, 0, stride)
    # Elsewhere by convolving each channel with kernels that are one in a single place.
    size = kernel_elements(module)
    ones = torch.eye(size, dtype=inputs.dtype, device=inputs.device).view(size, 1, *module.kernel_size)
    options: dict[str, Any] = {"stride": module.stride, "dilation": module.dilation, "groups": module.in_channels}
    if not isinstance(module, _ConvTransposeNd):
        return F.conv3d(inputs, ones.repeat(module.in_channels, *(1,) * (ones.ndim - 1)), **options).flatten(2)
    settings = zip(
        module.stride, cast("tuple[int, ...]", module.padding), module.dilation, module.kernel_size, strict=True
    )
    reach = [(n - 1) * s - 2 * p + d * (k - 1) + 1 for n, (s, p, d, k) in zip(inputs.shape[2:], settings, strict=True)]
    options |= {"padding": module.padding, "output_padding": [n - m for n, m in zip(shape, reach, strict=True)]}
    convolve = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[inputs.ndim - 3]
    kernels = ones.transpose(0, 1).repeat(module.in_channels, *(1,) * (ones.ndim - 1))  # [n_in, kernel, ...]
    return convolve(inputs, kernels, **options).flatten(2)


def per_channel(module: nn.Module, values: Tensor) -> Tensor:
    """Lay out outputs of a layer, or their gradients, as [n_out, positions of all images], at least in float32."""
    values = _wide(values)
    if isinstance(module, _ConvNd):
        return _batched(module, values).transpose(0, 1).flatten(1)
    return values.reshape(-1, values.shape[-1]).T


def kernel_elements(module: nn.Module) -> int:
    """Weights per pair of input and output channels."""
    return math.prod(module.kernel_size) if isinstance(module, _ConvNd) else 1


def groups_of(module: nn.Module) -> int:
    """Convolution groups; 1 elsewhere."""
    return module.groups if isinstance(module, _ConvNd) else 1


def _batched(module: _ConvNd, values: Tensor) -> Tensor:
    """Values with a batch dimension, which convolutions can do without."""
    return values if values.ndim == len(module.kernel_size) + 2 else values[None]


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _plus(total: Tensor | None, more: Tensor) -> Tensor:
    return more if total is None else total.add_(more)
