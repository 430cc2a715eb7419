"""Small nasty modules for the tests of channel analysis and surgery: the registry and its building blocks.

An entry is a function that builds ``(module, example inputs)``. Its parameters and BatchNorm statistics are randomised
afterwards, because zeros and ones hide wrong alignments. Most entries are *sandwiches*,

    x -> s (conv, 6) -> relu -> a (conv, 8) -> the operation under test -> z (conv, 5) -> output

so that an operation which is not understood may cost the channels of ``a``, but never those of ``s``.
"""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Example = Tensor | tuple[Any, ...]
Op = Callable[..., Tensor]


@dataclass(frozen=True)
class Entry:
    """One module of the zoo.

    Attributes
    ----------
    name : str
        Unique, used as the test's id.
    make : callable
        Builds the module and its example inputs.
    prunable : tuple of str
        Modules that must offer removable output channels; none where pinning everything is acceptable.
    fixed : tuple of str
        Modules whose output channels cannot be removed exactly, whatever the implementation.
    random_training : bool
        Whether the forward pass in training mode draws random numbers that depend on the number of channels.
    """

    name: str
    make: Callable[[], tuple[nn.Module, Example]] = field(repr=False)
    prunable: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    random_training: bool = False

    @property
    def expect(self) -> Literal["prunes", "may"]:
        """Whether at least one group must be found."""
        return "prunes" if self.prunable else "may"

    def build(self) -> tuple[nn.Module, Example]:
        """Return the randomised module, in the mode its maker left it in, and its example inputs."""
        seed = zlib.crc32(self.name.encode())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module, example = self.make()
            randomise(module, seed)
        return module, example


ZOO: dict[str, Entry] = {}
SECTIONS = ("zoo_shapes", "zoo_elementwise", "zoo_layers", "zoo_calls", "zoo_state", "zoo_blocks", "zoo_attention")


def register(
    name: str,
    make: Callable[[], tuple[nn.Module, Example]],
    *,
    prunable: tuple[str, ...] = (),
    fixed: tuple[str, ...] = (),
    random_training: bool = False,
) -> None:
    """Add an entry to the zoo; names are unique."""
    if name in ZOO:
        raise ValueError(f"zoo entry {name!r} exists already")
    ZOO[name] = Entry(name, make, prunable, fixed, random_training)


def entry(
    *, prunable: tuple[str, ...] = (), fixed: tuple[str, ...] = (), random_training: bool = False
) -> Callable[[Callable[[], tuple[nn.Module, Example]]], Callable[[], tuple[nn.Module, Example]]]:
    """Register the decorated maker under its own name."""

    def decorate(make: Callable[[], tuple[nn.Module, Example]]) -> Callable[[], tuple[nn.Module, Example]]:
        register(make.__name__, make, prunable=prunable, fixed=fixed, random_training=random_training)
        return make

    return decorate


class Net(nn.Module):
    """A module whose forward pass is a function of the module and its inputs, so that an entry fits on a few lines."""

    def __init__(self, body: Callable[..., Any], /, **parts: nn.Module | nn.Parameter | Tensor) -> None:
        super().__init__()
        self._body = body
        for name, part in parts.items():
            if isinstance(part, nn.Module | nn.Parameter):
                setattr(self, name, part)
            else:
                self.register_buffer(name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the body."""
        return self._body(self, *args, **kwargs)


def conv(n_in: int, n_out: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    """Return a convolution that keeps the spatial size at stride 1."""
    options.setdefault("padding", kernel // 2)
    return nn.Conv2d(n_in, n_out, kernel, **options)


def same() -> nn.Conv2d:
    """Return a convolution from eight to eight channels, the width inside most sandwiches."""
    return conv(8, 8)


def conv_bn(n_in: int, n_out: int, kernel: int = 3, **options: Any) -> nn.Sequential:
    """Return convolution, BatchNorm and ReLU."""
    return nn.Sequential(conv(n_in, n_out, kernel, bias=False, **options), nn.BatchNorm2d(n_out), nn.ReLU())


def image(channels: int = 3, size: int = 8, batch: int = 2) -> Tensor:
    """Return a random batch of images, [batch, channels, size, size]."""
    return torch.randn(batch, channels, size, size)


def sandwich(
    name: str,
    op: Op,
    *,
    width: int = 8,
    out: int | None = None,
    prunable: tuple[str, ...] = ("s",),
    fixed: tuple[str, ...] = (),
    size: int = 8,
    random_training: bool = False,
    **parts: Callable[[], nn.Module | nn.Parameter | Tensor],
) -> None:
    """Register ``op(module, features)`` between two convolutions; ``out`` is the number of channels it returns."""

    def body(m: Any, x: Tensor) -> Tensor:
        result: Tensor = m.z(op(m, m.a(F.relu(m.s(x)))))
        return result

    def make() -> tuple[nn.Module, Example]:
        made = {key: part() for key, part in parts.items()}
        net = Net(body, s=conv(3, 6), a=conv(6, width), z=conv(out or width, 5), **made)
        return net.eval(), image(size=size)

    register(name, make, prunable=prunable, fixed=fixed, random_training=random_training)


def chain(body: Any = None, **parts: Any) -> Net:
    """Return s -> relu -> a -> relu -> z with a body of one's own and further parts."""
    plain = body or (lambda m, x: m.z(m.a(m.s(x).relu()).relu()))
    return Net(plain, s=conv(3, 6), a=conv(6, 8), z=conv(8, 5), **parts).eval()


@torch.no_grad()
def randomise(module: nn.Module, seed: int = 0) -> None:
    """Fill parameters and normalisation statistics with random values that keep activations near unit size."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: Tensor, scale: float) -> Tensor:
        return torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor) * scale

    def uniform(tensor: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(tensor.shape, generator=generator, dtype=torch.float64).to(tensor) * (high - low) + low

    positive = {id(p) for m in module.modules() if isinstance(m, nn.PReLU) for p in m.parameters()}
    scales = {
        id(m.weight) for m in module.modules() if isinstance(getattr(m, "weight", None), nn.Parameter) and _is_norm(m)
    }
    for name, parameter in module.named_parameters():
        if id(parameter) in positive:
            parameter.copy_(uniform(parameter, 0.1, 0.9))
        elif id(parameter) in scales or name.endswith(("weight_g", "original0")):
            parameter.copy_(uniform(parameter, 0.5, 1.5))
        elif parameter.dim() > 1:
            parameter.copy_(normal(parameter, max(1, parameter[0].numel()) ** -0.5 * 1.4))
        else:
            parameter.copy_(normal(parameter, 0.5))
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(normal(buffer, 0.5))
        elif name.endswith("running_var"):
            buffer.copy_(uniform(buffer, 0.5, 2.0))


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._NormBase | nn.LayerNorm | nn.GroupNorm | nn.LocalResponseNorm)


def load() -> dict[str, Entry]:
    """Return the whole zoo."""
    for section in SECTIONS:
        importlib.import_module(section)
    return ZOO
