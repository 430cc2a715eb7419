"""Sparse formats compute what the masked network computes, name what they leave, and are timed beside it."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

from srr_ext import models
from srr_ext.sparsity import Masks, choose
from srr_ext.sparsity.formats import (
    CsrConv,
    CsrLinear,
    format_latency,
    is_two_of_four,
    to_csr,
    to_semi_structured,
)

LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-12}


def masked(model: nn.Module, density: float = 0.3) -> nn.Module:
    """Set weights of every layer to zero at random; at least one in each."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, LAYERS):
                module.weight.mul_(torch.rand_like(module.weight) < density)
                module.weight.view(-1)[0] = 0
    return model


def settle(model: nn.Module, x: Tensor) -> nn.Module:
    """Give normalisation layers the statistics of a batch, so that outputs are neither tiny nor huge."""
    model.train()
    with torch.no_grad():
        model(x)
    return model.eval()


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max() / b.detach().abs().max())


def two_of_four(rows: int, columns: int) -> Tensor:
    """Random matrix of which two in each four consecutive entries are nonzero, anywhere among them."""
    order = torch.rand(rows, columns // 4, 4).argsort(-1)
    return ((torch.rand(rows, columns // 4, 4) + 0.5) * (order < 2)).flatten(1)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("density", [0.0, 0.02, 0.3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(6,), (1, 6), (32, 6), (65, 6), (2, 3, 4, 6), (0, 6)], ids=str)
def test_linear_layers_give_the_same(shape: tuple[int, ...], bias: bool, density: float, dtype: torch.dtype) -> None:
    layer = masked(nn.Linear(6, 5, bias=bias, dtype=dtype), density)
    sparse, names, left = to_csr(layer)
    assert names == ("",) and not left and isinstance(sparse, CsrLinear)
    x = torch.randn(shape, dtype=dtype)
    assert sparse(x).shape == layer(x).shape
    torch.testing.assert_close(sparse(x), layer(x), rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])


CONVOLUTIONS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "plain": (nn.Conv2d(3, 4, 3), (2, 3, 7, 9)),
    "1x1": (nn.Conv2d(6, 4, 1, bias=False), (3, 6, 5, 5)),
    "uneven": (nn.Conv2d(3, 8, (3, 2), stride=(2, 1), padding=(2, 1), dilation=(2, 1)), (2, 3, 11, 8)),
    "same": (nn.Conv2d(3, 4, (2, 3), dilation=(1, 2), padding="same"), (2, 3, 5, 6)),
    "valid": (nn.Conv2d(3, 4, 2, padding="valid"), (2, 3, 5, 6)),
    "reflect": (nn.Conv2d(3, 4, 3, padding=(2, 1), padding_mode="reflect"), (2, 3, 5, 6)),
    "circular": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular", stride=2), (2, 3, 5, 6)),
    "grouped": (nn.Conv2d(6, 9, 3, groups=3, padding=1), (2, 6, 5, 5)),
    "depthwise": (nn.Conv2d(6, 12, 3, groups=6, stride=2), (1, 6, 7, 7)),
    "no image": (nn.Conv2d(3, 4, 3, padding=1), (0, 3, 7, 9)),
    "one image": (nn.Conv2d(3, 4, 3, padding=1), (3, 7, 9)),
    "conv1d": (nn.Conv1d(4, 6, 3, stride=2, padding=2), (2, 4, 11)),
    "conv3d": (nn.Conv3d(2, 3, 2, dilation=2, padding=(1, 0, 2)), (2, 2, 5, 4, 6)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("density", [0.0, 0.05, 0.5])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_give_the_same(name: str, density: float, dtype: torch.dtype) -> None:
    layer, shape = CONVOLUTIONS[name]
    layer = masked(copy.deepcopy(layer).to(dtype), density)
    sparse, names, left = to_csr(layer)
    assert names == ("",) and not left and isinstance(sparse, CsrConv)
    assert sparse.values.numel() == int(layer.weight.count_nonzero())
    x = torch.randn(shape, dtype=dtype)
    torch.testing.assert_close(sparse(x), layer(x), rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])
    if x.ndim == 4:
        x, layer = x.contiguous(memory_format=torch.channels_last), layer.to(memory_format=torch.channels_last)
        sparse, *_ = to_csr(layer)
        torch.testing.assert_close(sparse(x), layer(x), rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])


def vision_transformer() -> nn.Module:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    return timm.models.VisionTransformer(32, 8, num_classes=10, embed_dim=32, depth=2, num_heads=2)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "digits_cnn": (lambda: models.create("digits_cnn", 10), (4, 1, 8, 8)),
    "lenet5": (lambda: models.create("lenet5", 10), (4, 1, 28, 28)),
    "resnet20": (lambda: models.create("resnet20", 10), (4, 3, 32, 32)),
    "vgg": (lambda: models.create("cifar_vgg13_bn", 10), (2, 3, 32, 32)),
    "vision transformer": (vision_transformer, (2, 3, 32, 32)),
}


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_give_the_same(name: str, dtype: torch.dtype) -> None:
    make, shape = NETWORKS[name]
    model = masked(make().to(dtype))
    x = torch.randn(shape, dtype=dtype)
    settle(model, x)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    sparse, names, left = to_csr(model)
    assert names == tuple(key for key, m in model.named_modules() if isinstance(m, LAYERS)) and not left
    with torch.no_grad():
        assert relative(sparse(x), model(x)) < TOLERANCES[dtype]
        assert relative(copy.deepcopy(sparse).double()(x.double()), model.double()(x.double())) < 1e-5
    model.to(dtype)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in sparse.modules())


class Shared(nn.Module):
    """One layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.again = nn.Sequential(self.first, nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.first(x))


def test_a_layer_under_two_names_is_converted_once() -> None:
    model = masked(Shared())
    sparse, names, left = to_csr(model)
    assert names == ("first",) and not left
    assert sparse.first is sparse.again[0] and isinstance(sparse.first, CsrLinear)
    x = torch.randn(3, 6)
    assert relative(sparse(x), model(x)) < 1e-5


class OwnForward(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight.abs(), self.bias)


def test_every_layer_that_stays_is_named_with_the_reason() -> None:
    model = nn.ModuleDict(
        {
            "transposed": nn.ConvTranspose2d(3, 4, 3),
            "own": OwnForward(4, 4),
            "normed": nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
            "hooked": nn.Linear(4, 4),
            "patched": nn.Linear(4, 4),
            "old": nn.Linear(4, 4),
            "encoder": nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
            "coarse": nn.Linear(4, 4, dtype=torch.bfloat16),
        }
    )
    model["patched"].forward = lambda x: x
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(model["old"])
    model["hooked"].register_forward_hook(lambda *_: None)
    masked(model)
    model["full"] = nn.Conv2d(3, 4, 3)
    model["good"] = masked(nn.Conv2d(3, 4, 3))
    sparse, names, left = to_csr(model)
    assert names == ("good",)
    expected = {
        "transposed": "no form", "own": "way of its own", "normed": "way of its own", "hooked": "hooks",
        "patched": "way of its own", "old": "computed anew",
        "encoder.self_attn.out_proj": "way of its own", "encoder.linear1": "reads its weight itself",
        "encoder.linear2": "reads its weight itself", "coarse": "torch runs no CSR matrices", "full": "no zeros",
    }  # fmt: skip
    assert left.keys() == expected.keys()
    assert all(words in left[name] for name, words in expected.items())
    x = torch.randn(2, 3, 4)
    encoder, same = model["encoder"].eval(), sparse["encoder"].eval()
    with torch.no_grad():
        torch.testing.assert_close(same(x), encoder(x), rtol=0, atol=0)


def test_layers_with_few_zeros_may_stay() -> None:
    model = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10))
    with torch.no_grad():
        model[0].weight.view(-1)[:50] = 0
        model[1].weight.view(-1)[:51] = 0
    _, names, left = to_csr(model, below=0.5)
    assert names == ("1",) and left == {"0": "0.5 of its weights are nonzero, which is not below 0.5"}


def test_two_of_four_is_told_from_what_is_not() -> None:
    good = two_of_four(32, 64)
    assert is_two_of_four(good) and is_two_of_four(torch.zeros(4, 8)) and not is_two_of_four(torch.zeros(4, 6))
    for _ in range(20):
        bad = good.clone()
        row, group = int(torch.randint(32, ())), int(torch.randint(16, ()))
        four = bad[row, 4 * group : 4 * group + 4]
        four[int((four == 0).nonzero()[0])] = 1
        assert not is_two_of_four(bad) and is_two_of_four(good)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_what_is_two_of_four_survives_the_format_of_torch_and_nothing_else_does(dtype: torch.dtype) -> None:
    """With torch's own conversion, which runs on a CPU."""
    good = two_of_four(32, 128).to(dtype)
    random = (torch.rand(32, 128) * (torch.rand(32, 128) < 0.5)).to(dtype)
    for matrix in (good, good * (random != 0), random, torch.ones(32, 128, dtype=dtype)):
        there = sparse_semi_structured_from_dense_cutlass(matrix)
        back = sparse_semi_structured_to_dense_cutlass(*there)
        assert torch.equal(back, matrix) == is_two_of_four(matrix)
    assert is_two_of_four(good) and not is_two_of_four(random)


def test_masks_of_scope_2_of_4_fit_the_format_of_torch() -> None:
    weight = torch.randn(64, 128).half()
    scores = {"weight": weight.float().abs()}
    weight[~choose(scores, Masks.ones(scores), None, "2:4")["weight"]] = 0
    assert int(weight.count_nonzero()) == 64 * 64 and is_two_of_four(weight)
    there = sparse_semi_structured_from_dense_cutlass(weight)
    assert torch.equal(sparse_semi_structured_to_dense_cutlass(*there), weight)


def test_the_cpu_leaves_every_layer_dense_and_says_why() -> None:
    model = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 32), nn.Unflatten(1, (2, 4, 4)), nn.Conv2d(2, 4, 3)).half()
    with torch.no_grad():
        model[0].weight.copy_(two_of_four(32, 64))
    same, names, left = to_semi_structured(model)
    assert not names and left.keys() == {"0", "1", "3"}
    assert "Only CUDA tensors" in left["0"] and "not 2:4 sparse" in left["1"] and "no form" in left["3"]
    x = torch.randn(3, 64).half()
    assert torch.equal(same(x), model(x))


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_gpu_computes_with_semi_structured_weights(cuda: torch.device, dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 64), nn.Linear(64, 10)).to(cuda, dtype)
    with torch.no_grad():
        model[0].weight.copy_(two_of_four(128, 256) / 16)
        model[2].weight.copy_(two_of_four(64, 128) / 8)
        model[3].weight.copy_(F.pad(two_of_four(8, 64), (0, 0, 0, 2)))  # a shape that torch does not take
    sparse, names, left = to_semi_structured(model)
    if not names:
        pytest.skip(f"this device has no semi-structured products: {left['0']}")
    assert names == ("0", "2") and "like it" in left["3"]
    x = torch.randn(33, 256, device=cuda, dtype=dtype)
    with torch.no_grad():
        assert relative(sparse(x), model(x)) < 2e-2


@pytest.mark.cuda
def test_csr_networks_run_on_a_gpu(cuda: torch.device) -> None:
    model = masked(models.create("digits_cnn", 10)).to(cuda).eval()
    sparse, names, _ = to_csr(model)
    x = torch.randn(4, 1, 8, 8, device=cuda)
    with torch.no_grad():
        assert names and relative(sparse(x), model(x)) < 1e-4


def test_latencies_are_measured_side_by_side() -> None:
    dense = models.create("digits_cnn", 10).train()
    pruned = masked(copy.deepcopy(dense))
    images = torch.randn(8, 1, 8, 8)
    measured = format_latency(dense, pruned, images, seconds=0.05)
    assert all(math.isfinite(measured[key]) and measured[key] > 0 for key in ("dense", "pruned", "csr"))
    layers = sum(isinstance(module, LAYERS) for module in dense.modules())
    assert measured["layers"] == {"csr": layers, "semi_structured": 0}
    assert measured["semi_structured"] is None and measured["dense_half"] is None
    assert measured["why_not"].keys() == {"semi_structured", "dense_half"}
    assert dense.training and pruned.training
    assert not any(isinstance(module, (CsrConv, CsrLinear)) for module in pruned.modules())
    without_zeros = format_latency(dense, dense, images, seconds=0.05)
    assert without_zeros["csr"] is None and "no zeros" in without_zeros["why_not"]["csr"]
    assert f"and {layers - 1} more layers" in without_zeros["why_not"]["csr"]
    nothing = format_latency(nn.Flatten(), nn.Flatten(), images, seconds=0.01)
    assert "no linear layer or convolution" in nothing["why_not"]["csr"]
