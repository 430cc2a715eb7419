"""How many weights stay: against a count of parameters by hand, at every number that can be asked for."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import srr_ext
from srr_ext.sparsity import Masks, prunable, weights_to_keep


def net() -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """100 parameters (60 + 6 and 2 of normalisation, 30 + 2 of the classifier), 60 of them prunable."""
    model = nn.Sequential(nn.Linear(10, 6), nn.LayerNorm(1), nn.Linear(15, 2))
    return model, {"0.weight": model[0].weight}


@pytest.mark.parametrize(
    ("compression", "keep"), [(1, 60), (1.0, 60), (1.25, 40), (2, 10), (2.22, 5), (2.43, 1), (1.6666666666666667, 19)]
)
def test_compression_counts_all_parameters(compression: float, keep: int) -> None:
    """100 / 1.6666666666666667 is a little below 60."""
    assert weights_to_keep(*net(), compression=compression) == keep


@pytest.mark.parametrize(("density", "keep"), [(1, 60), (0.5, 30), (0.7, 42), (0.35, 21), (0.0167, 1), (0.999, 59)])
def test_density_counts_prunable_weights_and_reads_decimals_as_written(density: float, keep: int) -> None:
    """0.35 * 60 is 20.999999999999996 in floating point."""
    assert weights_to_keep(*net(), density=density) == keep


@settings(deadline=None)
@given(st.decimals(1, 3, places=4))
def test_what_stays_meets_the_compression_and_one_weight_more_would_not(compression: Decimal) -> None:
    model, tensors = net()
    try:
        keep = weights_to_keep(model, tensors, compression=float(compression))
    except ValueError as error:
        assert compression * 41 > 100
        most = Decimal(re.search(r"so (\S+) is the most", str(error))[1])  # type: ignore[index]
        assert weights_to_keep(model, tensors, compression=float(most)) == 1
        assert 100 / (most + Decimal("0.01")) < 41
    else:
        assert compression * (40 + keep) <= 100 < compression * (40 + keep + 1)


@pytest.mark.parametrize("compression", [2, 3.82, 5.96, 9.31, 14.55, 44.4])
def test_of_a_network_that_ratio_of_parameters_is_left(compression: float) -> None:
    """Counted on the masked network: what is not zero, and all that is not prunable."""
    model = srr_ext.models.create("resnet20", num_classes=10)
    tensors = prunable(model, torch.zeros(1, 3, 32, 32))
    keep = weights_to_keep(model, tensors, compression=compression)
    order = torch.arange(sum(tensor.numel() for tensor in tensors.values())).split(
        [t.numel() for t in tensors.values()]
    )
    masks = Masks({name: (part < keep).reshape(tensors[name].shape) for name, part in zip(tensors, order, strict=True)})
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    masks.apply(model)
    total = sum(parameter.numel() for parameter in model.parameters())
    left = sum(int(parameter.count_nonzero()) for parameter in model.parameters())
    assert total / (left + 1) < compression <= total / left


def test_shared_parameters_count_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False))
    model[1].weight = model[0].weight
    tensors = {"0.weight": model[0].weight}
    assert weights_to_keep(model, tensors, compression=2) == 12 - 8
    assert weights_to_keep(model, tensors | {"1.weight": model[1].weight}, compression=2) == 12 - 8
    assert weights_to_keep(model, tensors | {"1.weight": model[1].weight}, density=0.5) == 8


@pytest.mark.parametrize(
    ("target", "error"),
    [
        ({}, "give exactly one of them, got none"),
        ({"compression": 2, "density": 0.5}, "give exactly one of them, got compression and density"),
        ({"compression": 0.99}, "must be at least 1, got 0.99"),
        ({"compression": float("inf")}, "must be at least 1, got inf"),
        ({"compression": float("nan")}, "must be at least 1, got nan"),
        ({"compression": "4"}, "compression must be a number, got str"),
        ({"compression": True}, "compression must be a number, got bool"),
        (
            {"compression": 2.5},
            r"compression 2\.5 is out of reach: 40 of the 100 parameters are not prunable, so 2\.43 is",
        ),
        ({"density": 0}, r"must be in \(0, 1\], got 0"),
        ({"density": 1.01}, r"must be in \(0, 1\], got 1.01"),
        ({"density": float("nan")}, r"must be in \(0, 1\], got nan"),
        ({"density": 0.0166}, r"density 0\.0166 leaves none of the 60 prunable weights; 1/60 is the least"),
    ],
)
def test_targets_that_cannot_be_met_are_refused(target: dict[str, Any], error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        weights_to_keep(*net(), **target)


def test_tensors_of_another_model_are_refused() -> None:
    model, tensors = net()
    with pytest.raises(ValueError, match=r"'7\.weight' is no parameter of the model of shape \[6, 10\]"):
        weights_to_keep(model, {"7.weight": tensors["0.weight"]}, compression=2)
    with pytest.raises(ValueError, match=r"'0\.weight' is no parameter of the model of shape \[6, 9\]"):
        weights_to_keep(model, {"0.weight": torch.zeros(6, 9)}, compression=2)
