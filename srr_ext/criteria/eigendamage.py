"""What the loss would lose with a filter, by second derivatives: the Fisher information in place of the Hessian."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from srr_ext.channels.records import ChannelGroup
from srr_ext.criteria.base import SelectorContext, register_selector
from srr_ext.criteria.kfac import Labels, fisher_pass, groups_of, patches, per_channel


@dataclass(frozen=True)
class EigenDamage:
    r"""Damage of removing a filter, by K-FAC's quadratic form in the original basis.

    Called with groups and a `SelectorContext` that has images, it returns one score per vertex, float64 [group.size],
    higher = keep: an estimate of how much the loss (nats per image) rises when the vertex goes, in nats if the model is
    at a minimum.

    Parameters
    ----------
    labels : {"sampled", "given", "all"}, default "sampled"
        Whose gradients are squared, see `srr_ext.criteria.kfac.fisher_pass`.

    Raises
    ------
    ValueError
        If ``labels`` is something else, there are no images, or labels cannot be drawn from the outputs.

    Warns
    -----
    UserWarning
        If no gradient reaches a layer: its part of the score is 0.

    Notes
    -----
    .. math:: s_i = \frac{1}{2} G_{ii} \, w_i^T A \, w_i

    with the factors of `srr_ext.criteria.kfac.kfac_factors` (of :math:`A`, the block of the filter's own convolution
    group; biases do not count). A vertex of several channels, or of several layers, has the sum over them. As
    :math:`w_i^T A w_i` is the mean square of what the filter puts out, bias left out, no factor is ever formed.

    The name of this score is ours. The authors' EigenDamage prunes in the eigenbasis of the factors, which is
    `srr_ext.bottleneck`; what they compare it with in the original basis are C-OBD (diagonal of Fisher information),
    C-OBS (inverse factors, with an update of the other weights) and Kron-OBD and Kron-OBS, where filters go as wholes.
    Nearest to this score is Kron-OBD, :math:`G_{ii}` times a form of :math:`A` (their code squares weights before it
    multiplies with :math:`A`; this is the form itself).

    References
    ----------
    Wang, Grosse, Fidler, Zhang. EigenDamage: structured pruning in the Kronecker-factored eigenbasis. ICML 2019, arXiv
    1905.05934.
    """

    labels: Labels = "sampled"

    def __call__(self, groups: Sequence[ChannelGroup], context: SelectorContext) -> list[Tensor]:
        """Score the vertices of groups."""
        return _damage(groups, context, self.labels, diagonal=False)


@dataclass(frozen=True)
class COBD:
    r"""Damage of removing a filter, by the diagonal of K-FAC's quadratic form.

    Called with groups and a `SelectorContext` that has images, it returns one score per vertex, float64 [group.size],
    higher = keep, in the unit of `EigenDamage`.

    Parameters
    ----------
    labels : {"sampled", "given", "all"}, default "sampled"
        Whose gradients are squared, see `srr_ext.criteria.kfac.fisher_pass`.

    Raises
    ------
    ValueError
        If ``labels`` is something else, there are no images, or labels cannot be drawn from the outputs.

    Warns
    -----
    UserWarning
        If no gradient reaches a layer: its part of the score is 0.

    Notes
    -----
    .. math:: s_i = \frac{1}{2} \sum_j A_{jj} G_{ii} W_{ij}^2

    The row sums of :math:`D` of `srr_ext.bottleneck` without rotation, halved. It takes the weights of a filter for
    uncorrelated, which `EigenDamage` does not. The authors' C-OBD has the exact diagonal of the Fisher information,
    :math:`E[(\partial L / \partial W_{ij})^2]`, where this has K-FAC's :math:`A_{jj} G_{ii}`; that is ours.

    References
    ----------
    Wang, Grosse, Fidler, Zhang. EigenDamage: structured pruning in the Kronecker-factored eigenbasis. ICML 2019, arXiv
    1905.05934.
    """

    labels: Labels = "sampled"

    def __call__(self, groups: Sequence[ChannelGroup], context: SelectorContext) -> list[Tensor]:
        """Score the vertices of groups."""
        return _damage(groups, context, self.labels, diagonal=True)


eigendamage = register_selector("eigendamage")(EigenDamage())
c_obd = register_selector("c_obd")(COBD())


def _damage(groups: Sequence[ChannelGroup], context: SelectorContext, labels: Labels, diagonal: bool) -> list[Tensor]:
    kind = _InputSquares if diagonal else _OutputSquares
    recorders = {member.module: kind() for group in groups for member in group.producers}
    n_images = fisher_pass(context, recorders, labels)
    scores = {name: recorder.damage(context.weights(name), n_images) for name, recorder in recorders.items()}
    for group in groups:
        blind = [member.module for member in group.producers if not recorders[member.module].complete]
        if blind:
            warnings.warn(
                f"group {group.name!r}: no gradient of the loss reaches {', '.join(blind)} in evaluation mode; "
                "its part of the score is 0",
                UserWarning,
                stacklevel=3,
            )
    return [context.vertex_sum(group, scores) for group in groups]


class _OutputSquares:
    """Adds up squares of a layer's outputs and of their gradients, per channel."""

    def __init__(self) -> None:
        self._seen: Tensor | None = None
        self._blamed: Tensor | None = None
        self._positions = 0

    @property
    def complete(self) -> bool:
        """Whether anything was seen in both directions."""
        return self._seen is not None and self._blamed is not None

    def forward(self, module: nn.Module, inputs: Tensor, outputs: Tensor) -> None:
        """See `Recorder`."""
        columns = per_channel(module, outputs)
        if isinstance(module.bias, Tensor):
            columns = columns - module.bias.detach()[:, None]
        self._add_seen(columns.square().sum(1), columns.shape[1])

    def backward(self, module: nn.Module, gradients: Tensor) -> None:
        """See `Recorder`."""
        squares = per_channel(module, gradients).square().sum(1).double()
        self._blamed = squares if self._blamed is None else self._blamed + squares

    def damage(self, weights: Tensor, n_images: int) -> Tensor:
        """Return the damage per output channel, float64 [n_out], from its weights [n_out, fan_in]."""
        if self._seen is None or self._blamed is None:
            return weights.new_zeros(len(weights))
        return 0.5 * self._blamed / n_images * self._form(weights, self._seen / self._positions)

    def _add_seen(self, squares: Tensor, positions: int) -> None:
        squares = squares.double()
        self._seen = squares if self._seen is None else self._seen + squares
        self._positions += positions

    def _form(self, weights: Tensor, seen: Tensor) -> Tensor:
        """Return w^T A w per channel, which was measured itself."""
        return seen


class _InputSquares(_OutputSquares):
    """Adds up squares of a layer's input patches, and of its outputs' gradients per channel."""

    def forward(self, module: nn.Module, inputs: Tensor, outputs: Tensor) -> None:
        """See `Recorder`."""
        self._groups = groups_of(module)
        for columns in patches(module, inputs, outputs):  # [groups, fan_in, positions]
            self._add_seen(columns.square().sum(2), columns.shape[2])

    def _form(self, weights: Tensor, seen: Tensor) -> Tensor:
        """Return the sum over inputs of A_jj W_ij^2 per channel; ``seen`` is the diagonal of A, [groups, fan_in]."""
        squares = weights.square().unflatten(0, (self._groups, -1))  # [groups, n_out / groups, fan_in]
        return torch.einsum("gnd,gd->gn", squares, seen).flatten()
