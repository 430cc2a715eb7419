"""Label rules of the modules that surgery can cut: convolution, linear, normalisation, PReLU.

They note which labels lie along each side of the module's weight (``LabelTracer.note_axis``); everything else about a
group follows from these notes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor, nn

from srr_ext.channels.labels import Labels, class_axis

if TYPE_CHECKING:
    from srr_ext.channels.calls import Call
    from srr_ext.channels.trace import LabelTracer

CONVOLUTIONS = frozenset(f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3))
BATCH_NORMS = frozenset(("batch_norm", "instance_norm"))


def prunes_whole_groups(groups: int, in_per_group: int) -> bool:
    """Whether a grouped convolution shrinks by whole groups (finer steps if groups are many and narrow)."""
    return groups >= in_per_group


def convolution(tracer: LabelTracer, call: Call) -> Labels | None:
    """Make labels on the channel dimension; grouped convolutions tie their input's labels first."""
    x, weight = call.get(0, "input"), call.get(1, "weight")
    transposed = "transpose" in call.name
    space = tracer.space
    groups = call.get(6, "groups", 1)
    n_in = weight.shape[0] if transposed else weight.shape[1] * groups
    n_out = weight.shape[1] * groups if transposed else weight.shape[0]
    channel_dim = call.result.ndim - weight.ndim + 1  # 0 for an unbatched input
    module = tracer.layer_of(call, nn.modules.conv._ConvNd)
    labels = tracer.labels(x)
    if labels is not None and class_axis(space, labels.base) not in (channel_dim, None):
        space.pin(labels.base, f"{call.name} slides over its channels")
        labels = None
    if module is None:
        for operand in call.labelled:
            space.pin(operand.base, f"{call.name} with a weight that is computed or shared between modules")
        return None
    kernel = math.prod(weight.shape[2:])
    positions = x.numel() // n_in if transposed else call.result.numel() // n_out
    earlier = tracer.notes.axes.get((module, "out"))  # of another pass, perhaps before channels were cut
    whole = earlier.role == "follower" if earlier else groups > 1 and prunes_whole_groups(groups, n_in // groups)
    tracer.note_layer(module, "conv_transpose" if transposed else "conv", n_in, n_out, positions, groups, whole, kernel)
    inputs = tracer.note_input(module, labels, channel_dim, n_in)
    if groups > 1:
        if inputs is None:
            fixed = tracer.produce(module, n_out)
            space.pin(fixed, "grouped convolution of channels that never change")
            return output_labels(fixed, call.result, channel_dim)
        grouped = inputs.view(groups, -1)
        shared = grouped[:, :1] if whole else grouped[:1]
        space.unite(grouped, shared, "grouped with channels that never change")
        if whole:
            follow = grouped[:, 0].repeat_interleave(n_out // groups)
            tracer.note_axis(module, "out", "follower", follow)
            return output_labels(follow, call.result, channel_dim)
    made = tracer.produce(module, n_out)
    if groups > 1:
        space.unite(made.view(groups, -1), made.view(groups, -1)[:1], "grouped with channels that never change")
    return output_labels(made, call.result, channel_dim)


def output_labels(made: Tensor, result: Tensor, dim: int) -> Labels:
    """Labels of a layer's output that vary along one dimension only."""
    shape = [1] * result.ndim
    shape[dim] = -1
    return Labels(made.view(shape), result.shape)


def linear(tracer: LabelTracer, call: Call) -> Labels | None:
    """Make labels on the last dimension."""
    x, weight = call.get(0, "input"), call.get(1, "weight")
    module = tracer.layer_of(call, nn.Linear)
    labels = tracer.labels(x)
    if labels is not None and class_axis(tracer.space, labels.base) not in (labels.base.ndim - 1, None):
        tracer.space.pin(labels.base, "linear mixes another dimension than the channels'")
        labels = None
    if module is None:
        for operand in call.labelled:
            tracer.space.pin(operand.base, "linear with a weight that is computed or shared between modules")
        return None
    n_out, n_in = weight.shape
    tracer.note_layer(module, "linear", n_in, n_out, call.result.numel() // n_out)
    tracer.note_input(module, labels, -1, n_in)
    return output_labels(tracer.produce(module, n_out), call.result, -1)


def batch_norm(tracer: LabelTracer, call: Call) -> Labels | None:
    """Each channel by itself: the module's own tensors follow the labels."""
    return per_channel(tracer, call, (nn.modules.batchnorm._NormBase,), "norm")


def prelu(tracer: LabelTracer, call: Call) -> Labels | None:
    """One slope for all channels, or one per channel that follows the labels."""
    if call.get(1, "weight").numel() == 1:
        return Labels(call.labelled[0].base, call.result.shape, call.labelled[0].lost_zero)
    return per_channel(tracer, call, (nn.PReLU,), "prelu")


def per_channel(tracer: LabelTracer, call: Call, kinds: tuple[type[nn.Module], ...], kind: str) -> Labels | None:
    """Follow dimension 1 with the tensors of the module that is running."""
    if not call.labelled:
        return None
    labels = call.labelled[0]
    channel_dim = 1 if labels.base.ndim > 1 else 0
    module = tracer.running_module(kinds)
    axis = class_axis(tracer.space, labels.base)
    if module is None or axis not in (channel_dim, None) or len(call.labelled) > 1:
        tracer.space.pin(labels.base, f"{call.name} with tensors that belong to no {kind} layer, or over channels")
        return None
    channels = labels.shape[channel_dim]
    per_output = [p for p in tracer.modules[module].parameters(recurse=False) if p.ndim == 1 and len(p) == channels]
    tracer.note_layer(module, kind, channels, channels, tensors=len(per_output))
    tracer.note_axis(module, "out", "follower", labels.flat(channel_dim))
    result = Labels(labels.base, call.result.shape)
    if kind == "prelu":
        return result.with_loss(labels.lost_zero)
    # Zeroed scale and shift give zero whatever came in; without them the running mean is subtracted from zero.
    if len(per_output) == 2:
        return result
    standing = getattr(tracer.modules[module], "running_mean", None) is not None
    return result.with_loss(f"{call.name} without scale and shift" if standing else labels.lost_zero)
