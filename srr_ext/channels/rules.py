"""What each operation does to channel labels.

A rule receives one intercepted call and returns the labels of its tensor results (None: nothing removable in it).
Shape operations simply run on the label tensors; element-wise operations unite the labels that meet; whatever is not
understood pins what it touches. Literal sizes need no rule: `probe.py` finds them by running the model again with
channels missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from srr_ext.channels.labels import KEPT, Labels, class_axis, squeeze_constant
from srr_ext.channels.layer_rules import BATCH_NORMS, CONVOLUTIONS, batch_norm, convolution, linear, prelu

if TYPE_CHECKING:
    from srr_ext.channels.calls import Call
    from srr_ext.channels.trace import LabelTracer

Rule = Callable[["LabelTracer", "Call"], "Labels | list[Labels | None] | None"]


# Names are those of the intercepted function, without overload, leading "i"/"r" of Python's operators and trailing "_".

METADATA = frozenset(
    """size dim ndimension numel nelement stride storage_offset is_contiguous is_floating_point is_complex
    element_size get_device has_names type is_same_size __len__ __repr__ __format__ __hash__ untyped_storage
    data_ptr is_inference result_type can_cast is_storage requires_grad retain_grad register_hook is_tensor
    get_num_threads broadcast_shapes""".split()
)
SHAPE = frozenset(
    """view reshape flatten unflatten permute transpose t swapaxes swapdims movedim moveaxis squeeze unsqueeze
    expand repeat tile cat concat concatenate stack hstack vstack dstack unbind narrow select flip fliplr flipud
    roll rot90 index_select take_along_dim gather repeat_interleave diagonal tensor_split hsplit vsplit dsplit
    pixel_shuffle pixel_unshuffle expand_as view_as reshape_as
    broadcast_to broadcast_tensors atleast_1d atleast_2d atleast_3d ravel getitem tril triu T mT""".split()
)
# Every tensor but the first is an index.
INDEXED = frozenset("gather take_along_dim index_select getitem repeat_interleave".split())
ELEMENTWISE = frozenset(
    """relu relu6 hardtanh gelu silu hardswish leaky_relu elu selu celu mish softsign tanhshrink hardshrink
    softshrink threshold rrelu sigmoid hardsigmoid logsigmoid softplus tanh exp expm1 log log1p sqrt rsqrt
    square abs absolute neg negative positive sign sgn sin cos tan asin acos atan sinh cosh erf erfc erfinv
    reciprocal round floor ceil trunc frac clamp clip clamp_min clamp_max nan_to_num logical_not isnan isfinite
    isinf dropout dropout1d dropout2d dropout3d feature_dropout add sub subtract mul multiply div divide
    true_divide truediv floor_divide floordiv remainder mod fmod pow float_power maximum minimum fmax fmin atan2
    hypot copysign lerp addcmul addcdiv where masked_fill eq ne lt le gt ge not_equal equal_ logical_and
    logical_or logical_xor bitwise_and bitwise_or contiguous clone detach data to float double half bfloat16
    type_as cpu cuda int long bool identity alias zeros_like ones_like full_like empty_like rand_like randn_like
    real""".split()
)
ADDITIONS = frozenset("add sub subtract lerp addcmul addcdiv maximum minimum fmax fmin where".split())
UNPREDICTABLE = frozenset("empty_like rand_like randn_like".split())  # not zero even if zero goes in
REDUCTIONS = frozenset(
    """mean sum amax amin max min std var norm prod median nansum nanmean any all count_nonzero logsumexp argmax
    argmin""".split()
)
NOT_ZERO_OF_ZEROS = frozenset("logsumexp argmax argmin".split())
ALONG_DIM = frozenset("softmax log_softmax softmin cumsum cumprod logcumsumexp normalize".split())
CREATION = frozenset("new_zeros new_ones new_full new_empty new_tensor".split())  # only a type is read
SPATIAL = frozenset(
    [f"{kind}_pool{n}d" for kind in ("max", "avg", "lp", "adaptive_max", "adaptive_avg") for n in (1, 2, 3)]
    + [f"{kind}_pool{n}d_with_indices" for kind in ("max", "adaptive_max") for n in (1, 2, 3)]
    + ["interpolate", "upsample", "upsample_nearest", "upsample_bilinear", "fractional_max_pool2d", "grid_sample"]
)
VALUED = ELEMENTWISE | REDUCTIONS | ALONG_DIM | SPATIAL


def shape_operation(tracer: LabelTracer, call: Call) -> list[Labels | None]:
    """Run the operation on label tensors."""
    lost = call.lost_zero()
    if call.name in INDEXED and (len(call.labelled) > 1 or tracer.labels(call.get(0, "input")) is None):
        opaque(tracer, call, f"{call.name} at positions computed by the network")
        return [None] * len(call.tensors(call.result))

    def as_labels(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        labels = tracer.labels(value)
        if labels is not None:
            return labels.full.contiguous() if call.name in ("view", "view_as") else labels.full
        return value.cpu() if call.name in INDEXED else torch.full(value.shape, KEPT, dtype=torch.int64, device="cpu")

    args, kwargs = tree_map(as_labels, (call.args, call.kwargs))
    outcome = tree_leaves(call.function(*args, **kwargs))
    return [Labels(squeeze_constant(full), full.shape, lost) for full in outcome]


def piecewise(tracer: LabelTracer, call: Call) -> list[Labels | None]:
    """chunk, split: equal pieces lose the same positions, so positions are united across pieces."""
    (labels,) = call.labelled
    dim = call.get(2, "dim", 0) % labels.base.ndim
    results = shape_operation(tracer, call)
    if labels.base.shape[dim] == 1:
        return results
    first = results[0]
    for piece in results:
        assert first is not None and piece is not None  # shape_operation labels every piece of a labelled tensor
        if piece.shape == first.shape:
            tracer.space.unite(first.base, piece.base, f"{call.name} beside channels that never change")
        else:
            tracer.space.pin(labels.base, f"{call.name} makes pieces of unequal size")
    return results


def getitem(tracer: LabelTracer, call: Call) -> list[Labels | None]:
    """Slicing; halves, thirds and quarters of the channels are treated as `chunk` treats them."""
    (labels,) = call.labelled[:1]
    results = shape_operation(tracer, call)
    piece = results[0]
    index = call.args[1]
    axis = class_axis(tracer.space, labels.base)
    slices = [i for i in (index if isinstance(index, tuple) else (index,)) if i is not None]
    if piece is None or axis is None or not all(isinstance(i, (int, slice)) or i is Ellipsis for i in slices):
        return results
    if any(i is Ellipsis for i in slices):
        at = next(n for n, i in enumerate(slices) if i is Ellipsis)
        slices[at : at + 1] = [slice(None)] * (labels.base.ndim - len(slices) + 1)
    if axis < len(slices) and isinstance(slices[axis], slice):
        size = labels.shape[axis]
        start, stop, step = slices[axis].indices(size)
        length = stop - start
        if step == 1 and 0 < length < size and size % length == 0 and size // length <= 4 and start % length == 0:
            pieces = labels.flat(axis).view(-1, length)
            tracer.space.unite(pieces, pieces[:1], "sliced beside channels that never change")
    return results


def glu(tracer: LabelTracer, call: Call) -> Labels:
    """First half times sigmoid of the second: the halves are united."""
    (labels,) = call.labelled
    dim = call.get(1, "dim", -1) % labels.base.ndim
    if labels.base.shape[dim] == 1:
        return Labels(labels.base, call.result.shape, labels.lost_zero)
    first, second = labels.base.chunk(2, dim)
    tracer.space.unite(first, second, "gated by channels that never change")
    return Labels(first.contiguous(), call.result.shape, labels.lost_zero)


def channel_shuffle(tracer: LabelTracer, call: Call) -> list[Labels | None]:
    """Interleave groups of channels, which lose the same positions."""
    (labels,) = call.labelled
    grouped = labels.flat(1).view(call.get(1, "groups"), -1)
    tracer.space.unite(grouped, grouped[:1], "shuffled with channels that never change")
    return shape_operation(tracer, call)


def zero_goes_to(call: Call, kept: Sequence[Labels] = ()) -> str:
    """Name of the operation if it does not map a removed channel's zeros to zero, else "".

    The function is evaluated on zeros; on two arbitrary values for fixed tensors, whose values may differ for other
    inputs, for operands that stay, which ``kept`` lists, and where a channel is not zero any more.
    """
    if call.name in UNPREDICTABLE:
        return call.name
    for stand_in in (1.7, -1.3):

        def entry(value: Any, stand_in: float = stand_in) -> Any:
            if not isinstance(value, Tensor):
                return value
            labels = call.tracer.labels(value)
            arbitrary = labels is None or labels.lost_zero or any(labels is other for other in kept)
            number = (stand_in > 0 if value.dtype is torch.bool else stand_in) if arbitrary else 0.0
            return torch.full((1,) * value.ndim, number, device=value.device).to(value.dtype)

        args, kwargs = tree_map(entry, (call.args, call.kwargs))
        kwargs = {key: value for key, value in kwargs.items() if key not in ("inplace", "out")}
        outcome = call.out_of_place(*args, **kwargs)
        if not bool((outcome == 0).all()):
            return next((labels.lost_zero for labels in call.labelled if labels.lost_zero), call.name)
    return ""


def elementwise(tracer: LabelTracer, call: Call) -> Labels | None:
    """Unite the labels that meet; pin what meets fixed tensors or is broadcast over other channels."""
    if not isinstance(call.result, Tensor) or not call.labelled:
        opaque(tracer, call, f"values read by {call.name}")
        return None
    space, shape = tracer.space, call.result.shape
    like = call.name.endswith("_like") or call.name in ("to", "type_as")  # other tensors only give shape or type
    operands = call.labelled[:1] if like else call.labelled
    aligned = [labels.base.reshape((1,) * (len(shape) - labels.base.ndim) + labels.base.shape) for labels in operands]
    axes = [class_axis(space, base) for base in aligned]

    def is_broadcast(position: int) -> bool:
        offset = len(shape) - operands[position].base.ndim
        return any(
            axis is not None and shape[axis] > 1 and (axis < offset or operands[position].shape[axis - offset] == 1)
            for other, axis in enumerate(axes)
            if other != position
        )

    main = [position for position in range(len(aligned)) if not is_broadcast(position)]
    for position, base in enumerate(aligned):
        if position not in main:
            space.pin(base, f"{call.name} broadcasts it over other channels")
    if not main:
        return Labels(aligned[0].new_full((1,) * len(shape), KEPT), shape)
    for position in main[1:]:
        reason = f"{call.name} with channels that never change (input, padding or a fixed tensor)"
        space.unite(aligned[main[0]], aligned[position], reason, added=call.name in ADDITIONS)
    base = torch.broadcast_tensors(*(aligned[position] for position in main))[0].contiguous()
    axis = class_axis(space, base)
    for fixed in [] if like else call.fixed:
        dim = None if axis is None else axis - (len(shape) - fixed.ndim)
        if dim is not None and dim >= 0 and fixed.shape[dim] > 1:
            space.pin(base, f"{call.name} with {tracer.describe(fixed)}")
    broadcast = [labels for position, labels in enumerate(operands) if position not in main]
    return Labels(base, shape, zero_goes_to(call, broadcast))


def reduction(tracer: LabelTracer, call: Call) -> Labels | list[Labels | None] | None:
    """Reduce over positions; reducing over channels pins them."""
    (labels,) = call.labelled[:1]
    if len(call.labelled) > 1:
        return elementwise(tracer, call)  # torch.max(a, b)
    at = 2 if call.name == "norm" else 1
    dims = call.get(at, "dim", call.kwargs.get("axis"))
    ndim = labels.base.ndim
    dims = range(ndim) if dims is None or dims == () else [dims] if isinstance(dims, int) else dims
    reduced = [dim % ndim for dim in dims]
    if class_axis(tracer.space, labels.base) in reduced:
        opaque(tracer, call, f"{call.name} over channels")
        return None
    base = labels.base
    for dim in sorted(reduced, reverse=True):
        base = base.narrow(dim, 0, 1)
        if call.tensors(call.result)[0].ndim < ndim:
            base = base.squeeze(dim)
    lost = call.name if call.name in NOT_ZERO_OF_ZEROS else ""
    results: list[Labels | None] = [
        Labels(base, value.shape).with_loss(labels.lost_zero or lost or (f"indices of {call.name}" if n else ""))
        for n, value in enumerate(call.tensors(call.result))
    ]
    return results


def along_dim(tracer: LabelTracer, call: Call) -> Labels | None:
    """softmax, cumsum and the like along a dimension other than the channels'."""
    (labels,) = call.labelled
    default = {"normalize": 1}.get(call.name)
    dim = call.get(2 if call.name == "normalize" else 1, "dim", default)
    if dim is None or class_axis(tracer.space, labels.base) == dim % labels.base.ndim:
        opaque(tracer, call, f"{call.name} over channels")
        return None
    lost = call.name if "soft" in call.name or call.name == "logcumsumexp" else ""
    return Labels(labels.base, call.result.shape, labels.lost_zero).with_loss(lost)


def spatial(tracer: LabelTracer, call: Call) -> list[Labels | None] | None:
    """Pooling and resizing: every channel by itself, over the last dimensions."""
    (labels,) = call.labelled[:1]
    if len(call.labelled) > 1:
        opaque(tracer, call, f"{call.name} with positions computed by the network")
        return None
    digits = [int(c) for c in call.name if c.isdigit()]
    ndim = labels.base.ndim
    first_spatial = ndim - digits[0] if digits else 2
    axis = class_axis(tracer.space, labels.base)
    if axis is not None and axis >= first_spatial:
        opaque(tracer, call, f"{call.name} over channels")
        return None
    base = labels.base
    for dim in range(first_spatial, ndim):
        base = base.narrow(dim, 0, 1)
    return [
        Labels(base, value.shape).with_loss(labels.lost_zero or (f"indices of {call.name}" if n else ""))
        for n, value in enumerate(call.tensors(call.result))
    ]


def pad(tracer: LabelTracer, call: Call) -> Labels | None:
    """Pad positions freely; padded channels are fixed ones."""
    (labels,) = call.labelled
    mode, value = call.get(2, "mode", "constant"), call.get(3, "value", None) or 0
    amounts = list(call.args[1] if len(call.args) > 1 else call.kwargs["pad"])
    axis = class_axis(tracer.space, labels.base)
    base, ndim = labels.base, labels.base.ndim
    for step in range(len(amounts) // 2):
        dim, before, after = ndim - 1 - step, *amounts[2 * step : 2 * step + 2]
        if (before, after) == (0, 0):
            continue
        if dim != axis:
            base = base.narrow(dim, 0, 1)
        elif mode != "constant":
            opaque(tracer, call, f"{mode} padding of channels")
            return None
        else:
            base = F.pad(base, [0, 0] * step + [before, after], value=KEPT)
    lost = f"padding with {value}" if mode == "constant" and value != 0 else ""
    return Labels(squeeze_constant(base), call.result.shape, labels.lost_zero).with_loss(lost)


def im2col(tracer: LabelTracer, call: Call) -> Labels | None:
    """F.unfold: [N, C, H, W] -> [N, C * window, positions]."""
    (labels,) = call.labelled
    if labels.base.ndim != 4 or class_axis(tracer.space, labels.base) not in (1, None):
        opaque(tracer, call, "unfold over channels")
        return None
    window = call.result.shape[1] // labels.shape[1]
    flat = labels.flat(1).repeat_interleave(window).view(1, -1, 1)
    return Labels(squeeze_constant(flat), call.result.shape, labels.lost_zero)


def layer_norm(tracer: LabelTracer, call: Call) -> Labels | None:
    """Normalise positions; normalising over channels pins them."""
    (labels,) = call.labelled[:1]
    shape = call.args[1] if len(call.args) > 1 else call.kwargs["normalized_shape"]
    count = 1 if isinstance(shape, int) else len(shape)
    axis = class_axis(tracer.space, labels.base)
    if axis is None or axis >= labels.base.ndim - count:
        opaque(tracer, call, f"{call.name} normalises over channels")
        return None
    return Labels(labels.base, call.result.shape, labels.lost_zero).with_loss(call.name)


def creation(tracer: LabelTracer, call: Call) -> None:
    """Make a fixed tensor; only type and device come from the operand."""


def overwrite(tracer: LabelTracer, call: Call) -> None:
    """Keep source and destination of a write into part of a tensor."""
    opaque(tracer, call, f"{call.name} writes into part of a tensor")


def opaque(tracer: LabelTracer, call: Call, reason: str) -> None:
    """Pin everything the call reads; its results count as fixed."""
    for labels in call.labelled:
        tracer.space.pin(labels.base, reason)


def not_understood(tracer: LabelTracer, call: Call) -> None:
    """Handle a call nobody wrote a rule for."""
    opaque(tracer, call, f"operation {call.name} is not understood")


def _table() -> dict[str, Rule]:
    families: Sequence[tuple[frozenset[str], Rule]] = (
        (SHAPE, shape_operation),
        (ELEMENTWISE, elementwise),
        (REDUCTIONS, reduction),
        (ALONG_DIM, along_dim),
        (SPATIAL, spatial),
        (CREATION, creation),
        (CONVOLUTIONS, convolution),
        (BATCH_NORMS, batch_norm),
    )
    single: dict[str, Rule] = {
        "chunk": piecewise,
        "split": piecewise,
        "split_with_sizes": piecewise,
        "getitem": getitem,
        "glu": glu,
        "channel_shuffle": channel_shuffle,
        "native_channel_shuffle": channel_shuffle,
        "pad": pad,
        "layer_norm": layer_norm,
        "rms_norm": layer_norm,
        "linear": linear,
        "prelu": prelu,
        "setitem": overwrite,
        "copy": overwrite,
        "fill": overwrite,
        "index_put": overwrite,
        "index_copy": overwrite,
        "index_fill": overwrite,
        "masked_scatter": overwrite,
        "scatter": overwrite,
    }
    return {name: rule for names, rule in families for name in names} | single


_RULES = _table()


def rule_for(call: Call) -> Rule:
    """Return the rule of an intercepted call."""
    if call.function is F.unfold:
        return im2col
    if call.function is Tensor.unfold:
        return shape_operation
    return _RULES.get(call.name, not_understood)


def uses_values(call: Call) -> bool:
    """Whether no removal may change the numbers that a call combines its operands with."""
    return call.name in VALUED or rule_for(call) is not_understood
