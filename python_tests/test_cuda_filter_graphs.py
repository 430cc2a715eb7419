"""filter_graphs on every device: the graphs of the reference to the last bit; where that is too slow, of the CPU."""

from __future__ import annotations

import pytest
import torch
from graph_cases import median_gamma
from shared_data import SHARED
from torch import Tensor
from weight_cases import CASES, LAYOUTS

from srr_ext import models, ops, reference
from srr_ext.ops import FilterGraphs


def moved(weights: list[Tensor], device: torch.device) -> list[Tensor]:
    return [weight.to(device) for weight in weights]


def assert_equal(got: FilterGraphs, expected: FilterGraphs, device: torch.device) -> None:
    assert got.words.device.type == device.type and got.n_filters == expected.n_filters
    assert torch.equal(got.words.cpu(), expected.words)
    assert got.zero_filters == expected.zero_filters


@pytest.mark.parametrize("case", CASES)
def test_equals_the_reference(case, device):
    weights, gammas = CASES[case]()
    there = moved(weights, device)
    for gamma in gammas:
        assert_equal(ops.filter_graphs(there, gamma), reference.filter_graphs(weights, gamma), device)


@pytest.mark.parametrize("case", ["ragged", "near_the_threshold", "empty_and_single"])
def test_levels_are_the_single_thresholds(case, device):
    """And so is a threshold per layer, level by level."""
    weights, gammas = CASES[case]()
    there = moved(weights, device)
    levels = ops.filter_graph_levels(there, gammas)
    assert len(levels) == len(gammas)
    for level, gamma in zip(levels, gammas, strict=True):
        assert_equal(level, reference.filter_graphs(weights, gamma), device)
    own = [gammas[layer % len(gammas)] for layer in range(len(weights))]
    first, second = ops.filter_graph_levels(there, [own, own[::-1]])
    for i, weight in enumerate(weights):
        for graphs, per_layer in ((first, own), (second, own[::-1])):
            expected = reference.filter_graphs([weight], per_layer[i]).to_dense(0)
            assert torch.equal(graphs.to_dense(i).cpu(), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_all_the_same_to_it(layout, dtype, device):
    """Odd fan-ins put rows where no load of 16 bytes is aligned."""
    for shape in ((65, 6, 3, 3), (70, 7, 1, 1), (66, 5, 3, 3)):
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(shape[1])).to(dtype)
        gamma = median_gamma(weight)
        changed = LAYOUTS[layout](weight.to(device))
        assert changed.shape == shape and torch.equal(changed.detach().cpu(), weight)
        assert_equal(ops.filter_graphs([changed], gamma), reference.filter_graphs([weight], gamma), device)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_weights_that_are_not_finite_are_named(value, dtype, device):
    weights = [torch.ones(70, 9, dtype=dtype, device=device) for _ in range(3)]
    weights[1][66, 8] = value
    with pytest.raises(ValueError, match=r"weights\[1\] must be finite, got NaN or infinity in filter 66"):
        ops.filter_graphs(weights, 0.1)
    unchecked = ops.filter_graphs(weights, 0.1, check_finite=False)
    assert unchecked.kinds is not None and unchecked.kinds.nonzero().tolist() == [[70 + 66]]


@pytest.mark.parametrize("name", ["resnet20", "resnet56"])
def test_real_weights(name, device):
    found = sorted((SHARED / "weights").rglob(f"{name}*.th")) if (SHARED / "weights").is_dir() else []
    if not found:
        pytest.skip(f"no {name} checkpoint in shared/weights")
    model = models.create(name, num_classes=10, weights=str(found[0]))
    weights = [w.detach() for w in model.parameters() if w.dim() == 4][:24]
    there = moved(weights, device)
    for gamma in (0.03, 0.07):
        expected = reference.filter_graphs(weights, gamma)
        assert_equal(ops.filter_graphs(there, gamma), expected, device)
    assert 0 < float(expected.edge_density().max()) <= 1


@pytest.mark.cuda
@pytest.mark.parametrize(("n", "fan_in"), [(16384, 64), (4096, 4608), (1000, 20001)])
def test_large_layers_equal_the_cpu(cuda, n, fan_in):
    weight = torch.randn(n, fan_in, generator=torch.Generator().manual_seed(n))
    gamma = median_gamma(weight[:500])
    got, expected = ops.filter_graphs([weight.to(cuda)], gamma), ops.filter_graphs([weight], gamma)
    assert torch.equal(got.words.cpu(), expected.words)
    assert 0.4 < float(expected.edge_density()[0]) < 0.6


@pytest.mark.cuda
def test_the_widest_layer_that_is_taken(cuda):
    """65,536 filters in 16 directions: half a gibibyte of bits, known beforehand."""
    weight = torch.eye(16, device=cuda).repeat(4096, 1)
    graphs = ops.filter_graphs([weight], 0.0)
    rows = graphs.words.view(65536, 1024)
    pattern = sum(1 << (16 * i) for i in range(4))  # filters 0, 16, 32 and 48 of each word
    for filter_index in (0, 1, 15, 16, 40000, 65535):
        expected = torch.full((1024,), _signed(pattern << (filter_index % 16)), device=cuda)
        expected[filter_index // 64] ^= _signed(1 << (filter_index % 64))
        assert torch.equal(rows[filter_index], expected)
    assert ops.components(graphs).tolist() == [16]


@pytest.mark.cuda
def test_a_wider_layer_is_refused(cuda):
    with pytest.raises((RuntimeError, ValueError), match=r"at most 65536 .*on CUDA, got 65537"):
        ops.filter_graphs([torch.ones(65537, 1, device=cuda)], 0.1)


def _signed(word: int) -> int:
    """Return the int64 with the bits of an unsigned word."""
    word &= (1 << 64) - 1
    return word - (1 << 64) if word >= 1 << 63 else word
