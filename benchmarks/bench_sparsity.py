"""Single weights: choosing which stay, against topk and a sort; and layers with zeros, dense and in CSR form.

"Ours" of the formats is the network as `srr_ext.sparsity.to_csr` gives it, and dense the same network with its zeros in
place: where "times ours" of dense is above 1, CSR is the faster of the two.

python -m pytest benchmarks/bench_sparsity.py --benchmark-only
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping

import floors
import layers
import pytest
import torch
from race import Race
from torch import Tensor, nn
from torch.nn import functional as F

from srr_ext.sparsity import Masks, choose, prunable
from srr_ext.sparsity.cost import sparse_cost
from srr_ext.sparsity.formats import to_csr

KEEP = 0.2
DENSITIES = (0.5, 0.25, 0.1, 0.05, 0.02)
CLOSE = 1e-4  # relative, of sums of thousands of products in single precision
LAYERS = {
    "linear, 1 input": (lambda: nn.Linear(4096, 4096), (1, 4096)),
    "linear, 32 inputs": (lambda: nn.Linear(4096, 4096), (32, 4096)),
    "conv, 1 image": (lambda: nn.Conv2d(256, 256, 3, padding=1), (1, 256, 14, 14)),
    "conv, 16 images": (lambda: nn.Conv2d(256, 256, 3, padding=1), (16, 256, 14, 14)),
}
FORMAT_ROWS = [
    (name, share, path)
    for share in DENSITIES
    for name in (*LAYERS, "resnet56")
    for path in ("ours", "dense", "pytorch")
    if path != "pytorch" or name.startswith("linear")
]


@functools.cache
def scores(network: str) -> dict[str, Tensor]:
    """Absolute values of all weights that may go, the classifier's too; without biases and normalisation."""
    found = prunable(layers.model(network), layers.example(network), classifier=True)
    return {name: tensor.detach().abs() for name, tensor in found.items()}


def by_topk(scored: Mapping[str, Tensor], keep: int) -> Tensor:
    """Choose the obvious way; which of equal scores stay is left to chance. Bool [weights]."""
    flat = torch.cat([score.flatten() for score in scored.values()])
    mask = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
    mask[flat.topk(keep, sorted=False).indices] = True
    return mask


def by_sort(scored: Mapping[str, Tensor], keep: int) -> Tensor:
    """Choose by a stable sort, which keeps the first of equal scores. Bool [weights]."""
    flat = torch.cat([score.flatten() for score in scored.values()])
    mask = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
    mask[flat.sort(descending=True, stable=True).indices[:keep]] = True
    return mask


def flat_masks(masks: Masks) -> Tensor:
    return torch.cat([mask.flatten() for mask in masks.values()])


def assert_the_largest(kept: Tensor, scored: Mapping[str, Tensor], keep: int, first: bool) -> None:
    """Check that the largest stay, exactly so many; and of those equal to the least that stays the first, if asked."""
    flat, kept = torch.cat([score.flatten() for score in scored.values()]).cpu(), kept.cpu()
    assert int(kept.sum()) == keep
    least = flat[kept].min()
    assert bool((flat[~kept] <= least).all())
    ties = kept[flat == least]
    assert not first or bool((ties.int().diff() <= 0).all())


@pytest.mark.parametrize("path", ["ours", "topk", "sort"])
@pytest.mark.parametrize("network", layers.NETWORKS)
def bench_choosing(network: str, path: str, race: Race, device: torch.device) -> None:
    scored = {name: score.to(device) for name, score in scores(network).items()}
    alive = Masks.ones(scored)
    keep = int(KEEP * alive.total)
    ours = functools.partial(choose, scored, alive, keep)
    # Scores and masks are read once, and masks are written.
    floor = floors.Floor(6 * alive.total, "B/s")
    race.enter("choosing a fifth of all weights", network, floor, {"weights": alive.total, "tensors": len(alive)})
    if path == "ours":
        assert_the_largest(flat_masks(race.answer(ours)), scored, keep, first=True)
        race.run(ours)
    elif path == "topk":
        peer = functools.partial(by_topk, scored, keep)
        assert_the_largest(race.answer(peer), scored, keep, first=False)
        race.run(peer, ours)
    else:
        peer = functools.partial(by_sort, scored, keep)
        assert torch.equal(race.answer(peer).cpu(), flat_masks(ours()))
        race.run(peer, ours)


@functools.lru_cache(1)
def with_zeros(network: str, density: float) -> tuple[nn.Module, nn.Module, Tensor, int]:
    """Return a network with zeros at random places, its CSR copy, an input, and the MACs of what is not zero."""
    generator = torch.Generator().manual_seed(0)
    if network in LAYERS:
        make, shape = LAYERS[network]
        model, x = make(), torch.randn(shape, generator=generator)
    else:
        model, x = copy.deepcopy(layers.model(network)), layers.example(network)
    weights = prunable(model, x, classifier=True)
    noise = {name: torch.rand(weight.shape, generator=generator) for name, weight in weights.items()}
    masks = choose(noise, Masks.ones(noise), int(density * Masks.ones(noise).total), "layerwise")
    masks.apply(model)
    sparse, converted, left = to_csr(model.eval())
    assert len(converted) == len(masks) and not left
    return model, sparse, x, sparse_cost(model, masks, x)["macs"]["pruned"]


def assert_close(one: Tensor, other: Tensor) -> None:
    assert float((one - other).abs().max() / other.abs().max()) < CLOSE


@pytest.mark.parametrize(("network", "share", "path"), FORMAT_ROWS)
@torch.inference_mode()
def bench_formats(network: str, share: float, path: str, race: Race, device: torch.device) -> None:
    model, sparse, x, macs = with_zeros(network, share)
    model, sparse, x = copy.deepcopy(model).to(device), copy.deepcopy(sparse).to(device), x.to(device)
    # What is left, at the rate of products without zeros.
    race.enter(f"{share:.0%} of the weights nonzero", network, floors.Floor(2 * macs, "FLOP/s"), {"macs": macs})
    ours, dense = functools.partial(sparse, x), functools.partial(model, x)
    if path == "ours":
        assert_close(race.answer(ours), dense())
        race.run(ours)
    elif path == "dense":
        assert_close(race.answer(dense), ours())
        race.run(dense, ours)
    else:
        peer = functools.partial(F.linear, x, sparse.weight, sparse.bias)  # a CSR weight as torch itself applies it
        assert_close(race.answer(peer), dense())
        race.run(peer, ours)
