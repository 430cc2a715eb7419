"""What selectors that run the model have in common: whom a layer's output reaches first, and leaving things alone."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import zoo
from criteria_nets import CASES, Case, assert_same, make_case, state
from torch import Tensor, nn
from zoo import Net, conv, image

from srr_ext.calibration import Calibration
from srr_ext.channels import analyze_channels
from srr_ext.criteria import SelectorContext, aofp, bn_scale, get_selector, taylor  # noqa: F401  (registers them)
from srr_ext.criteria.gates import direct_norms
from srr_ext.inputs import tensors_in

SELECTORS = ("bn_scale", "taylor2016", "taylor2019", "aofp:steps=2", "aofp_one_pass:steps=2")
ON_IMAGES = SELECTORS[1:]


def quietly(case: Case, name: str, seed: int = 0) -> list[Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return case.score(name, seed)


def norms_of(body: Any, **parts: nn.Module) -> tuple[str | None, ...]:
    net = Net(body, a=conv(3, 4), n=nn.BatchNorm2d(4), **parts).eval()
    return direct_norms(SelectorContext(net, image(size=4)), ["a"])["a"]


def test_the_normalisation_that_reads_a_layer_directly() -> None:
    other = nn.InstanceNorm2d(4)
    assert norms_of(lambda m, x: m.n(m.a(x))) == ("n",)
    assert norms_of(lambda m, x: m.n(input=m.a(x))) == ("n",)
    assert norms_of(lambda m, x: m.a(x)) == (None,)
    assert norms_of(lambda m, x: m.n(m.a(x).relu())) == (None,)
    assert norms_of(lambda m, x: m.n(m.a(x).relu_())) == (None,)
    assert norms_of(lambda m, x: m.n(torch.cat([m.a(x)], 1))) == (None,)
    assert norms_of(lambda m, x: m.n(m.a(x)) + m.o(m.a(x)), o=other) == ("n", "o")
    assert norms_of(lambda m, x: m.n(y := m.a(x)) + m.o(y), o=other) == ("n",)
    assert norms_of(lambda m, x: m.n(m.a(x)) + m.a(x)) == ("n", None)
    assert norms_of(lambda m, x: m.n(x.repeat(1, 2, 1, 1)[:, :4])) == ()


@pytest.mark.parametrize("name", SELECTORS)
def test_models_are_left_as_they_are(name: str) -> None:
    case = CASES["residual"]()
    case.model.train()
    case.model.head.weight.requires_grad_(False)
    case.model.register_forward_hook(lambda module, args, output: None)
    case.model.stem.weight.grad = torch.ones_like(case.model.stem.weight)
    before, inputs = state(case.model), [inputs.clone() for inputs, _ in case.batches]
    random = torch.get_rng_state()
    quietly(case, name)
    assert_same(before, state(case.model))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(a, b) for a, (b, _) in zip(inputs, case.batches, strict=True))
    assert torch.equal(case.model.stem.weight.grad, torch.ones_like(case.model.stem.weight))


@pytest.mark.parametrize("net", list(CASES))
@pytest.mark.parametrize("name", SELECTORS)
def test_the_same_bytes_again(name: str, net: str) -> None:
    case = CASES[net]()
    scores = quietly(case, name)
    assert [score.shape for score in scores] == [(group.size,) for group in case.groups]
    assert all(score.dtype == torch.float64 and bool(score.isfinite().all()) for score in scores)
    torch.manual_seed(99)
    with torch.inference_mode():
        again = quietly(case, name)
    assert all(torch.equal(a, b) for a, b in zip(scores, again, strict=True))


@pytest.mark.parametrize("name", SELECTORS)
def test_hooks_that_only_look_change_nothing(name: str) -> None:
    case = CASES["residual"]()
    scores = quietly(case, name)
    for module in list(case.model.modules()):
        module.register_forward_hook(lambda module, args, output: output.abs().mean() and None)
        module.register_forward_pre_hook(lambda module, args: None)
    assert all(torch.equal(a, b) for a, b in zip(scores, quietly(case, name), strict=True))


@pytest.mark.parametrize("name", ON_IMAGES)
def test_images_are_asked_for(name: str) -> None:
    case = CASES["tokens"]()
    with pytest.raises(ValueError, match="data: this method looks at images and there are none"):
        case.score(name, data=None)
    with pytest.raises(ValueError, match="data: holds no training batches"):
        case.score(name, data=Calibration([]))


@pytest.mark.parametrize("name", SELECTORS)
def test_a_single_image_without_a_batch_dimension(name: str) -> None:
    """Scored as a batch of one is."""
    net = nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 6), nn.ReLU(), conv(6, 5), nn.AdaptiveAvgPool2d(1))
    case = make_case(net, (3, 4, 4), {"0": "0", "2": "2"}, samples=1)
    loss = lambda outputs, targets: (outputs.flatten() * torch.arange(1, 6)).sum() ** 2  # noqa: E731
    one = [(inputs[0], targets) for inputs, targets in case.batches]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # bn_scale: there is none
        scores = case.score(name, data=Calibration(case.batches, loss=loss))
        alone = SelectorContext(net, one[0][0], data=Calibration(one, loss=loss))
        again = get_selector(name)(case.groups, alone)
    for a, b in zip(scores, again, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", SELECTORS)
def test_random_numbers_of_the_model_follow_the_seed(name: str) -> None:
    """A model that drops features at random in evaluation mode too."""
    net = Net(
        lambda m, x: m.head(nn.functional.dropout(m.b(m.a(x).relu()).relu(), training=True).mean((2, 3))),
        a=conv(3, 8), b=conv(8, 8), head=nn.Linear(8, 5),
    )  # fmt: skip
    case = make_case(net, (3, 4, 4), {"a": "a"})
    scores = quietly(case, name)
    assert all(torch.equal(a, b) for a, b in zip(scores, quietly(case, name), strict=True))


def squares(outputs: Any, targets: Tensor) -> Tensor:
    return sum(t.float().square().sum() for t in tensors_in(outputs) if t.is_floating_point())  # type: ignore[return-value]


ENTRIES = list(zoo.load().values())
SANDWICHES = [entry for entry in ENTRIES if entry.make.__module__ == "zoo"]  # mostly one operation each, much alike
CHOSEN = [entry for entry in ENTRIES if entry not in SANDWICHES][::3] + SANDWICHES[::12]


@pytest.mark.parametrize("part", range(9))
def test_the_zoo(part: int) -> None:
    """Every odd model gets finite scores, or is refused with the reason, and stays as it is."""
    done = 0
    for entry in CHOSEN[part::9]:
        model, example = entry.build()
        groups = analyze_channels(model, example).groups
        data = Calibration([(example, torch.zeros(2, dtype=torch.long))] * 2, loss=squares)
        before = state(model)
        for name in SELECTORS if groups else ():
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    scores = get_selector(name)(groups, SelectorContext(model, example, data=data))
            except ValueError as error:
                assert str(error).startswith("data: the loss"), (entry.name, name)
                continue
            assert_same(before, state(model))
            assert [score.shape for score in scores] == [(group.size,) for group in groups], entry.name
            assert all(score.dtype == torch.float64 and bool(score.isfinite().all()) for score in scores), entry.name
            done += 1
    assert done > 2 * len(SELECTORS)
