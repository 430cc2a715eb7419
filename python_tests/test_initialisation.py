"""New weights for an architecture that is there."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from planning_nets import chain
from torch import nn
from training_data import random_data, small_net, vector

from srr_ext import apply_plan, make_plan, models
from srr_ext.training import TrainConfig, reinitialise, train
from srr_ext.training.initialisation import _own_stream


def test_new_weights_are_those_of_the_same_layers_made_anew() -> None:
    """Layer by layer what the constructors of torch draw, running statistics included."""
    model = small_net()
    train(model, random_data(), TrainConfig(epochs=2), device="cpu")
    model = model.eval().requires_grad_(False)
    before, mode = vector(model), torch.random.get_rng_state()
    fresh = reinitialise(model, 3)
    assert torch.equal(vector(model), before) and torch.equal(torch.random.get_rng_state(), mode)
    assert not fresh.training and all(p.requires_grad for p in fresh.parameters())  # frozen ones as well
    assert (
        (fresh[1].running_mean == 0).all() and (fresh[1].running_var == 1).all() and fresh[1].num_batches_tracked == 0
    )
    assert (fresh[1].weight == 1).all() and (fresh[1].bias == 0).all()
    torch.manual_seed(_own_stream(3))
    linear, second, first = nn.Linear(16, 7), nn.Conv2d(6, 4, 1), nn.Conv2d(2, 6, 3, bias=False)  # the last layer first
    for made, like in ((fresh[7], linear), (fresh[3], second), (fresh[0], first)):
        assert all(torch.equal(a, b) for a, b in zip(made.parameters(), like.parameters(), strict=True))


def test_the_seed_fixes_the_weights() -> None:
    model = small_net()
    assert torch.equal(vector(reinitialise(model, 1)), vector(reinitialise(copy.deepcopy(model), 1)))
    assert not torch.equal(vector(reinitialise(model, 1)), vector(reinitialise(model, 2)))


def test_a_pruned_network_gets_the_spread_of_its_own_widths() -> None:
    """Of fewer inputs: torch draws within 1 / sqrt(fan-in)."""
    net = chain((16, 64))
    small = apply_plan(net.model, make_plan(net.model, net.inputs, allocator="uniform", keep_macs=0.2), net.inputs)
    weight = reinitialise(small)[3].weight
    assert weight.shape == small[3].weight.shape and weight.shape[1] < 10
    bound = 1 / math.sqrt(weight[0].numel())
    assert 0.95 * bound < weight.abs().max() <= bound


def test_published_architectures_can_be_drawn_anew() -> None:
    """Every kind of layer in them has the method, attention included."""
    for model in (models.create("resnet20"), models.create("lenet5"), nn.TransformerEncoderLayer(8, 2, 16)):
        fresh = reinitialise(model, 1)
        changed = [not torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True)]
        matrices = [p.ndim > 1 for p in model.parameters()]
        assert all(c for c, m in zip(changed, matrices, strict=True) if m)


def test_a_network_that_draws_weights_itself_has_the_last_word() -> None:
    class Own(nn.Sequential):
        def reset_parameters(self) -> None:
            nn.init.constant_(self[0].weight, 0.25)

    fresh = reinitialise(Own(nn.Linear(3, 2)))
    assert (fresh[0].weight == 0.25).all() and (fresh[0].bias != 0).all()


class Scaled(nn.Module):
    """A parameter of its own, without the method."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))


class Forgetful(Scaled):
    """With a method that leaves it out."""

    def reset_parameters(self) -> None:
        """Do nothing."""


def test_parameters_that_would_stay_trained_are_refused() -> None:
    """The module is named, wherever it is."""
    with pytest.raises(ValueError, match=r"model: 1 \(Scaled\) has parameters but no reset_parameters\(\)"):
        reinitialise(nn.Sequential(nn.Linear(2, 2), Scaled()))
    with pytest.raises(ValueError, match=r"model: the model itself \(Scaled\)"):
        reinitialise(Scaled())
    with pytest.raises(ValueError, match=r"reset_parameters\(\) of 0 \(Forgetful\) does not draw its scale"):
        reinitialise(nn.Sequential(Forgetful()))


def test_computed_weights_are_refused() -> None:
    """Drawing the weight anew leaves alone what it is computed from."""
    with pytest.raises(ValueError, match=r"0\.parametrizations\.weight .* has parameters but no reset_parameters"):
        reinitialise(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        old = nn.utils.weight_norm(nn.Linear(3, 2))
    old(torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"does not draw its weight_g"):
        reinitialise(nn.Sequential(old))


@pytest.mark.parametrize("name", ["resnet20", "resnet56", "cifar_vgg16_bn", "digits_cnn", "lenet5", "alexnet_small"])
@pytest.mark.parametrize("seed", [0, 7])
def test_new_weights_are_not_those_that_the_network_was_made_with(name: str, seed: int) -> None:
    """Also of networks that reset themselves in the way in which they were made, from the same seed."""
    torch.manual_seed(seed)
    model = models.create(name, num_classes=10)
    fresh = reinitialise(model, seed)
    for key, weight in model.named_parameters():
        if weight.ndim > 1:
            assert (weight == fresh.get_parameter(key)).float().mean() < 1e-3, key  # some are, of millions
