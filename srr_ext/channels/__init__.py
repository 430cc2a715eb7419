"""Which channels of which layers go together: the model is run on labels (see `trace`), nothing is guessed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from srr_ext.channels.groups import pin_dead_ends
from srr_ext.channels.labels import LabelSpace
from srr_ext.channels.probe import Journal, Probe
from srr_ext.channels.records import NO_VERTEX, ChannelAnalysis, ChannelGroup, Layer, Member, Pin
from srr_ext.channels.trace import LabelTracer, Notes
from srr_ext.copying import copy_model
from srr_ext.inputs import as_arguments

__all__ = ["NO_VERTEX", "ChannelAnalysis", "ChannelGroup", "Layer", "Member", "Pin", "analyze_channels"]


def analyze_channels(model: nn.Module, example_inputs: Any, *, ignored: Iterable[str] = ()) -> ChannelAnalysis:
    """Find the channels that can be removed, and everything that has to go with each.

    The model runs on the example inputs in evaluation mode and in training mode (for branches taken only there), with
    integer labels beside every activation: layers make labels, shape operations move them, element-wise operations
    unite those that meet. It is then cut at random and run again; whatever does not follow is pinned with the reason.

    Parameters
    ----------
    model : nn.Module
        Any model that runs eagerly. It is copied and left untouched.
    example_inputs : Tensor, tuple or dict
        Inputs for one forward pass; one image is enough.
    ignored : iterable of str
        Names of modules whose output channels are never removed. The model's outputs never are.

    Returns
    -------
    ChannelAnalysis
        Groups of removable channels, layers, pins with reasons.

    Raises
    ------
    TypeError
        If the example inputs are no tensor, tuple or dict.
    ValueError
        If ``ignored`` names no module, or the model does not run on the example inputs.
    """
    ignored = frozenset(ignored)
    unknown = ignored - {name for name, _ in model.named_modules()}
    if unknown:
        raise ValueError(f"ignored: no module of the model is called {sorted(unknown)[0]!r}")
    as_arguments(example_inputs)  # refuses what is no input, before anything runs
    twin = copy_model(model).eval()
    space, notes = LabelSpace(), Notes()

    counter = FlopCounterMode(display=False)
    tracer = LabelTracer(twin, space, notes, ignored)
    try:
        with counter:
            tracer.trace(example_inputs)
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
        raise ValueError(f"example_inputs: the model does not run on them ({problem})") from error
    journals = [Journal(tracer.steps, tracer.numbers, training=False)]
    layers, reached = dict(tracer.layers), set(tracer.reached)

    training = LabelTracer(twin.train(), space, notes, ignored)
    try:
        training.trace(example_inputs)
    except Exception:  # many models refuse training mode (targets are missing, say)
        training.steps = []
        for labels in training.reading:  # what a branch that cannot be followed was about to read
            space.pin(labels, f"the model fails here in training mode, in {training.reading_in or 'its forward'}")
    taken = [[(step.name, step.module) for step in steps] for steps in (tracer.steps, training.steps)]
    if taken[1] and taken[1] != taken[0]:
        journals.append(Journal(training.steps, training.numbers, training=True))
        for name, layer in training.layers.items():  # layers that only training reaches cost nothing at inference
            layers.setdefault(name, Layer(**{**vars(layer), "positions": 0}))
    reached |= training.reached

    pin_dead_ends(space, notes)
    groups, pins = Probe(twin, example_inputs, space, notes, journals).settle()

    macs = sum(layer.positions * layer.n_out * layer.n_in // layer.groups * layer.kernel for layer in layers.values())
    weighted = [n for n, m in model.named_modules() if any(True for _ in m.parameters(recurse=False))]
    read = {name for name, _ in notes.borrowed}
    return ChannelAnalysis(
        groups=groups,
        layers=layers,
        pins=pins,
        fixed_macs=counter.get_total_flops() // 2 - macs,
        total_params=sum(p.numel() for p in model.parameters()),
        unreached=tuple(name for name in weighted if name not in reached | read),
    )
