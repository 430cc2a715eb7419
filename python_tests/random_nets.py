"""Random networks for fuzzing channel analysis: a random graph of layers, shape operations and joins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import randomise

SIZE = 8  # height and width of the input; every feature is SIZE or SIZE / 2


class RandomNet(nn.Module):
    """A straight-line program over a list of features, drawn from a seed.

    Each step reads earlier features and appends one. Features that nobody read are pooled into the head.
    """

    def __init__(self, seed: int, steps: int = 9) -> None:
        super().__init__()
        self.rng = np.random.default_rng(seed)
        self.layers = nn.ModuleList()
        self.program: list[tuple[str, Callable[..., Tensor], tuple[int, ...], tuple[int, ...]]] = []
        self.widths: list[int] = [3]
        self.halved: list[bool] = [False]
        self.read: set[int] = set()
        self._stem()
        for _ in range(steps):
            makers = [self._conv, self._conv_bn, self._depthwise, self._grouped, self._activation, self._add, self._cat]
            makers += [
                self._mul,
                self._shuffle,
                self._permute,
                self._chunk,
                self._gate,
                self._down,
                self._residual,
                self._shared,
            ]
            makers[self.rng.integers(len(makers))]()
        self.unread = [i for i in range(1, len(self.widths)) if i not in self.read]
        self.flat = bool(self.rng.integers(2))
        features = sum(self.widths[i] * (4 if self.flat else 1) for i in self.unread)
        self.head = nn.Linear(features, 4)
        del self.rng

    def forward(self, x: Tensor) -> Tensor:
        """Run the program, then pool, flatten, concatenate and classify."""
        values = [x]
        for _, function, sources, layers in self.program:
            values.append(function(*[values[i] for i in sources], *[self.layers[i] for i in layers]))
        size = 2 if self.flat else 1
        pooled = [F.adaptive_avg_pool2d(values[i], size).flatten(1) for i in self.unread]
        out: Tensor = self.head(torch.cat(pooled, 1))
        return out

    def describe(self) -> str:
        """Return the program, one step a line."""
        lines = [
            f"v{i + 1} = {step}(v{list(src)}, layers{list(ly)})" for i, (step, _, src, ly) in enumerate(self.program)
        ]
        return "\n".join([*lines, f"head of {self.unread}, flat={self.flat}"])

    def _emit(
        self,
        name: str,
        function: Callable[..., Tensor],
        sources: tuple[int, ...],
        width: int,
        *layers: nn.Module,
        down: bool = False,
    ) -> int:
        first = len(self.layers)
        self.layers.extend(layers)
        self.program.append((name, function, sources, tuple(range(first, first + len(layers)))))
        self.widths.append(width)
        self.halved.append(self.halved[sources[0]] or down)
        self.read.update(sources)
        return len(self.widths) - 1

    def _pick(self, accept: Callable[[int], bool] = lambda i: True) -> int | None:
        """Draw a feature, later ones more often."""
        candidates = [i for i in range(1, len(self.widths)) if accept(i)]
        if not candidates:
            return None
        weights = np.arange(1, len(candidates) + 1, dtype=float)
        return int(self.rng.choice(candidates, p=weights / weights.sum()))

    def _any(self) -> int:
        picked = self._pick()
        assert picked is not None
        return picked

    def _like(self, i: int) -> int | None:
        """Draw another feature of the same size and width."""
        return self._pick(lambda j: j != i and self.widths[j] == self.widths[i] and self.halved[j] == self.halved[i])

    def _width(self) -> int:
        return int(self.rng.choice([4, 6, 8, 8, 12]))

    def _stem(self) -> None:
        width = self._width()
        self._emit("stem", lambda x, c: F.relu(c(x)), (0,), width, nn.Conv2d(3, width, 3, padding=1))
        self.read.discard(0)

    def _conv(self, i: int | None = None, width: int | None = None) -> int:
        i = self._any() if i is None else i
        width = width or self._width()
        layer = nn.Conv2d(self.widths[i], width, 3, padding=1, bias=bool(self.rng.integers(2)))
        return self._emit("conv", lambda x, c: c(x), (i,), width, layer)

    def _conv_bn(self, i: int | None = None, width: int | None = None) -> int:
        i = self._any() if i is None else i
        width = width or self._width()
        layer = nn.Conv2d(self.widths[i], width, 1, bias=False)
        return self._emit("conv_bn", lambda x, c, n: F.relu(n(c(x))), (i,), width, layer, nn.BatchNorm2d(width))

    def _depthwise(self) -> None:
        i = self._any()
        n, multiplier = self.widths[i], int(self.rng.integers(1, 3))
        if n * multiplier > 32:
            return
        layer = nn.Conv2d(n, n * multiplier, 3, padding=1, groups=n)
        self._emit("depthwise", lambda x, c: c(x), (i,), n * multiplier, layer)

    def _grouped(self) -> None:
        i = self._pick(lambda j: self.widths[j] % 2 == 0)
        if i is not None:
            n, width = self.widths[i], int(self.rng.choice([4, 8, 12]))
            groups = 4 if n % 4 == 0 and self.rng.integers(2) else 2
            self._emit("grouped", lambda x, c: c(x), (i,), width, nn.Conv2d(n, width, 3, padding=1, groups=groups))

    def _activation(self) -> None:
        i = self._any()
        functions = (
            F.relu,
            torch.tanh,
            F.gelu,
            F.silu,
            F.leaky_relu,
            torch.sigmoid,
            torch.abs,
            lambda x: x * 0.7,
            lambda x: x + 0.3,
        )
        function = functions[int(self.rng.integers(len(functions)))]
        self._emit("activation", lambda x: function(x), (i,), self.widths[i])

    def _add(self) -> None:
        i = self._any()
        j = self._like(i)
        if j is not None:
            self._emit("add", lambda x, y: x + y, (i, j), self.widths[i])

    def _residual(self) -> None:
        i = self._any()
        j = self._conv_bn(self._conv(i), self.widths[i])
        self._emit("residual", lambda x, y: x + y, (i, j), self.widths[i])

    def _mul(self) -> None:
        i = self._any()
        j = self._like(i)
        if j is not None:
            self._emit("mul", lambda x, y: x * torch.tanh(y), (i, j), self.widths[i])

    def _cat(self) -> None:
        i = self._any()
        j = self._pick(lambda k: self.halved[k] == self.halved[i] and self.widths[k] + self.widths[i] <= 32)
        if j is not None:
            self._emit("cat", lambda x, y: torch.cat([x, y], 1), (i, j), self.widths[i] + self.widths[j])

    def _shuffle(self) -> None:
        i = self._pick(lambda j: self.widths[j] % 2 == 0)
        if i is not None:
            self._emit("shuffle", lambda x: x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2), (i,), self.widths[i])

    def _permute(self) -> None:
        i = self._any()
        kind = int(self.rng.integers(4))
        order = torch.from_numpy(self.rng.permutation(self.widths[i]))
        shift = int(self.rng.integers(1, 4))
        functions = (
            lambda x: x.flip(1),
            lambda x: x.roll(shift, 1),
            lambda x: x[:, order],
            lambda x: torch.cat(x.split(1, 1)[::-1], 1),
        )
        self._emit(f"permute{kind}", functions[kind], (i,), self.widths[i])

    def _chunk(self) -> None:
        i = self._pick(lambda j: self.widths[j] % 2 == 0)
        if i is None:
            return
        kind = int(self.rng.integers(4))
        functions = (
            lambda x: x.chunk(2, 1)[0],
            lambda x: x.chunk(2, 1)[1],
            lambda x: torch.add(*x.chunk(2, 1)),
            lambda x: F.glu(x, 1),
        )
        self._emit(f"chunk{kind}", functions[kind], (i,), self.widths[i] // 2)

    def _gate(self) -> None:
        i = self._any()
        n = self.widths[i]

        def gate(x: Tensor, a: Any, b: Any) -> Tensor:
            return x * torch.sigmoid(b(F.relu(a(x.mean((2, 3), keepdim=True)))))

        self._emit("gate", gate, (i,), n, nn.Conv2d(n, 4, 1), nn.Conv2d(4, n, 1))

    def _down(self) -> None:
        i = self._pick(lambda j: not self.halved[j])
        if i is not None:
            self._emit("down", lambda x: F.max_pool2d(x, 2), (i,), self.widths[i], down=True)

    def _shared(self) -> None:
        """Call one convolution on two features of the same width and add a flipped copy."""
        i = self._any()
        j = self._like(i)
        if j is not None:
            layer = nn.Conv2d(self.widths[i], 6, 3, padding=1)
            self._emit("shared", lambda x, y, c: c(x) + torch.relu(c(y)), (i, j), 6, layer)


def random_net(seed: int) -> tuple[RandomNet, Tensor]:
    """Return a random network in evaluation mode with random parameters, and its example input."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = RandomNet(seed, steps=6 + seed % 8)
        randomise(net, seed)
        return net.eval(), torch.randn(2, 3, SIZE, SIZE)
