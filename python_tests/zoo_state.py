"""Zoo: hooks, foreign code, and states of the module that analysis and surgery must carry or leave alone."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from zoo import Example, Net, chain, conv, conv_bn, entry, image, same, sandwich

BOTH = ("s", "a")


# -- hooks and foreign code ------------------------------------------------------------------------------------------


@entry()
def hook_changes_output() -> tuple[nn.Module, Example]:
    """A forward hook turns the channels around."""
    net = chain()
    net.a.register_forward_hook(lambda module, args, output: output.flip(1))
    return net, image()


@entry(fixed=("a",))
def hook_adds_one() -> tuple[nn.Module, Example]:
    """A forward hook adds a constant: removed channels would not be zero."""
    net = chain()
    net.a.register_forward_hook(lambda module, args, output: output + 1)
    return net, image()


@entry()
def pre_hook_changes_input() -> tuple[nn.Module, Example]:
    """A forward pre-hook turns the consumer's input around."""
    net = chain()
    net.z.register_forward_pre_hook(lambda module, args: (args[0].flip(1),))
    return net, image()


@entry()
def hook_on_root() -> tuple[nn.Module, Example]:
    """A forward hook on the module itself scales the output."""
    net = chain()
    net.register_forward_hook(lambda module, args, output: output * 2)
    return net, image()


class Doubler(torch.autograd.Function):
    """Twice the input, with a gradient of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return 2 x."""
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Return 2 grad."""
        return grad * 2


class Reverser(torch.autograd.Function):
    """The channels in reverse, hidden from whoever looks at operators only by name."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return x with its channels reversed."""
        return x.flip(1) + 1

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Return the gradient in the original order."""
        return grad.flip(1)


class Scripted(nn.Module):
    """Something to compile with TorchScript."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Reverse the channels and convolve."""
        return self.inner(x.flip(1))


def _scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module: nn.Module = torch.jit.script(Scripted())
    return module


sandwich("autograd_function", lambda m, x: Doubler.apply(x), prunable=())
sandwich("autograd_function_reversing", lambda m, x: Reverser.apply(x), prunable=())
sandwich("script_module", lambda m, x: m.b(x), prunable=(), b=_scripted)
sandwich("numpy_round_trip", lambda m, x: torch.from_numpy(x.detach().numpy()[:, ::-1].copy()), prunable=())
sandwich("tolist_round_trip", lambda m, x: torch.tensor(x.tolist(), dtype=x.dtype).flip(1), prunable=(), size=4)
sandwich(
    "checkpointed", lambda m, x: torch.utils.checkpoint.checkpoint(m.b, x, use_reentrant=False), prunable=(), b=same
)
sandwich("no_grad_block", lambda m, x: _under_no_grad(m, x), b=same)
sandwich("autocast_off", lambda m, x: _under_autocast_off(m, x), b=same)
sandwich("vmap", lambda m, x: torch.vmap(lambda y: y.flip(0))(x), prunable=())
sandwich("asserts_width", lambda m, x: _assert_width(x), prunable=())
sandwich("prints_shape", lambda m, x: x * float(len(str(tuple(x.shape)))), prunable=("s",))


def _under_no_grad(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = m.b(x)
    return out


def _under_autocast_off(m: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        out: Tensor = m.b(x)
    return out


def _assert_width(x: Tensor) -> Tensor:
    torch._assert(x.shape[1] == 8, "eight channels, please")
    return x.relu()


# -- state -----------------------------------------------------------------------------------------------------------


@entry(prunable=BOTH)
def frozen_parameters() -> tuple[nn.Module, Example]:
    """Some parameters do not require gradients."""
    net = chain()
    net.s.requires_grad_(False)
    net.z.bias.requires_grad_(False)
    return net, image()


@entry(prunable=BOTH)
def double_precision() -> tuple[nn.Module, Example]:
    """A float64 model with a float64 example."""
    return chain().double(), image().double()


@entry(prunable=BOTH)
def half_precision() -> tuple[nn.Module, Example]:
    """A bfloat16 model."""
    return chain().bfloat16(), image().bfloat16()


@entry(prunable=BOTH)
def channels_last_memory() -> tuple[nn.Module, Example]:
    """Weights and example in channels_last memory format."""
    net = chain().to(memory_format=torch.channels_last)
    return net, image().to(memory_format=torch.channels_last)


@entry(prunable=("body.0.0",))
def training_mode() -> tuple[nn.Module, Example]:
    """A model in training mode whose BatchNorm statistics must not move during analysis."""
    net = Net(
        lambda m, x: m.z(m.drop(m.body(x))),
        body=nn.Sequential(conv_bn(3, 6), conv_bn(6, 8)),
        drop=nn.Dropout(),
        z=conv(8, 5),
    )
    return net.train(), image()


@entry(prunable=("body.0.0",))
def mixed_modes() -> tuple[nn.Module, Example]:
    """Half of the model is frozen in evaluation mode, the rest trains."""
    net = Net(lambda m, x: m.z(m.body(x)), body=nn.Sequential(conv_bn(3, 6), conv_bn(6, 8)), z=conv(8, 5)).train()
    net.body[0].eval()
    return net, image()


@entry(prunable=("s",))
def moving_average_buffer() -> tuple[nn.Module, Example]:
    """The forward pass in training mode updates a per-channel buffer, which the output uses."""

    def body(m: Any, x: Tensor) -> Tensor:
        y = m.a(m.s(x).relu())
        if m.training:
            m.average.mul_(0.9).add_(y.detach().mean((0, 2, 3)), alpha=0.1)
        out: Tensor = m.z(y - m.average[:, None, None])
        return out

    return chain(body, average=torch.zeros(8) + 0.3), image()


@entry(prunable=BOTH)
def call_counter() -> tuple[nn.Module, Example]:
    """The forward pass counts its calls in an integer buffer."""

    def body(m: Any, x: Tensor) -> Tensor:
        m.calls += 1
        out: Tensor = m.z(m.a(m.s(x).relu()).relu())
        return out

    return chain(body, calls=torch.zeros((), dtype=torch.long)), image()


@entry(prunable=("s",))
def feature_cache() -> tuple[nn.Module, Example]:
    """The forward pass leaves its features behind as an attribute."""

    def body(m: Any, x: Tensor) -> Tensor:
        m.last = m.a(m.s(x).relu()).relu()
        out: Tensor = m.z(m.last)
        return out

    return chain(body), image()


@entry(prunable=BOTH)
def dead_filters() -> tuple[nn.Module, Example]:
    """Batch size one and a single position."""
    return chain(), image(size=1, batch=1)
