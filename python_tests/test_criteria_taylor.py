"""The Taylor criteria against gradients of parameters and of activations."""

from __future__ import annotations

import pytest
import torch
from criteria_nets import CASES, CLASSES, Case, changes, close, make_case
from torch import Tensor, nn
from zoo import Net, conv

from srr_ext.calibration import Calibration
from srr_ext.criteria import SelectorContext
from srr_ext.criteria.taylor import taylor2016, taylor2019


@pytest.mark.parametrize("name", list(CASES))
def test_2019_is_the_mean_squared_derivative_by_a_common_factor(name: str) -> None:
    case = CASES[name]()
    scores = case.score("taylor2019")
    for group, score in zip(case.groups, scores, strict=True):
        want = torch.stack([changes(case, group, *batch).square() for batch in case.batches]).mean(0)
        close(score, want)


@pytest.mark.parametrize("name", list(CASES))
def test_2016_is_the_mean_absolute_derivative_of_single_images(name: str) -> None:
    case = CASES[name]()
    images = [(x[None], t[None]) for inputs, targets in case.batches for x, t in zip(inputs, targets, strict=True)]
    for group, score in zip(case.groups, case.score("taylor2016"), strict=True):
        want = torch.stack([changes(case, group, *image).abs() for image in images]).mean(0)
        close(score, want / want.norm())
        assert score.norm().item() == pytest.approx(1)


@pytest.mark.parametrize("where", ["before", "behind"])
def test_2016_is_activation_times_gradient_on_either_side_of_relu(where: str) -> None:
    """With activations kept, as the paper has it: the mean over positions, absolute, averaged over images."""
    case = CASES["chain"]()
    model, group = case.model, case.groups[0]
    assert isinstance(model, nn.Sequential)
    total = torch.zeros(group.size, dtype=torch.float64)
    for inputs, targets in case.batches:
        activation = model[:3](inputs) if where == "behind" else model[:2](inputs)
        activation.retain_grad()
        rest = model[3:] if where == "behind" else model[2:]
        nn.functional.cross_entropy(rest(activation), targets).backward()
        total += (activation * activation.grad).mean((2, 3)).abs().mean(0).detach()
    close(case.score("taylor2016")[0], total / total.norm())


def test_2016_in_one_group_of_a_stream_adds_before_it_takes_absolute_values() -> None:
    """Two layers that hand on opposite channels: removing both changes nothing, whatever each alone does."""
    net = Net(
        lambda m, x: m.head((m.a(x) + m.b(x)).mean((2, 3))), a=conv(3, 4), b=conv(3, 4), head=nn.Linear(4, CLASSES)
    )
    case = make_case(net, (3, 4, 4), {"a": "a", "b": "b"})
    net.b.weight.data[1], net.b.bias.data[1] = -net.a.weight.data[1], -net.a.bias.data[1]
    for name in ("taylor2016", "taylor2019"):
        (score,) = case.score(name)
        assert score.argmin() == 1 and score[1] < 1e-20 < score[[0, 2, 3]].min()


def test_a_normalisation_is_not_the_only_reader() -> None:
    """Before a pre-activation block, the stem's channel goes on into the shortcut: both are switched off."""

    class PreActivation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.n, self.a, self.b = conv(3, 4), nn.BatchNorm2d(4), conv(4, 6), conv(6, 4)
            self.head = nn.Linear(4, CLASSES)
            self.gate: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            y = self.n(x)
            if self.gate is not None:
                x, y = x * self.gate, y * self.gate
            z = self.b(self.a(y.relu_()).relu())
            z = z if self.gate is None else z * self.gate
            return self.head((x + z).relu().mean((2, 3)))

    case = make_case(PreActivation(), (3, 4, 4), {"stem": "", "a": "a", "b": ""})
    scores = case.score("taylor2019")
    stream = next(i for i, group in enumerate(case.groups) if group.name == "stem")
    case.model.gate = torch.ones(4, 1, 1, dtype=torch.float64, requires_grad=True)
    want = torch.zeros(4, dtype=torch.float64)
    for inputs, targets in case.batches:
        loss = nn.functional.cross_entropy(case.model(inputs), targets)
        want += torch.autograd.grad(loss, case.model.gate)[0].flatten().square() / len(case.batches)
    close(scores[stream], want)


def test_what_was_changed_in_place_is_read_changed() -> None:
    """Between the layer and the normalisation there is a ReLU in place, which returns the same tensor."""

    def body(relu: nn.Module) -> Case:
        net = Net(
            lambda m, x: m.head(m.n(m.r(m.a(x))).mean((2, 3))), a=conv(3, 6), r=relu, n=nn.BatchNorm2d(6),
            head=nn.Linear(6, CLASSES),
        )  # fmt: skip
        return make_case(net, (3, 4, 4), {"a": "a"})

    apart, in_place = body(nn.ReLU()), body(nn.ReLU(inplace=True))
    for name in ("taylor2016", "taylor2019"):
        close(in_place.score(name)[0], apart.score(name)[0])
    want = torch.stack([changes(in_place, in_place.groups[0], *batch).square() for batch in in_place.batches]).mean(0)
    close(in_place.score("taylor2019")[0], want)


def test_patches_folded_into_the_batch_count_as_their_image() -> None:
    """A stream of two layers, one of which sees two patches for every image."""

    def body(m: nn.Module, x: Tensor) -> Tensor:
        patches = m.a(x.unflatten(2, (2, 2)).transpose(1, 2).flatten(0, 1))  # [2 b, c, 2, 4]
        whole = patches.unflatten(0, (-1, 2)).transpose(1, 2).flatten(2, 3)
        return m.head((whole + m.b(x)).relu().mean((2, 3)))

    net = Net(body, a=conv(3, 4), b=conv(3, 4), head=nn.Linear(4, CLASSES))
    case = make_case(net, (3, 4, 4), {"a": "a", "b": "b"})
    images = [(x[None], t[None]) for inputs, targets in case.batches for x, t in zip(inputs, targets, strict=True)]
    (score,) = case.score("taylor2016")
    want = torch.stack([changes(case, case.groups[0], *image).abs() for image in images]).mean(0)
    close(score, want / want.norm())


def test_a_part_without_gradients_is_named() -> None:
    def body(m: nn.Module, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = m.a(x).relu()
        return m.head(m.b(x).mean((2, 3)))

    case = make_case(Net(body, a=conv(3, 4), b=conv(4, 6), head=nn.Linear(6, CLASSES)), (3, 4, 4), {"a": "a", "b": "b"})
    with pytest.warns(UserWarning, match="taylor2019: no gradient reaches group a; its scores are 0"):
        scores = case.score("taylor2019")
    assert not scores[0].any() and scores[1].all()
    with pytest.warns(UserWarning, match="taylor2016: no gradient"):
        assert not case.score("taylor2016")[0].any()


def test_a_loss_without_gradient_is_refused() -> None:
    case = CASES["tokens"]()
    data = Calibration(case.batches, loss=lambda outputs, targets: outputs.detach().sum())
    with pytest.raises(ValueError, match="the loss has no gradient"):
        case.score("taylor2019", data=data)


def test_another_loss_is_used() -> None:
    """The sum of the outputs is linear in the factor of every channel of the last layer: a closed form."""
    net = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, CLASSES))
    case = make_case(net, (3,), {"0": "0"})
    data = Calibration(case.batches, loss=lambda outputs, targets: outputs.sum())
    total = torch.zeros(4, dtype=torch.float64)
    for inputs, _ in case.batches:
        total += ((inputs @ net[0].weight.T).sum(0) * net[1].weight.sum(0)).square().detach()
    close(case.score("taylor2019", data=data)[0], total / len(case.batches))


def test_the_same_on_any_device(device: torch.device) -> None:
    case = CASES["residual"]()
    for select in (taylor2016, taylor2019):
        want = select(case.groups, case.context())
        moved = SelectorContext(case.model.to(device), case.batches[0][0].to(device), data=Calibration(case.batches))
        for a, b in zip(want, select(case.groups, moved), strict=True):
            assert b.device.type == device.type
            close(b.cpu(), a)
        case.model.cpu()
