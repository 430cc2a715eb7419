"""Zoo: inputs and outputs of every form, branches, control flow and containers."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import Example, Net, chain, conv, conv_bn, entry, image

BOTH = ("s", "a")


# -- inputs and outputs ----------------------------------------------------------------------------------------------


@entry(prunable=("s", "b"))
def several_inputs() -> tuple[nn.Module, Example]:
    """Two images through two stems into one trunk."""
    net = Net(
        lambda m, x, y: m.z(torch.cat([m.s(x).relu(), m.b(y).relu()], 1)), s=conv(3, 6), b=conv(2, 7), z=conv(13, 5)
    )
    return net.eval(), (image(), image(2))


@entry(prunable=BOTH)
def dict_input() -> tuple[nn.Module, Example]:
    """One positional argument that is a dictionary."""
    return chain(lambda m, batch: m.z(m.a(m.s(batch["image"]).relu() * batch["gain"]).relu())), (
        {"image": image(), "gain": torch.tensor(0.5)},
    )


@entry(prunable=("s",))
def optional_inputs() -> tuple[nn.Module, Example]:
    """Arguments with defaults that are not given."""

    def body(m: Any, x: Tensor, mask: Tensor | None = None, scale: float = 2.0) -> Tensor:
        y = m.s(x).relu()
        if mask is not None:
            y = y * mask
        out: Tensor = m.z(m.a(y * scale))
        return out

    return chain(body), image()


@entry(prunable=BOTH)
def python_scalar_input() -> tuple[nn.Module, Example]:
    """A number and None among the positional arguments."""
    return chain(lambda m, x, k, nothing: m.z(m.a(m.s(x).relu() * k).relu())), (image(), 3, None)


@entry(prunable=("s",), fixed=("a",))
def several_outputs() -> tuple[nn.Module, Example]:
    """A feature is used inside and handed out as well."""
    return chain(lambda m, x: (m.z(y := m.a(m.s(x).relu())), y)), image()


@entry(prunable=("s",), fixed=("a",))
def dict_output() -> tuple[nn.Module, Example]:
    """Outputs in a dictionary with a list inside."""
    return chain(
        lambda m, x: {"low": [y := m.a(m.s(x).relu())], "high": m.z(y.relu()), "none": None, "size": 3}
    ), image()


class Result(NamedTuple):
    """What a detector might return."""

    logits: Tensor
    features: Tensor


@entry(prunable=("s",), fixed=("a",))
def named_tuple_output() -> tuple[nn.Module, Example]:
    """Outputs in a NamedTuple."""
    return chain(lambda m, x: Result(m.z(y := m.a(m.s(x).relu())), y.mean((2, 3)))), image()


@entry(prunable=("s",))
def output_is_a_statistic() -> tuple[nn.Module, Example]:
    """A feature's per-channel mean leaves the module beside the logits."""
    return chain(lambda m, x: (m.z(y := m.a(m.s(x).relu()).relu()), y.mean(), y.shape[2])), image()


@entry(prunable=("s",), fixed=("a",))
def output_is_the_width() -> tuple[nn.Module, Example]:
    """The number of channels itself leaves the module."""
    return chain(lambda m, x: (m.z(y := m.a(m.s(x).relu())), y.shape[1])), image()


@entry(prunable=("s",), fixed=("a",))
def classifier_convolution() -> tuple[nn.Module, Example]:
    """The last convolution is the output: nothing of it may go."""
    return Net(lambda m, x: m.a(m.s(x).relu()), s=conv(3, 6), a=conv(6, 8)).eval(), image()


@entry(prunable=("s",), fixed=("a",))
def classifier_with_pooling() -> tuple[nn.Module, Example]:
    """SqueezeNet's head: convolution, activation, average, flatten, output."""
    return Net(lambda m, x: m.a(m.s(x).relu()).relu().mean((2, 3)), s=conv(3, 6), a=conv(6, 8)).eval(), image()


@entry(prunable=BOTH)
def output_summed() -> tuple[nn.Module, Example]:
    """A feature is summed over batch and space and used only as a scale."""
    return chain(lambda m, x: m.z(m.a(m.s(x).relu()).relu()) * x.mean()), image()


@entry(prunable=("s",))
def keyword_calls() -> tuple[nn.Module, Example]:
    """Submodules are called with keyword arguments only."""
    return chain(lambda m, x: m.z(input=m.a(input=m.s(input=x).relu()).relu())), image()


@entry(prunable=("s",))
def input_added_to_features() -> tuple[nn.Module, Example]:
    """The input itself joins a stream: its channels cannot go, so neither can those it meets."""
    return Net(lambda m, x: m.z(m.a(m.s(x).relu()) + x), s=conv(3, 6), a=conv(6, 3), z=conv(3, 5)).eval(), image()


@entry(prunable=BOTH)
def integer_input() -> tuple[nn.Module, Example]:
    """Indices select rows of an embedding, then convolutions over the sequence."""
    net = Net(
        lambda m, t: m.z(m.a(m.s(m.table(t).transpose(1, 2)).relu()).relu()),
        table=nn.Embedding(9, 4),
        s=nn.Conv1d(4, 6, 3),
        a=nn.Conv1d(6, 8, 3),
        z=nn.Conv1d(8, 5, 1),
    )
    return net.eval(), torch.randint(0, 9, (2, 12))


# -- branches and control flow ---------------------------------------------------------------------------------------


@entry(prunable=("s",))
def training_only_branch() -> tuple[nn.Module, Example]:
    """An auxiliary head exists only in training mode, as GoogLeNet's."""

    def body(m: Any, x: Tensor) -> Any:
        y = m.a(m.s(x).relu()).relu()
        return (m.z(y), m.aux(y.flip(3))) if m.training else m.z(y)

    return chain(body, aux=conv(8, 4)), image()


@entry(prunable=("s",))
def training_only_flip() -> tuple[nn.Module, Example]:
    """In training mode another layer reads the channels in another order."""

    def body(m: Any, x: Tensor) -> Tensor:
        y = m.a(m.s(x).relu()).relu()
        out: Tensor = m.other(y.flip(1)) if m.training else m.z(y)
        return out

    return chain(body, other=conv(8, 5)), image()


@entry(prunable=BOTH)
def never_called() -> tuple[nn.Module, Example]:
    """A convolution that no forward pass reaches."""
    return chain(spare=conv(8, 8)), image()


@entry(prunable=BOTH)
def flag_not_taken() -> tuple[nn.Module, Example]:
    """A branch behind a flag of the module."""
    net = chain(
        lambda m, x: m.z((m.extra(y) if m.flag else y) if (y := m.a(m.s(x).relu())) is not None else y),
        extra=conv(8, 8),
    )
    net.flag = False
    return net, image()


@entry(prunable=("s",))
def none_branch() -> tuple[nn.Module, Example]:
    """A submodule that is None, as torchvision's ``downsample``."""
    net = chain(lambda m, x: m.z(m.a(y) if m.missing is None else m.missing(y)) if (y := m.s(x)) is not None else y)
    net.missing = None
    return net, image()


@entry()
def control_flow_on_shape() -> tuple[nn.Module, Example]:
    """The path depends on the spatial size."""
    return chain(lambda m, x: m.z(m.a(m.s(F.avg_pool2d(x, 2) if x.shape[-1] > 6 else x).relu()).relu())), image()


@entry()
def control_flow_on_data() -> tuple[nn.Module, Example]:
    """The path depends on values, which symbolic tracing cannot follow."""
    return chain(lambda m, x: m.z(m.a(y).relu() if (y := m.s(x).relu()).sum() > -1e9 else y)), image()


@entry()
def loop_on_data() -> tuple[nn.Module, Example]:
    """The number of steps depends on a value of the features."""

    def body(m: Any, x: Tensor) -> Tensor:
        y = m.a(m.s(x).relu())
        for _ in range(int(y.abs().max().item() > 0) + 1):
            y = y * 0.5
        out: Tensor = m.z(y)
        return out

    return chain(body), image()


@entry(prunable=BOTH)
def loop_over_layers() -> tuple[nn.Module, Example]:
    """A Python loop over a ModuleList with enumerate."""

    def body(m: Any, x: Tensor) -> Tensor:
        x = m.a(m.s(x).relu())
        for i, layer in enumerate(m.layers):
            x = layer(x).relu() if i % 2 else layer(x)
        out: Tensor = m.z(x)
        return out

    return chain(body, layers=nn.ModuleList(conv(8, 8) for _ in range(3))), image()


@entry(prunable=("stem.0",))
def nested_containers() -> tuple[nn.Module, Example]:
    """ModuleDict of ModuleLists of Sequentials, called in an order of their own."""
    towers = nn.ModuleDict({k: nn.ModuleList([conv_bn(6, 4), nn.ModuleDict({"deep": conv_bn(4, 4)})]) for k in "ba"})

    def body(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        out: Tensor = m.z(torch.cat([tower[1]["deep"](tower[0](x)) for _, tower in sorted(m.towers.items())], 1))
        return out

    return Net(body, stem=conv_bn(3, 6), towers=towers, z=conv(8, 5)).eval(), image()
