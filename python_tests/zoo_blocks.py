"""Zoo: the building blocks of well-known architectures."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import Example, Net, conv, conv_bn, entry, image


@entry(prunable=("net.0", "net.2", "net.5"))
def plain_chain() -> tuple[nn.Module, Example]:
    """VGG in small: convolutions with and without BatchNorm, pooling, a classifier."""
    layers = [conv(3, 6), nn.ReLU(), conv(6, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 10), nn.MaxPool2d(2), nn.ReLU()]
    return Net(
        lambda m, x: m.head(m.net(x).mean((2, 3))), net=nn.Sequential(*layers), head=nn.Linear(10, 5)
    ).eval(), image()


class Basic(nn.Module):
    """A basic residual block with one of three shortcuts."""

    def __init__(self, n_in: int, n_out: int, stride: int = 1, shortcut: str = "identity") -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(n_in, n_out, stride=stride, bias=False), nn.BatchNorm2d(n_out)
        self.conv2, self.bn2 = conv(n_out, n_out, bias=False), nn.BatchNorm2d(n_out)
        self.kind, self.extra = shortcut, n_out - n_in
        if shortcut == "projection":
            self.down = nn.Sequential(conv(n_in, n_out, 1, stride=stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        """Add the shortcut to the two convolutions."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.kind == "projection":
            x = self.down(x)
        elif self.kind == "pad":  # option A of He et al. 2016, section 4.2
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra // 2, self.extra // 2))
        return F.relu(y + x)


def _resnet(*blocks: Basic) -> Net:
    parts = {
        "stem": conv_bn(3, 6),
        "blocks": nn.Sequential(*blocks),
        "head": nn.Linear(blocks[-1].conv2.out_channels, 5),
    }
    return Net(lambda m, x: m.head(F.adaptive_avg_pool2d(m.blocks(m.stem(x)), 1).flatten(1)), **parts).eval()


@entry(prunable=("stem.0", "blocks.0.conv1", "blocks.1.conv1"))
def residual() -> tuple[nn.Module, Example]:
    """Identity shortcuts: the stem and every second convolution share one stream."""
    return _resnet(Basic(6, 6), Basic(6, 6)), image()


@entry(prunable=("stem.0", "blocks.0.conv1", "blocks.1.conv1", "blocks.1.conv2"))
def residual_projection() -> tuple[nn.Module, Example]:
    """A 1x1 projection where the width changes."""
    return _resnet(Basic(6, 6), Basic(6, 10, 2, "projection"), Basic(10, 10)), image()


@entry(prunable=("blocks.0.conv1", "blocks.1.conv1", "blocks.2.conv1"))
def residual_padded() -> tuple[nn.Module, Example]:
    """Zero-padded shortcuts where the width doubles (CIFAR ResNets)."""
    return _resnet(Basic(6, 6), Basic(6, 12, 2, "pad"), Basic(12, 12), Basic(12, 24, 2, "pad")), image()


@entry(prunable=("stem.0", "blocks.0.b", "blocks.0.a"))
def preactivation_residual() -> tuple[nn.Module, Example]:
    """BatchNorm and ReLU before the convolutions; the stream itself is never normalised."""

    def body(m: Any, x: Tensor) -> Tensor:
        out: Tensor = x + m.b(m.n2(m.a(m.n1(x).relu())).relu())
        return out

    def block() -> Net:
        return Net(body, a=conv(6, 7), b=conv(7, 6), n1=nn.BatchNorm2d(6), n2=nn.BatchNorm2d(7))

    net = Net(
        lambda m, x: m.z(m.blocks(m.stem(x)).relu()),
        stem=nn.Sequential(conv(3, 6)),
        blocks=nn.Sequential(block(), block()),
        z=conv(6, 5),
    )
    return net.eval(), image()


@entry(prunable=("stem.0", "c1", "c2"))
def bottleneck_grouped() -> tuple[nn.Module, Example]:
    """ResNeXt: a grouped convolution inside a bottleneck."""

    def body(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        y = m.n2(m.c2(m.n1(m.c1(x)).relu())).relu()
        out: Tensor = m.z((x + m.n3(m.c3(y))).relu())
        return out

    parts = {"c1": conv(8, 12, 1), "c2": conv(12, 12, groups=3), "c3": conv(12, 8, 1)}
    norms = {"n1": nn.BatchNorm2d(12), "n2": nn.BatchNorm2d(12), "n3": nn.BatchNorm2d(8)}
    return Net(body, stem=conv_bn(3, 8), z=conv(8, 5), **parts, **norms).eval(), image()


def _gate(m: Any, x: Tensor, sigmoid: Any, pooled: bool = True) -> Tensor:
    s = F.adaptive_avg_pool2d(x, 1) if pooled else x
    out: Tensor = x * sigmoid(m.fc2(m.fc1(s).relu()))
    return out


def _se(sigmoid: Any, bias: bool = True) -> Net:
    return Net(
        lambda m, x: m.z(_gate(m, m.a(m.s(x)), sigmoid)),
        s=conv_bn(3, 6),
        a=conv_bn(6, 8),
        fc1=conv(8, 4, 1, bias=bias),
        fc2=conv(4, 8, 1, bias=bias),
        z=conv(8, 5),
    ).eval()


@entry(prunable=("s.0", "a.0", "fc1"))
def squeeze_excite() -> tuple[nn.Module, Example]:
    """Features times sigmoid gates: removed features are zero whatever the gate."""
    return _se(torch.sigmoid), image()


@entry(prunable=("s.0", "a.0", "fc1"))
def squeeze_excite_hard() -> tuple[nn.Module, Example]:
    """The same with hardsigmoid, as MobileNetV3."""
    return _se(F.hardsigmoid), image()


@entry(prunable=("s.0", "fc1"))
def squeeze_excite_linear() -> tuple[nn.Module, Example]:
    """The same with linear layers and a view."""
    net = Net(
        lambda m, x: m.z((y := m.a(m.s(x))) * m.fc2(m.fc1(y.mean((2, 3))).relu()).sigmoid().view(y.size(0), -1, 1, 1)),
        s=conv_bn(3, 6),
        a=conv_bn(6, 8),
        fc1=nn.Linear(8, 4),
        fc2=nn.Linear(4, 8),
        z=conv(8, 5),
    )
    return net.eval(), image()


@entry(prunable=("s.0", "fc1"))
def additive_gate() -> tuple[nn.Module, Example]:
    """Features plus sigmoid gates: removed features would become the gate, so they stay."""
    net = Net(
        lambda m, x: m.z((y := m.a(m.s(x))) + m.fc2(m.fc1(y.mean((2, 3), keepdim=True)).relu()).sigmoid()),
        s=conv_bn(3, 6),
        a=conv_bn(6, 8),
        fc1=conv(8, 4, 1),
        fc2=conv(4, 8, 1),
        z=conv(8, 5),
    )
    return net.eval(), image()


@entry(prunable=("blocks.0.expand.0", "stem.0"))
def inverted_residual() -> tuple[nn.Module, Example]:
    """MobileNetV2: expand, depthwise, linear projection, addition."""

    def body(m: Any, x: Tensor) -> Tensor:
        out: Tensor = x + m.project(m.depth(m.expand(x)))
        return out

    def block() -> Net:
        depth = nn.Sequential(conv(12, 12, groups=12, bias=False), nn.BatchNorm2d(12), nn.ReLU6())
        return Net(
            body,
            expand=conv_bn(6, 12, 1),
            depth=depth,
            project=nn.Sequential(conv(12, 6, 1, bias=False), nn.BatchNorm2d(6)),
        )

    net = Net(
        lambda m, x: m.head(m.blocks(m.stem(x)).mean([2, 3])),
        stem=conv_bn(3, 6),
        blocks=nn.Sequential(block(), block()),
        head=nn.Linear(6, 5),
    )
    return net.eval(), image()


@entry(prunable=("stem.0",))
def shufflenet_unit() -> tuple[nn.Module, Example]:
    """ShuffleNetV2: half the channels pass by, the others are convolved, then all are shuffled."""

    def shuffle(x: Tensor) -> Tensor:
        b, c, h, w = x.size()
        return x.view(b, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b, c, h, w)

    def body(m: Any, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        return shuffle(torch.cat((left, m.branch(right)), dim=1))

    def unit() -> Net:
        depth = nn.Sequential(conv(4, 4, groups=4, bias=False), nn.BatchNorm2d(4))
        return Net(body, branch=nn.Sequential(conv_bn(4, 4, 1), depth, conv_bn(4, 4, 1)))

    net = Net(
        lambda m, x: m.z(m.units(m.stem(x))),
        stem=conv_bn(3, 8),
        units=nn.Sequential(unit(), unit(), unit()),
        z=conv(8, 5),
    )
    return net.eval(), image()


@entry(prunable=("stem.0", "layers.0.2", "layers.1.2", "layers.2.2"))
def dense_block() -> tuple[nn.Module, Example]:
    """DenseNet: every layer reads the concatenation of all before it."""

    def body(m: Any, x: Tensor) -> Tensor:
        features = [m.stem(x)]
        for layer in m.layers:
            features.append(layer(torch.cat(features, 1)))
        out: Tensor = m.z(m.norm(torch.cat(features, 1)).relu())
        return out

    layers = nn.ModuleList(nn.Sequential(nn.BatchNorm2d(n), nn.ReLU(), conv(n, 4)) for n in (6, 10, 14))
    return Net(
        body, stem=nn.Sequential(conv(3, 6)), layers=layers, norm=nn.BatchNorm2d(18), z=conv(18, 5)
    ).eval(), image()


@entry(prunable=("stem.0", "one.0", "three.0.0", "three.1.0", "pool.1.0"))
def inception_block() -> tuple[nn.Module, Example]:
    """Parallel branches concatenated, twice the same tensor among them."""
    net = Net(
        lambda m, x: m.z(torch.cat([m.one(y := m.stem(x)), m.three(y), m.pool(y), y], 1)),
        stem=conv_bn(3, 6),
        one=conv_bn(6, 4, 1),
        three=nn.Sequential(conv_bn(6, 5, 1), conv_bn(5, 7)),
        pool=nn.Sequential(nn.MaxPool2d(3, 1, 1), conv_bn(6, 3, 1)),
        z=conv(4 + 7 + 3 + 6, 5),
    )
    return net.eval(), image()


@entry(prunable=("squeeze", "left", "right"))
def fire_module() -> tuple[nn.Module, Example]:
    """SqueezeNet's fire module."""
    net = Net(
        lambda m, x: m.z(torch.cat([m.left(y := m.squeeze(x).relu()).relu(), m.right(y).relu()], 1)),
        squeeze=conv(3, 6, 1),
        left=conv(6, 4, 1),
        right=conv(6, 5),
        z=conv(9, 5, 1),
    )
    return net.eval(), image()


@entry(prunable=("d1.0", "d2.0", "mid.0", "u2.0", "u1.0", "up2", "up1"))
def u_net() -> tuple[nn.Module, Example]:
    """Encoder and decoder with concatenated skips and transposed convolutions."""

    def body(m: Any, x: Tensor) -> Tensor:
        a = m.d1(x)
        b = m.d2(F.max_pool2d(a, 2))
        c = m.mid(F.max_pool2d(b, 2))
        b = m.u2(torch.cat([m.up2(c), b], 1))
        out: Tensor = m.z(m.u1(torch.cat([a, m.up1(b)], 1)))
        return out

    net = Net(
        body,
        d1=conv_bn(3, 4),
        d2=conv_bn(4, 6),
        mid=conv_bn(6, 8),
        up2=nn.ConvTranspose2d(8, 6, 2, 2),
        u2=conv_bn(12, 6),
        up1=nn.ConvTranspose2d(6, 4, 2, 2),
        u1=conv_bn(8, 4),
        z=conv(4, 2, 1),
    )
    return net.eval(), image()


@entry(prunable=("c1.0", "c2.0"))
def feature_pyramid() -> tuple[nn.Module, Example]:
    """Lateral 1x1 convolutions added top down; one shared head reads all levels."""

    def body(m: Any, x: Tensor) -> dict[str, Tensor]:
        a = m.c1(x)
        b = m.c2(a)
        top = m.l2(b)
        low = m.l1(a) + F.interpolate(top, size=a.shape[-2:], mode="nearest")
        return {"low": m.head(m.smooth(low).relu()), "top": m.head(m.smooth(top).relu())}

    net = Net(
        body,
        c1=conv_bn(3, 6),
        c2=conv_bn(6, 8, stride=2),
        l1=conv(6, 7, 1),
        l2=conv(8, 7, 1),
        smooth=conv(7, 7),
        head=conv(7, 4),
    )
    return net.eval(), image()


@entry(prunable=("a.0", "b.0"))
def space_to_depth_stem() -> tuple[nn.Module, Example]:
    """The input itself is rearranged: nothing of the network's own channels is touched."""
    net = Net(lambda m, x: m.z(m.b(m.a(F.pixel_unshuffle(x, 2)))), a=conv_bn(12, 6), b=conv_bn(6, 8), z=conv(8, 5))
    return net.eval(), image()


@entry(prunable=("stem.0", "a.0", "b.0"))
def ghost_module() -> tuple[nn.Module, Example]:
    """GhostNet: cheap depthwise copies beside the primary features."""
    net = Net(
        lambda m, x: m.z(m.b(torch.cat([y := m.a(m.stem(x)), m.cheap(y)], 1))),
        stem=conv_bn(3, 6),
        a=conv_bn(6, 8, 1),
        cheap=conv(8, 8, groups=8),
        b=conv_bn(16, 6),
        z=conv(6, 5),
    )
    return net.eval(), image()


@entry(prunable=("stem.0",))
def res2net_scale() -> tuple[nn.Module, Example]:
    """Res2Net: pieces of the channels pass through each other's convolutions."""

    def body(m: Any, x: Tensor) -> Tensor:
        pieces = torch.split(m.a(m.stem(x)), 3, 1)
        out = [pieces[0]]
        for i, layer in enumerate(m.layers):
            out.append(layer(pieces[i + 1] if i == 0 else pieces[i + 1] + out[-1]).relu())
        result: Tensor = m.z(torch.cat(out, 1))
        return result

    return Net(
        body, stem=conv_bn(3, 6), a=conv_bn(6, 9, 1), layers=nn.ModuleList(conv(3, 3) for _ in range(2)), z=conv(9, 5)
    ).eval(), image()


@entry(prunable=("encoder.0.0", "encoder.1.0"))
def siamese() -> tuple[nn.Module, Example]:
    """One encoder applied to two images; the distance of the features is the output."""
    net = Net(
        lambda m, x, y: m.head((m.encoder(x).mean((2, 3)) - m.encoder(y).mean((2, 3))).abs()),
        encoder=nn.Sequential(conv_bn(3, 6), conv_bn(6, 8)),
        head=nn.Linear(8, 1),
    )
    return net.eval(), (image(), image())


@entry(prunable=("cell.update.0",))
def recurrent_convolution() -> tuple[nn.Module, Example]:
    """A convolutional cell is applied three times to its own state."""

    def step(m: Any, x: Tensor, state: Tensor) -> Tensor:
        out: Tensor = state + m.mix(m.update(torch.cat([x, state], 1)))
        return out

    def body(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        state = torch.zeros_like(x)
        for _ in range(3):
            state = m.cell(x, state)
        out: Tensor = m.z(state)
        return out

    cell = Net(step, update=conv_bn(12, 8), mix=conv(8, 6))
    return Net(body, stem=conv_bn(3, 6), cell=cell, z=conv(6, 5)).eval(), image()
