"""The moving average of the weights."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from training_data import after_steps, random_data, small_net, vector

from srr_ext.training import TrainConfig, averaging_decay, evaluate, train

RECIPE = TrainConfig(epochs=3, batch_size=8, lr=0.05, ema=0.6)  # 9 steps; the decay reaches 0.6 after 13


@pytest.mark.parametrize("ema", [0.25, 0.6, 0.999])
def test_the_average_is_the_one_by_hand(ema: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and running statistics after every step, averaged in float64; counters are those of the last step."""
    model, seen = small_net(), list[Tensor]()
    after_steps(monkeypatch, lambda _: seen.append(vector(model)))
    train(model, random_data(), replace(RECIPE, ema=ema), device="cpu")
    assert len(seen) == 9
    average = seen[0]
    for n, weights in enumerate(seen[1:], 1):
        decay = min(ema, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * weights
    average[-1] = 9  # num_batches_tracked
    torch.testing.assert_close(vector(model), average, rtol=1e-5, atol=1e-6)
    assert (average - seen[-1]).abs().max() > 1e-3 and model[1].num_batches_tracked == 9


def test_the_decay_grows_to_its_limit() -> None:
    """So that the untrained weights of the beginning are soon forgotten."""
    decays = [averaging_decay(0.99, n) for n in range(1, 2000)]
    assert decays[0] == pytest.approx(2 / 11) and decays == sorted(decays) and decays[-1] == 0.99


def test_the_average_is_what_validation_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last record is about the network that stays, which is not the one that the optimiser has left."""
    model, data, last = small_net(), random_data(240, validation=240), list[dict[str, Tensor]]()
    after_steps(monkeypatch, lambda _: last.append(copy.deepcopy(model.state_dict())))
    history = train(model, data, replace(RECIPE, ema=0.9), device="cpu")
    raw = small_net()
    raw.load_state_dict(last[-1])
    averaged, plain = (evaluate(network, data, "validation") for network in (model, raw))
    assert history[-1]["validation_top1"] == averaged != plain


def test_no_steps_leave_the_weights() -> None:
    """There is nothing to average."""
    model = small_net()
    assert train(model, random_data(), replace(RECIPE, epochs=0), device="cpu") == []
    assert torch.equal(vector(model), vector(small_net()))


def test_networks_with_computed_weights_can_be_averaged() -> None:
    """Old-style weight normalisation keeps a tensor that cannot be deep-copied."""
    torch.manual_seed(0)
    with pytest.warns(FutureWarning):
        model = nn.Sequential(nn.Flatten(), nn.utils.weight_norm(nn.Linear(32, 7)))
    model(torch.zeros(1, 2, 4, 4))
    before = model[1].weight_v.clone()
    train(model, random_data(), RECIPE, device="cpu")
    assert not torch.equal(before, model[1].weight_v)
