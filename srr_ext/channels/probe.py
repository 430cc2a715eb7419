"""Find what no rule can see: sizes written as literals, and code that depends on widths.

The model is cut in several ways, run on labels again, and every operation must give what is left of the labels it gave
before. Where one does not (or fails), the channels it reads are pinned, and the probe is repeated until all cuts run
clean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from srr_ext.channels.calls import Step
from srr_ext.channels.groups import build_groups
from srr_ext.channels.labels import Labels, LabelSpace, compact
from srr_ext.channels.records import NO_VERTEX, ChannelGroup, Pin
from srr_ext.channels.trace import LabelTracer, Notes, undisturbed
from srr_ext.equality import relative_error
from srr_ext.inputs import detached, run, tensors_in
from srr_ext.layers import cut_layers, kept_positions, mask_layers

SMALL_GROUP = 8  # vertices
ROUGHLY = 1e-2  # relative; single precision stays far below, half precision just so, a wrong channel does not


@dataclass(frozen=True, eq=False)
class Journal:
    """The steps of one pass, the plain numbers it put out, and the mode the model was in."""

    steps: Sequence[Step]
    numbers: Sequence[int | float]
    training: bool


class Disagreement(Exception):
    """A step of the cut model is not what is left of the full model's."""


class ReplayTracer(LabelTracer):
    """Runs a cut model and compares every step with the journal of the full one."""

    def __init__(
        self, model: nn.Module, space: LabelSpace, notes: Notes, journal: Journal, removed: np.ndarray
    ) -> None:
        super().__init__(model, space, notes)
        self._journal, self._removed = journal, removed

    def record(self, step: Step) -> None:
        """Compare, then append."""
        at = len(self.steps)
        expected = self._journal.steps[at] if at < len(self._journal.steps) else None
        if expected is None or (expected.name, expected.module) != (step.name, step.module):
            raise Disagreement("another operation runs")
        if step.constants != expected.constants:
            raise Disagreement("a number that it uses changes")
        for (shape, base), (full_shape, full_base) in zip(step.made, expected.made, strict=True):
            if (base is None) != (full_base is None):
                raise Disagreement("labels appear or vanish")
            if base is None or full_base is None:
                if expected.read and shape != full_shape:
                    raise Disagreement("a fixed result changes its size")
                continue
            left = compact(self.space, Labels(full_base, full_shape), self._removed)
            if left is None:
                agree = 0 in shape
            else:
                agree = left[0] == shape and left[1].shape == base.shape and torch.equal(left[1], base)
            if not agree:
                raise Disagreement("channels are not where they were")
        super().record(step)


def trial_cuts(groups: Sequence[ChannelGroup], seed: int) -> list[dict[str, np.ndarray]]:
    """Choices of kept vertices that bring out what does not follow.

    All but the first vertex and all but the last, for code that counts from an end; a random pair of complementary
    choices, in which every vertex goes once, with a quarter to three quarters kept, an odd number first, so that halves
    and pairs fall apart. In groups so small that few choices differ, luck needs more of both.
    """
    rng = np.random.default_rng(seed)
    small = any(group.size < SMALL_GROUP for group in groups)
    singles, pairs = ((0, -1, 1, -2), 3) if small else ((0, -1), 1)
    cuts: list[dict[str, np.ndarray]] = []
    for single in singles:
        cuts.append({g.name: np.delete(np.arange(g.size), single) for g in groups if g.size > abs(single)})
    for _ in range(pairs):
        cuts += [{}, {}]
        for group in groups:
            odd = [at for at in range(1, group.size, 2) if group.size <= 4 * at <= 3 * group.size] or [1]
            order, at = rng.permutation(group.size), odd[int(rng.integers(len(odd)))]
            cuts[-2][group.name] = np.sort(order[:at])
            cuts[-1][group.name] = np.sort(order[at:] if group.size > 1 else order)
    return [{name: kept for name, kept in cut.items() if len(kept)} for cut in cuts]


@dataclass(frozen=True, eq=False)
class Probe:
    """A model with its labels and journals, ready to be tried with channels missing.

    Attributes
    ----------
    model : nn.Module
        The full model; it is copied before it is cut.
    example_inputs : Tensor, tuple or dict
        What the journals were made with.
    space, notes : LabelSpace, Notes
        Labels and where they lie; findings are pinned there.
    journals : sequence of Journal
        One per way through the model.
    """

    model: nn.Module
    example_inputs: Any
    space: LabelSpace
    notes: Notes
    journals: Sequence[Journal]

    def settle(self) -> tuple[tuple[ChannelGroup, ...], tuple[Pin, ...]]:
        """Pin whatever disagrees until trial cuts of all groups run clean; return what is left."""
        seed = 0
        while True:
            groups, pins = build_groups(self.space, self.notes)
            if not groups:  # whatever still disagrees, nothing is cut
                return groups, pins
            cuts = trial_cuts(groups, seed)
            finding = next(filter(None, (self.replay(groups, kept) for kept in cuts)), None)
            if finding is None:
                wrong = self._unequal_groups(groups, cuts[-1])
                if not wrong:
                    return groups, pins
                for group in wrong:
                    self._pin_group(group, "the network's numbers depend on the width in a way that cannot be followed")
                continue
            labels, reason = finding
            before = len(self.space.pinned_classes())
            for read in labels:
                self.space.pin(read, reason)
            if len(self.space.pinned_classes()) == before:
                self._pin_culprits(groups, reason)
            seed += 1

    def replay(
        self, groups: Sequence[ChannelGroup], kept: Mapping[str, np.ndarray]
    ) -> tuple[list[torch.Tensor], str] | None:
        """Cut the model to ``kept`` and replay its journals.

        Returns
        -------
        tuple of (list of Tensor, str) or None
            Labels read by the first step that disagrees, with the reason to pin them; None if all agree.
        """
        sides = kept_positions(groups, kept)
        removed = np.zeros(len(self.space), dtype=bool)
        axes = dict(self.notes.axes)
        for key, positions in sides.items():
            note = axes[key]
            removed[np.delete(note.labels.numpy(), positions)] = True
            axes[key] = replace(note, labels=note.labels[torch.from_numpy(positions)])
        small = cut_layers(self.model, sides, rehearse=True)
        for journal in self.journals:
            tracer = ReplayTracer(small.train(journal.training), self.space, Notes(dict(axes)), journal, removed)
            self.space.frozen = True
            try:
                tracer.trace(self.example_inputs)
                problem = "" if len(tracer.steps) == len(journal.steps) else "fewer operations run"
            except Exception as error:  # whatever the model raises when its channels are missing is the finding
                problem = next(iter(str(error).strip().splitlines()), type(error).__name__)[:120]
            finally:
                self.space.frozen = False
            if problem:
                step = journal.steps[min(len(tracer.steps), len(journal.steps) - 1)]
                return step.read, f"{step.name} in {step.module or 'the model'} depends on the width ({problem})"
            if tracer.numbers != journal.numbers:
                return [], "the model puts out a number that depends on its width"
        return None

    def _pin_culprits(self, groups: Sequence[ChannelGroup], reason: str) -> None:
        """Cut one group at a time and pin those that disagree; all of them if none does alone."""
        alone = [group for group in groups if any(self.replay(groups, kept) for kept in trial_cuts([group], 0))]
        for group in alone or groups:
            self._pin_group(group, reason)

    def _pin_group(self, group: ChannelGroup, reason: str) -> None:
        for member in group.producers:
            labels = self.notes.axes[member.module, member.side].labels
            self.space.pin(labels[torch.from_numpy(member.vertex != NO_VERTEX)], reason)

    def _unequal_groups(self, groups: Sequence[ChannelGroup], kept: Mapping[str, np.ndarray]) -> list[ChannelGroup]:
        """Find, by halving, the groups whose cut changes the outputs as zeroed filters do not."""
        if not groups or self._equal(groups, kept):
            return []
        if len(groups) == 1:
            return list(groups)
        half = len(groups) // 2
        return self._unequal_groups(groups[:half], kept) + self._unequal_groups(groups[half:], kept) or list(groups)

    def _equal(self, groups: Sequence[ChannelGroup], kept: Mapping[str, np.ndarray]) -> bool:
        """Compare the cut model with the one whose filters are zeroed, for what labels do not tell: values.

        In the model's own precision, so roughly; `srr_ext.surgery.verify` is the proof. Outputs that are not finite
        anyway tell nothing.
        """
        sides = kept_positions(groups, kept)
        outputs = []
        try:
            for model in (mask_layers(self.model, sides), cut_layers(self.model, sides)):
                with undisturbed(model):
                    outputs.append(list(tensors_in(run(model.eval(), detached(self.example_inputs)))))
        except Exception:  # whatever the model raises is a difference
            return False
        if not all(bool(value.isfinite().all()) for value in outputs[0] if value.is_floating_point()):
            return True
        return relative_error(*outputs) < ROUGHLY
