"""What a selector is, what it is given, and how it is found by name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from srr_ext.calibration import Batch, Calibration, batches_on
from srr_ext.channels.records import ChannelGroup
from srr_ext.copying import copy_model
from srr_ext.filters import arrange, channel_weights, planning_device, raw_filters
from srr_ext.progress import Progress, silent
from srr_ext.registry import Registry


class SelectorContext:
    """What a selector may ask for. Nothing is computed before it is asked for.

    Parameters
    ----------
    model : nn.Module
        The dense model. Selectors read it and leave it as it is.
    example_inputs : Tensor, tuple or dict
        Arguments of one forward pass.
    seed : int
        Seed of everything random.
    data : Calibration, optional
        For methods that look at images.
    progress : Progress, optional
        Where long stages report; silent by default.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        seed: int = 0,
        *,
        data: Calibration | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.model = model
        self.example_inputs = example_inputs
        self.seed = seed
        self.data = data
        self.progress = progress or silent()

    @cached_property
    def device(self) -> torch.device:
        """Where the model is planned for, and importance best computed: see `srr_ext.filters.planning_device`."""
        return planning_device(self.model)

    @property
    def calibration(self) -> Calibration:
        """The calibration data, for those that need some.

        Raises
        ------
        ValueError
            If there are none.
        """
        if self.data is None:
            raise ValueError(
                "data: this method looks at images and there are none; pass data=, batches of (inputs, targets)"
            )
        return self.data

    def batches(self) -> Iterator[Batch]:
        """Go through the training batches of the calibration data, on `device`."""
        return batches_on(self.device, self.calibration.train, "training batches")

    def validation_batches(self) -> Iterator[Batch]:
        """Go through the validation batches of the calibration data, on `device`."""
        return batches_on(self.device, self.calibration.validation, "validation batches")

    def working_copy(self) -> nn.Module:
        """Copy the model to `device`, in evaluation mode, for whoever hangs hooks into it or changes its weights."""
        return copy_model(self.model).to(self.device).eval()

    def weights(self, module: str) -> Tensor:
        """Weights of a module's output channels, float64 [n_out, fan_in], on `device`."""
        return channel_weights(self.model.get_submodule(module)).to(self.device).double()

    def filters(self, group: ChannelGroup) -> Tensor:
        """All weights that make each vertex of a group, float64 [group.size, fan_in], on `device`."""
        return raw_filters(group, self.model, self.device)

    def vertex_sum(self, group: ChannelGroup, scores: dict[str, Tensor]) -> Tensor:
        """Add up channel scores over each vertex.

        Parameters
        ----------
        group : ChannelGroup
            The group.
        scores : dict of str to Tensor
            For each producer of the group, by module name, one score per output channel [n_out].

        Returns
        -------
        Tensor of float64, shape [group.size]
            For each vertex, the sum over all producers' channels that belong to it, added up in their order, so that
            the same scores give the same bytes; on the device of the first producer's scores.
        """
        total = scores[group.producers[0].module].new_zeros(group.size, dtype=torch.float64)
        for member in group.producers:
            columns = scores[member.module].to(total.device).double()[:, None]
            for column in arrange(columns, member.vertex, group.size).unbind(1):
                total = total + column
        return total

    def generator(self, *key: str) -> np.random.Generator:
        """Random numbers that depend on the seed and the key alone, not on what else was drawn before."""
        digest = hashlib.blake2b("\0".join((str(self.seed), *key)).encode(), digest_size=16).digest()
        return np.random.default_rng(int.from_bytes(digest, "little"))


class Selector(Protocol):
    """Says which vertices of each group matter; the least important go first."""

    def __call__(self, groups: Sequence[ChannelGroup], context: SelectorContext, /) -> list[Tensor]:
        """Return for each group the importance of its vertices, float64 [group.size], higher = keep, on any device."""
        ...


@runtime_checkable
class CountedSelector(Selector, Protocol):
    """A selector that chooses better once it knows how many vertices of each group stay."""

    def given_counts(
        self, groups: Sequence[ChannelGroup], counts: Sequence[int], context: SelectorContext, /
    ) -> list[Tensor]:
        """Return the importance again, when ``counts[i]`` vertices of ``groups[i]`` are to stay: the most important.

        How many stay was allocated by the importance that the call without counts has returned.
        """
        ...


_registry: Registry[Selector] = Registry("selector", "srr_ext.selectors")
register_selector = _registry.register
get_selector = _registry.get
available_selectors = _registry.available
