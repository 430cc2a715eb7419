"""What selectors that run the model share: which normalisation reads a layer directly, and gates on its channels.

Whoever removes a channel switches off what its layer made, everywhere it is read. A normalisation that reads a layer's
output as it is has a scale and a shift of its own for every channel, which go too: there, the channel is switched off
behind the normalisation. Which normalisation that is shows when the model runs, by the identity of tensors.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_map

from srr_ext.channels.records import ChannelGroup
from srr_ext.criteria.base import SelectorContext
from srr_ext.filters import arrange
from srr_ext.inputs import detached, first_argument, run
from srr_ext.measuring import differentiating, measuring, require_gradient


def channel_dim(module: nn.Module, activation: Tensor) -> int:
    """Return the dimension of the channels in what a convolution or a linear layer reads or makes."""
    if isinstance(module, nn.Linear):
        return activation.ndim - 1
    weight: Any = module.weight
    return activation.ndim - weight.ndim + 1  # 0 for an unbatched input


def direct_norms(context: SelectorContext, modules: Iterable[str]) -> dict[str, tuple[str | None, ...]]:
    """Find the normalisation that reads a module's output as it is, by running the model on the example inputs.

    Parameters
    ----------
    context : SelectorContext
        Gives the model and the example inputs.
    modules : iterable of str
        Names of modules.

    Returns
    -------
    dict of str to tuple
        For each module, for each of its calls, the name of the first normalisation (batch or instance normalisation)
        whose input is the very tensor that the call returned, unchanged since; None where there is none. Empty for
        modules that did not run.
    """
    found: dict[str, list[str | None]] = {name: [] for name in modules}
    seen: dict[int, tuple[Tensor, int, str, int]] = {}  # holds the outputs, so that no other tensor gets their id
    with measuring(context.seed), torch.no_grad(), ExitStack() as hooks:
        model = context.working_copy()

        def made(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, output: Tensor) -> None:
                seen[id(output)] = (output, output._version, name, len(found[name]))
                found[name].append(None)

            return hook

        def reads(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
                read = first_argument(args, kwargs)
                _, version, maker, call = seen.get(id(read), (None, -1, "", 0))
                if maker and read._version == version and found[maker][call] is None:
                    found[maker][call] = name

            return hook

        for name, norm in model.named_modules():
            if isinstance(norm, _NormBase):
                hooks.callback(norm.register_forward_pre_hook(reads(name), with_kwargs=True).remove)
        for name in found:
            hooks.callback(model.get_submodule(name).register_forward_hook(made(name)).remove)
        run(model, detached(_moved(context.example_inputs, context.device)))
    return {name: tuple(calls) for name, calls in found.items()}


def mean_change(
    groups: Sequence[ChannelGroup],
    context: SelectorContext,
    method: str,
    reduce: Callable[[Tensor], Tensor],
) -> list[Tensor]:
    r"""Average over the batches what a method makes of the first-order changes of the loss.

    Parameters
    ----------
    groups : sequence of ChannelGroup
        Groups to score.
    context : SelectorContext
        Gives the model and the batches.
    method : str
        Its name, for progress and warnings.
    reduce : callable
        Turns the changes of a batch, float64 [samples, group.size], into scores [group.size].

    Returns
    -------
    list of Tensor
        For each group, float64 [group.size], on ``context.device``.

    Raises
    ------
    ValueError
        If there are no calibration data, or the loss of a batch has no gradient or cannot be differentiated.

    Warns
    -----
    UserWarning
        If no gradient reaches a group; its scores are 0.

    Notes
    -----
    The change for sample :math:`i` and vertex :math:`v` is

    .. math:: \sum_{c \in v} \sum_p a_{icp} \frac{\partial L}{\partial a_{icp}}

    over all channels of the vertex in all producers and over all positions; :math:`a` is the activation behind the
    normalisation that reads the producer directly, or the producer's output to those that read it otherwise. It is the
    derivative of the loss with respect to a common factor of all that the vertex's producers hand on. A sample is an
    entry of the first dimension; where the layers of a group differ in their number (patches folded into the batch),
    consecutive entries are added up to the greatest common number.
    """
    loss = context.calibration.loss
    producers = {member.module: None for group in groups for member in group.producers}
    totals = [torch.zeros(group.size, dtype=torch.float64, device=context.device) for group in groups]
    reached = [False] * len(groups)
    n_batches = sum(1 for _ in context.calibration.train)
    with measuring(context.seed):
        model = context.working_copy()
    for parameter in model.parameters():
        if parameter.is_leaf:  # copies of scripted modules hold others
            parameter.requires_grad_(False)  # gates alone need gradients
    with context.progress.stage(method, n_batches) as step:
        for batch in context.batches():
            gradients = _gate_gradients(model, producers, batch, loss, context.seed)
            for i, group in enumerate(groups):
                changes = _vertex_changes(group, gradients)
                if changes is not None:
                    reached[i] = True
                    totals[i] += reduce(changes.to(context.device))
            step()
    silent = [group.name for group, any_ in zip(groups, reached, strict=True) if not any_]
    if silent:
        warnings.warn(f"{method}: no gradient reaches group {', '.join(silent)}; its scores are 0", stacklevel=3)
    return [total / n_batches for total in totals]


def _gate_gradients(
    model: nn.Module, producers: Iterable[str], batch: Any, loss: Callable[[Any, Tensor], Tensor], seed: int
) -> dict[str, list[Tensor]]:
    """Return for each producer the loss's gradient with respect to its gates, float64 [samples, n_out] per call."""
    with measuring(seed), torch.enable_grad(), _Gates(model, producers) as gates:
        inputs, targets = detached(batch)
        with differentiating():
            value = loss(run(model, inputs), targets)
            calls = [(name, ones, dim) for name, made in gates.made.items() for ones, dim in made]
            require_gradient(value)
            gradients = torch.autograd.grad(value, [ones for _, ones, _ in calls], allow_unused=True)
    result: dict[str, list[Tensor]] = {name: [] for name in producers}
    for (name, ones, dim), gradient in zip(calls, gradients, strict=True):
        if gradient is not None:
            result[name].append(gradient.double().movedim(dim, -1).reshape(-1, ones.shape[dim]))
    return result


class _Gates:
    """While open, multiplies the channels of some layers by ones that require a gradient.

    A gate stands between a layer and everything that reads it, but behind a normalisation that reads it directly.
    """

    def __init__(self, model: nn.Module, producers: Iterable[str]) -> None:
        self._model, self._producers = model, tuple(producers)
        self.made: dict[str, list[tuple[Tensor, int]]] = {name: [] for name in self._producers}  # ones, channel dim
        self._gated: dict[int, tuple[Tensor, int, Tensor, Tensor]] = {}  # gated output, version, raw output, ones
        self._open: dict[nn.Module, Tensor | None] = {}  # ones that belong behind the normalisation that is running
        self._hooks = ExitStack()

    def __enter__(self) -> _Gates:
        for name in self._producers:
            module = self._model.get_submodule(name)
            self._hooks.callback(module.register_forward_hook(self._after_producer(name)).remove)
        for norm in self._model.modules():
            if isinstance(norm, _NormBase):
                self._hooks.callback(norm.register_forward_pre_hook(self._before_norm, with_kwargs=True).remove)
                self._hooks.callback(norm.register_forward_hook(self._after_norm).remove)
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.close()
        self._gated.clear()

    def _after_producer(self, name: str) -> Callable[..., Tensor]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            dim = channel_dim(module, output)
            shape = [1] * output.ndim
            shape[0], shape[dim] = output.shape[0], output.shape[dim]
            ones = output.new_ones(shape, requires_grad=True)
            self.made[name].append((ones, dim))
            gated = output * ones
            self._gated[id(gated)] = (gated, gated._version, output, ones)
            return gated

        return hook

    def _before_norm(self, norm: nn.Module, args: Any, kwargs: Any) -> Any:
        """Give a normalisation that reads a gated output the raw one instead."""
        read = first_argument(args, kwargs)
        gated, version, raw, ones = self._gated.get(id(read), (None, -1, None, None))
        unchanged = gated is not None and gated._version == version
        self._open[norm] = ones if unchanged else None
        if not unchanged:
            return None
        return ((raw, *args[1:]), kwargs) if args else (args, kwargs | {"input": raw})

    def _after_norm(self, norm: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        ones = self._open.pop(norm, None)
        return None if ones is None else output * ones


def _vertex_changes(group: ChannelGroup, gradients: dict[str, list[Tensor]]) -> Tensor | None:
    """Add up gradients over the channels of each vertex, float64 [samples, group.size]; None if there are none."""
    calls = [(member, rows) for member in group.producers for rows in gradients[member.module]]
    if not calls:
        return None
    samples = math.gcd(*(len(rows) for _, rows in calls))
    total = calls[0][1].new_zeros(group.size, samples)
    for member, rows in calls:
        folded = rows.unflatten(0, (samples, -1)).sum(1)  # [samples, n_out]
        total += arrange(folded.T, member.vertex, group.size).unflatten(1, (-1, samples)).sum(1)
    return total.T


def _moved(inputs: Any, device: torch.device) -> Any:
    return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, inputs)
