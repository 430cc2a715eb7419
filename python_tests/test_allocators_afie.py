"""AFIE: the entropy against another way to compute it, the allocation against a direct solve of the equation."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from planning_nets import NETS, Net, context_of, deep, grouped, plan, residual
from scipy.special import entr, softmax
from torch import nn

import srr_ext
from srr_ext import models
from srr_ext.allocators import Afie, afie_of, get_allocator
from srr_ext.cost import CostModel, Target
from srr_ext.training import reinitialise


def by_eigenvalues(weight: np.ndarray) -> float:
    """From the Gram matrix, whose eigenvalues are the squares of the singular values, and SciPy's entropy."""
    filters = weight.astype(np.float64).reshape(*weight.shape[:2], -1).mean(2)
    gram = filters @ filters.T if filters.shape[0] <= filters.shape[1] else filters.T @ filters
    s = np.sqrt(np.linalg.eigvalsh(gram).clip(0))
    return float(entr(softmax((s - s.min()) / (s.max() - s.min()))).sum()) / len(weight)


@pytest.mark.parametrize("shape", [(8, 4, 3, 3), (5, 16, 1, 1), (12, 7), (6, 6, 5), (3, 4, 2, 2, 2)])
def test_entropy_is_that_of_another_computation(shape: tuple[int, ...], device: torch.device) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).double()
    assert afie_of(weight.to(device)) == pytest.approx(by_eigenvalues(weight.numpy()), rel=1e-9)
    assert afie_of(3 * weight) == pytest.approx(afie_of(weight), rel=1e-12)


def test_entropy_by_hand() -> None:
    """Singular values 3 and 1: z = (1, 0), q = (e, 1) / (e + 1)."""
    q = math.e / (math.e + 1)
    assert afie_of(torch.diag(torch.tensor([1.0, 3.0]))) == pytest.approx(
        -(q * math.log(q) + (1 - q) * math.log(1 - q)) / 2, rel=1e-12
    )


def test_equal_singular_values_have_the_entropy_of_a_uniform_distribution() -> None:
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
    for weight in (torch.eye(4), torch.zeros(4, 4, 3, 3)):
        assert afie_of(weight) == pytest.approx(math.log(4) / 4, rel=1e-12)
    assert afie_of(rotation) == pytest.approx(math.log(6) / 6, rel=1e-12)  # equal but for rounding
    assert afie_of(torch.randn(5, 1, 3, 3)) == 0


@pytest.mark.parametrize(
    ("weight", "message"),
    [(torch.ones(3), r"got shape \[3\]"), (torch.ones(0, 2), "not empty"), (torch.full((2, 2), math.nan), "finite")],
)
def test_entropy_of_nothing_is_refused(weight: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        afie_of(weight)


def water_filling(entropies: np.ndarray, sizes: np.ndarray, removed: float, most: float) -> np.ndarray:
    """Solve sum of lambda_l p_l = lambda* p*, lambda in proportion to 1 / AFIE; shares at the bound are fixed there."""
    fixed = np.zeros(len(sizes), dtype=bool)
    while True:
        rest = removed - most * sizes[fixed].sum()
        shares = np.where(fixed, most, rest / (sizes / entropies)[~fixed].sum() / entropies)
        over = ~fixed & (shares >= most)
        if not over.any():
            return shares
        fixed |= over


@pytest.mark.parametrize("keep", [0.9, 0.7, 0.5, 0.3, 0.1])
def test_the_shares_are_those_of_the_paper(keep: float) -> None:
    """With a target in channels p_l is a number of filters; shares of 1 become 0.99, and the others give more instead.

    Whole filters go: the numbers are those of a solution for a few filters more, rounded down.
    """
    sizes = np.array([100, 200, 100, 300, 100])
    net = deep(sizes.tolist())
    entropies = np.array([afie_of(net.model[i].weight) for i in range(5)])
    _, allocation = plan(net, Afie(exempt_stem=False), keep=keep, quantity="channels", floor=0.01)
    lost, removed = sizes - np.array(allocation.counts), round((1 - keep) * sizes.sum())
    assert lost.sum() == removed
    solutions = [water_filling(entropies, sizes, removed + more, 0.99) for more in np.arange(0, len(sizes), 0.01)]
    assert any(np.array_equal(np.floor(shares * sizes + 1e-9), lost) for shares in solutions)
    assert keep > 0.3 or (solutions[0] == 0.99).any()


def test_the_stem_is_exempt_and_said_to_be() -> None:
    net = deep((16, 32, 16))
    _, allocation = plan(net, "afie", keep=0.5)
    assert allocation.counts[0] == 16
    assert max(allocation.counts[1:]) < 32
    assert allocation.info["exempt"] == ["0"]
    assert allocation.info["afie"] == {str(i): afie_of(net.model[i].weight) for i in range(3)}
    _, allocation = plan(net, "afie:exempt_stem=false", keep=0.5)
    assert allocation.counts[0] < 16
    assert allocation.info["exempt"] == []


def test_a_stem_in_a_stream_leaves_the_others_to_decide() -> None:
    """The mean over producers is weighted by their filters, and the stem does not count."""
    net = residual()
    entropy = {name: afie_of(net.model.get_submodule(name).weight) for name in ("stem", "outer", "inner")}
    _, allocation = plan(net, "afie", keep=0.6)
    assert allocation.info["afie"] == pytest.approx({"stem": entropy["outer"], "inner": entropy["inner"]})
    assert allocation.info["exempt"] == []
    _, allocation = plan(net, Afie(exempt_stem=False), keep=0.6)
    assert allocation.info["afie"]["stem"] == pytest.approx((8 * entropy["stem"] + 8 * entropy["outer"]) / 16)


def test_transposed_convolutions_are_measured_by_their_own_filters() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 6, 2), nn.Conv2d(6, 4, 1)).eval()
    info = srr_ext.make_plan(model, torch.randn(1, 3, 6, 6), allocator="afie", keep_macs=0.7).info
    assert info["afie"]["1"] == pytest.approx(by_eigenvalues(model[1].weight.detach().transpose(0, 1).numpy()))


def test_groups_without_entropy_stay_whole_with_a_warning() -> None:
    """Every filter of the first convolution reads one channel, the grey of the digits."""
    model = models.create("digits_cnn").eval()
    with pytest.warns(UserWarning, match="group 'stage1.0' has filter information entropy 0"):
        plan = srr_ext.make_plan(model, torch.randn(1, 1, 8, 8), allocator=Afie(exempt_stem=False), keep_macs=0.5)
    assert plan.info["exempt"] == ["stage1.0"]
    assert plan.groups["stage1.0"]["kept"] == plan.groups["stage1.0"]["size"]


def test_random_weights_are_those_of_the_seed_and_change_little() -> None:
    """The ablation: entropies of weights that learnt nothing are the trained ones' within a few percent."""
    model = models.create("digits_cnn").eval()
    example = torch.randn(1, 1, 8, 8)
    trained = srr_ext.make_plan(model, example, allocator="afie", keep_macs=0.5)
    drawn = [srr_ext.make_plan(model, example, allocator="afie:weights=random", keep_macs=0.5, seed=3) for _ in (0, 1)]
    assert drawn[0].to_json() == drawn[1].to_json()
    fresh = reinitialise(model, 3)
    for name in ("stage1.3", "stage2.0", "stage2.3", "stage3.0", "stage3.3"):
        entropy = drawn[0].info["afie"][name]
        assert entropy == pytest.approx(by_eigenvalues(fresh.get_submodule(name).weight.detach().numpy()), rel=1e-4)
        assert entropy == pytest.approx(trained.info["afie"][name], rel=0.1)
        assert entropy != trained.info["afie"][name]
    assert drawn[0].info["weights"] == "random"


@pytest.mark.parametrize("net", [*NETS.values()])
def test_plans_are_the_same_again(net) -> None:
    made: Net = net()
    first, second = (plan(made, "afie", keep=0.75) for _ in (0, 1))
    assert json.dumps(first[1].info) == json.dumps(second[1].info)
    assert first[1].counts == second[1].counts


def test_options() -> None:
    with pytest.raises(ValueError, match="weights must be one of trained, random, got 'new'"):
        get_allocator("afie:weights=new")
    with pytest.raises(TypeError, match="exempt_stem must be true or false"):
        Afie(exempt_stem=1)  # type: ignore[arg-type]


def test_weights_that_are_no_numbers_are_refused_by_name() -> None:
    net = grouped()
    context = context_of(net)
    net.model[1].weight.data[0, 0, 0, 0] = math.inf
    with pytest.raises(ValueError, match="layer '1': weight must be finite"):
        Afie()(net.groups, [], CostModel(net.analysis, "macs"), Target("macs", 0.5), context)
