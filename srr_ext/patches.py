"""What a layer reads and makes at sampled places: rows of the regressions that choose channels and refit weights.

A convolution, transposed convolution or linear layer is a linear map at every place of its output: ``output[j]`` is
the sum over inputs c and kernel elements k of ``patch[c, k] * weight[j, c, k]``, plus a bias. Samples hold both sides.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from srr_ext.inputs import first_argument, run
from srr_ext.measuring import differentiating, measuring, require_gradient

if TYPE_CHECKING:
    from srr_ext.criteria.base import SelectorContext


@dataclass(frozen=True)
class Sample:
    """One call of a layer, at sampled places.

    Attributes
    ----------
    patches : Tensor, shape [rows, n_in, kernel]
        What the layer reads there; zeros where padding with zeros is read. In the dtype of the layer's inputs.
    outputs : Tensor, shape [rows, n_out]
        What it makes of it, bias included.
    gradients : Tensor or None, shape [rows, n_out]
        Derivative of each image's own loss, if asked for.
    """

    patches: Tensor
    outputs: Tensor
    gradients: Tensor | None = None


def is_sampled(module: nn.Module) -> bool:
    """Whether a module is of a kind whose calls can be sampled."""
    return isinstance(module, (_ConvNd, nn.Linear))


def weight_blocks(module: nn.Module) -> Tensor:
    """Weights of a layer per convolution group, detached, [groups, n_out / groups, n_in / groups, kernel]."""
    if isinstance(module, _ConvNd):
        weight = module.weight.detach().flatten(2)
        split = weight.unflatten(0, (module.groups, -1))
        return split.transpose(1, 2) if isinstance(module, _ConvTransposeNd) else split
    if isinstance(module, nn.Linear):
        return module.weight.detach()[None, :, :, None]
    raise TypeError(f"module must be a (transposed) convolution or a linear layer, got {type(module).__name__}")


def set_weight_blocks(module: Any, blocks: Tensor, bias: Tensor | None) -> None:
    """Give a layer other weights, in place: the inverse of `weight_blocks`, and a bias [n_out] where it has one."""
    if isinstance(module, _ConvTransposeNd):
        blocks = blocks.transpose(1, 2)
    with torch.no_grad():
        module.weight.copy_(blocks.flatten(0, 1).reshape(module.weight.shape))
        if bias is not None:
            module.bias.copy_(bias)


def samples(
    model: nn.Module,
    names: Sequence[str],
    context: SelectorContext,
    positions: int,
    *,
    entries: int | None = None,
    patches: bool = True,
    gradients: bool = False,
    calls: Sequence[Mapping[str, int]] | None = None,
    after_batch: Callable[[], None] = lambda: None,
) -> Generator[dict[str, list[Sample]]]:
    """Run a model on the training batches of the calibration data and sample its layers.

    Parameters
    ----------
    model : nn.Module
        A copy of one's own, on ``context.device`` and in evaluation mode; hooks hang in it meanwhile. With
        ``gradients`` its parameters come to require them.
    names : sequence of str
        Modules to sample, of the kinds of `is_sampled`.
    context : SelectorContext
        Gives the batches and the seed. The places depend on the seed, the layer, the batch, the call and the size of
        the output alone: a pruned copy of a model is sampled where the model is.
    positions : int
        Places per image, drawn without repetition; 0 for all.
    entries : int, optional
        At most this many output entries (places times output channels) per layer and call, though one place at least.
    patches : bool, default True
        Whether to take patches; without, they are empty.
    gradients : bool, default False
        Whether to differentiate the calibration data's loss.
    calls : sequence of mapping of str to int, optional
        How often each layer is called, for each batch; a forward pass then ends when all have been.
    after_batch : callable, optional
        Called after each forward pass.

    Yields
    ------
    dict of str to list of Sample
        Per batch: the calls of each layer, in order; none where the layer was not called.
    """
    modules = {name: model.get_submodule(name) for name in names}
    found: dict[str, list[Sample]] = {}
    number = -1

    def record(name: str, module: nn.Module, inputs: Tensor, output: Tensor) -> None:
        call = len(found.setdefault(name, []))
        rng = context.generator("patches", name, str(number), str(call))
        image, place = _places(rng, module, output, positions, entries)
        with torch.no_grad():
            read = _patches(module, inputs, output, image, place) if patches else inputs.new_empty(len(place), 0, 0)
            sample = Sample(read, _at(module, output, image, place))
        found[name].append(sample)
        if gradients and output.requires_grad:

            def keep(gradient: Tensor) -> None:
                found[name][call] = Sample(sample.patches, sample.outputs, images * _at(module, gradient, image, place))

            output.register_hook(keep)
        if calls is not None and all(len(found.get(key, ())) >= count for key, count in calls[number].items()):
            raise _Enough

    handles = [module.register_forward_hook(_hook(name, record), with_kwargs=True) for name, module in modules.items()]
    if gradients:
        model.requires_grad_(True)
    try:
        for inputs, targets in context.batches():
            found = {}
            number += 1
            images = len(targets)
            with suppress(_Enough), measuring(context.seed), torch.set_grad_enabled(gradients), differentiating():
                outputs = run(model, inputs)
                if gradients:
                    loss = context.calibration.loss(outputs, targets)
                    require_gradient(loss)
                    torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True)
            after_batch()
            yield found
    finally:
        for handle in handles:
            handle.remove()


class _Enough(BaseException):
    """Ends a forward pass of which nothing more is wanted; no Exception, so that no model catches it."""


def _hook(name: str, record: Callable[[str, nn.Module, Tensor, Tensor], None]) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        record(name, module, first_argument(args, kwargs), output)

    return hook


def _by_place(module: nn.Module, values: Tensor) -> Tensor:
    """View a layer's inputs or outputs as [images, channels, places]."""
    if isinstance(module, _ConvNd):
        batched = values if values.ndim == module.weight.ndim else values[None]
        return batched.flatten(2)
    batched = values if values.ndim > 1 else values[None]
    return batched.reshape(len(batched), -1, batched.shape[-1]).transpose(1, 2)


def _at(module: nn.Module, values: Tensor, image: Tensor, place: Tensor) -> Tensor:
    """Values at the sampled places, [rows, channels]."""
    return _by_place(module, values.detach())[image, :, place]


def _places(
    rng: np.random.Generator, module: nn.Module, output: Tensor, positions: int, entries: int | None
) -> tuple[Tensor, Tensor]:
    """Draw the images and places of the rows, in order."""
    images, channels, places = _by_place(module, output.detach()).shape
    if 0 < positions < places:
        chosen = np.argpartition(rng.random((images, places)), positions, axis=1)[:, :positions]
    else:
        chosen = np.broadcast_to(np.arange(places), (images, places))
    rows = (np.arange(images)[:, None] * places + np.sort(chosen, axis=1)).ravel()
    most = len(rows) if entries is None else max(1, entries // channels)
    if most < len(rows):
        rows = np.sort(rng.choice(rows, most, replace=False))
    image, place = torch.from_numpy(np.stack(np.divmod(rows, places))).to(output.device)
    return image, place


def _patches(module: nn.Module, inputs: Tensor, output: Tensor, image: Tensor, place: Tensor) -> Tensor:
    """Gather what the layer reads at places of its output, [rows, n_in, kernel]."""
    if not isinstance(module, _ConvNd):
        return _at(module, inputs, image, place)[..., None]
    n = module.weight.ndim - 2
    inputs = inputs.detach() if inputs.ndim == n + 2 else inputs.detach()[None]
    if not isinstance(module, _ConvTransposeNd):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        inputs = F.pad(inputs, module._reversed_padding_repeated_twice, mode)
    sizes, made = inputs.shape[2:], output.shape[-n:]
    index, inside = place.new_zeros(len(place), 1), None
    for axis in range(n):
        here = place // int(np.prod(made[axis + 1 :])) % made[axis]
        steps = torch.arange(module.kernel_size[axis], device=place.device) * module.dilation[axis]
        if isinstance(module, _ConvTransposeNd):  # input i adds to output i * stride - padding + step
            reach = here[:, None] + int(module.padding[axis]) - steps
            read = reach.div(module.stride[axis], rounding_mode="floor")
            real = (reach % module.stride[axis] == 0) & (read >= 0) & (read < sizes[axis])
            inside = real if inside is None else (inside[:, :, None] & real[:, None, :]).flatten(1)
            read = read.clamp(0, sizes[axis] - 1)
        else:
            read = here[:, None] * module.stride[axis] + steps
        index = (index[:, :, None] * sizes[axis] + read[:, None, :]).flatten(1)
    patches = inputs.flatten(2)[image[:, None], :, index].transpose(1, 2)
    return patches if inside is None else patches * inside[:, None, :]
