"""Distances of wide filters, which come from matrix products, against those of `torch.pdist`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from planning_nets import deep
from torch import Tensor

from srr_ext.criteria import SelectorContext, fpgm
from srr_ext.criteria.fpgm import wide_distances

fpgm_module = __import__("srr_ext.criteria.fpgm", fromlist=["WIDE"])


def awkward(n: int, fan_in: int) -> Tensor:
    """Filters of all sizes, some of them equal, nearly equal, opposite, or zero."""
    generator = torch.Generator().manual_seed(n)
    filters = torch.randn(n, fan_in, generator=generator, dtype=torch.float64)
    filters[: n // 4] *= 10.0 ** torch.randint(-12, 12, (n // 4, 1), generator=generator)
    filters[n // 2] = filters[1]
    filters[n - 1] = filters[1]
    filters[n // 2 + 1] = filters[2] * (1 + 1e-9)
    filters[n // 2 + 2] = filters[n // 2 + 3] + 1e-7
    filters[n // 2 + 4] = -filters[n // 2 + 3]
    filters[[5, n - 2]] = 0
    return filters


@pytest.mark.parametrize(("n", "fan_in"), [(40, 3), (511, 64), (513, 200), (1100, 40)])
def test_wide_distances_are_those_of_true_differences(n: int, fan_in: int) -> None:
    filters = awkward(n, fan_in)
    got, want = wide_distances(filters), torch.zeros(n, n, dtype=torch.float64)
    want[tuple(torch.triu_indices(n, n, 1))] = torch.pdist(filters)
    assert torch.equal(got == 0, want == 0)
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=0)


def test_wide_groups_score_the_same_and_duplicates_tie(monkeypatch: pytest.MonkeyPatch) -> None:
    net = deep((64, 300))
    weight = net.model[1].weight.data
    weight[299], weight[17] = weight[4], weight[4]
    context = SelectorContext(net.model, net.inputs)
    plain = fpgm(net.groups, context)
    monkeypatch.setattr(fpgm_module, "WIDE", 0)
    wide = fpgm(net.groups, context)
    for a, b in zip(plain, wide, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-12)
    assert wide[1][299] == wide[1][17] == wide[1][4]
    assert not torch.equal(plain[1], wide[1])  # the other way was taken
