"""Which channels of which layers go together: the model is run on labels (see `trace`), nothing is guessed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
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
from srr_ext.layers import widths_of

__all__ = ["NO_VERTEX", "ChannelAnalysis", "ChannelGroup", "Layer", "Member", "Pin", "analyze_channels"]


def analyze_channels(model: nn.Module, example_inputs: Any, *, ignored: Iterable[str] = ()) -> ChannelAnalysis:
    """Find the channels that can be removed, and everything that has to go with each.

    The model runs on the example inputs in evaluation mode and in training mode (for branches taken only there), with
    integer labels beside every activation: layers make labels, shape operations move them, element-wise operations
    unite those that meet. It is then cut in several ways and run again; what does not follow is pinned with the reason.

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
        If the model is no module, or the example inputs are no tensor, tuple or dict.
    ValueError
        If ``ignored`` names no module, or the model does not run on the example inputs.

    Notes
    -----
    What the model does with other inputs (another branch for another image size, say) is not seen; give example inputs
    of the kind it will meet.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if isinstance(ignored, str):
        raise TypeError(f"ignored: expected a list of module names, got the string {ignored!r}")
    ignored = frozenset(ignored)
    unknown = ignored - {name for name, _ in model.named_modules()}
    if unknown:
        raise ValueError(f"ignored: no module of the model is called {sorted(unknown)[0]!r}")
    as_arguments(example_inputs)  # refuses what is no input, before anything runs
    twin = copy_model(model)
    space, notes = LabelSpace(), Notes()
    with FlopCounterMode(display=False) as counter:
        evaluation = _evaluation_pass(LabelTracer(twin.eval(), space, notes, ignored), example_inputs)
    training = _training_pass(LabelTracer(twin.train(), space, notes, ignored), example_inputs)
    journals = [Journal(evaluation.steps, evaluation.numbers, training=False)]
    if training.steps and training.operations != evaluation.operations:
        journals.append(Journal(training.steps, training.numbers, training=True))
    layers = dict(evaluation.layers)
    for name, layer in training.layers.items():  # a layer that only training reaches costs nothing at inference
        layers.setdefault(name, replace(layer, positions=0))

    pin_dead_ends(space, notes)
    groups, pins = Probe(twin, example_inputs, space, notes, journals).settle()

    macs = sum(layer.positions * layer.n_out * layer.n_in // layer.groups * layer.kernel for layer in layers.values())
    with_parameters = [name for name, module in model.named_modules() if list(module.parameters(recurse=False))]
    seen = evaluation.reached | training.reached | {name for name, _ in notes.borrowed}
    return ChannelAnalysis(
        groups=groups,
        layers=layers,
        pins=pins,
        fixed_macs=counter.get_total_flops() // 2 - macs,
        total_params=sum(parameter.numel() for parameter in model.parameters()),
        unreached=tuple(name for name in with_parameters if name not in seen),
        widths=widths_of(model),
        ignored=tuple(sorted(ignored)),
    )


def _evaluation_pass(tracer: LabelTracer, example_inputs: Any) -> LabelTracer:
    """Run the model as at inference; it must run."""
    try:
        tracer.trace(example_inputs)
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
        raise ValueError(f"example_inputs: the model does not run on them ({problem})") from error
    return tracer


def _training_pass(tracer: LabelTracer, example_inputs: Any) -> LabelTracer:
    """Run the model as in training. Many refuse, without targets say: then what they were about to read stays."""
    try:
        tracer.trace(example_inputs)
    except Exception:
        tracer.steps = []
        for labels in tracer.reading:
            tracer.space.pin(labels, f"training mode fails here, in {tracer.reading_in or 'the forward pass'}")
    return tracer
