"""Which tensors may lose weights: on networks of every kind, and where modules share, compute or hide them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from criteria_nets import assert_same, state
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import srr_ext
from srr_ext.sparsity import prunable, transposed_weights

NETWORKS = {
    "digits_cnn": (1, 8), "lenet5": (1, 28), "alexnet_small": (3, 32), "resnet20": (3, 32), "resnet20b": (3, 32),
    "resnet56": (3, 32), "cifar_vgg13_bn": (3, 32), "resnet18": (3, 64), "resnet50": (3, 64), "mobilenet_v2": (3, 64),
    "mobilenet_v3_small": (3, 64), "squeezenet1_1": (3, 64), "densenet121": (3, 64), "shufflenet_v2_x0_5": (3, 64),
    "mnasnet0_5": (3, 64), "efficientnet_b0": (3, 64), "regnet_y_400mf": (3, 64),
}  # fmt: skip


def network(name: str) -> tuple[nn.Module, Tensor]:
    channels, side = NETWORKS[name]
    model = srr_ext.models.create(name, num_classes=10)
    return model, torch.randn(1, channels, side, side)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_matrix_and_kernel_but_the_classifier(name: str) -> None:
    """In these networks parameters of two dimensions and more are just those of convolutions and linear layers."""
    model, example = network(name)
    wanted = [key for key, parameter in model.named_parameters() if parameter.ndim >= 2]
    found = prunable(model, example)
    assert list(found) == wanted[:-1]
    assert list(prunable(model, example, classifier=True)) == wanted
    parameters = dict(model.named_parameters())
    assert all(tensor is parameters[key] for key, tensor in found.items())


def test_what_an_example_tells_leaves_no_trace() -> None:
    """Not in mode, buffers, gradients or random numbers, although the model draws some."""

    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn(x.shape)

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Noise(), nn.Dropout(), nn.Flatten(), nn.Linear(16, 3))
    model[1].eval()
    model[0].weight.requires_grad_(False)
    before, random = state(model), torch.get_rng_state()
    with torch.inference_mode():
        assert list(prunable(model, torch.randn(2, 3, 4, 4, generator=torch.Generator()))) == ["0.weight"]
    assert_same(before, state(model))
    assert torch.equal(random, torch.get_rng_state())


class Branches(nn.Module):
    """The head stands first, a layer runs twice, a second head only in training."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.again = nn.Conv1d(5, 5, 1)
        self.up = nn.ConvTranspose2d(2, 5, 2, groups=1)
        self.table = nn.Embedding(7, 4)
        self.norm = nn.LayerNorm(4)
        self.block = nn.ModuleDict({"a": nn.Linear(4, 4, bias=False), "ab": nn.Linear(4, 4)})
        self.aux = nn.Linear(4, 3)

    def forward(self, x: Tensor, words: Tensor) -> Any:
        x = self.up(x).flatten(2)
        x = self.again(self.again(x)).mean((1, 2))[:, None] + self.norm(self.table(words))
        x = self.block["ab"](self.block["a"](x))
        return (self.head(x), self.aux(x)) if self.training else self.head(x)


BRANCHES = ["again.weight", "up.weight", "block.a.weight", "block.ab.weight", "aux.weight"]
INPUTS = {"x": torch.zeros(2, 2, 3, 3), "words": torch.tensor([1, 2])}


def test_the_classifier_is_the_last_to_run_not_the_last_to_stand() -> None:
    model = Branches()
    assert list(prunable(model, INPUTS)) == BRANCHES
    assert list(prunable(model, INPUTS, classifier=True)) == ["head.weight", *BRANCHES]
    assert transposed_weights(model) == {"up.weight"}


def test_ignored_names_a_layer_or_all_inside_a_container() -> None:
    model = Branches()
    assert list(prunable(model, INPUTS, ignored=["block.a"])) == [n for n in BRANCHES if n != "block.a.weight"]
    assert list(prunable(model, INPUTS, ignored=iter(["block", "norm"]))) == [n for n in BRANCHES if "block" not in n]
    assert list(prunable(model, INPUTS, ignored=["head"], classifier=True)) == BRANCHES


def test_a_shared_module_is_ignored_by_any_of_its_names() -> None:
    layer = nn.Linear(3, 3)
    model = nn.Sequential(nn.Linear(3, 3), layer, layer, nn.Linear(3, 2))
    assert list(prunable(model, torch.zeros(1, 3))) == ["0.weight", "1.weight"]
    assert list(prunable(model, torch.zeros(1, 3), ignored=["2"])) == ["0.weight"]
    again = nn.Sequential(layer, nn.Linear(3, 3), layer)
    assert list(prunable(again, torch.zeros(1, 3))) == ["1.weight"]  # the last to run has run before


def test_a_shared_parameter_is_there_once_and_only_if_nobody_needs_it_whole() -> None:
    def model() -> nn.Sequential:
        return nn.Sequential(*(nn.Linear(3, 3, bias=False) for _ in range(4)))

    pair = model()
    pair[2].weight = pair[0].weight
    assert list(prunable(pair, torch.zeros(1, 3))) == ["0.weight", "1.weight"]
    assert list(prunable(pair, torch.zeros(1, 3), ignored=["2"])) == ["1.weight"]
    with_classifier = model()
    with_classifier[3].weight = with_classifier[0].weight
    assert list(prunable(with_classifier, torch.zeros(1, 3))) == ["1.weight", "2.weight"]
    assert list(prunable(with_classifier, torch.zeros(1, 3), classifier=True)) == [f"{i}.weight" for i in range(3)]
    tied = nn.Sequential(nn.Embedding(3, 3), *model())
    tied[3].weight = tied[0].weight
    assert list(prunable(tied, torch.tensor([1]))) == ["1.weight", "2.weight"]


def test_attention_gives_its_output_projection_and_a_bare_layer_its_weight() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    assert list(prunable(layer, torch.zeros(1, 2, 8), classifier=True)) == [
        "self_attn.out_proj.weight", "linear1.weight", "linear2.weight",
    ]  # fmt: skip
    linear = nn.Linear(3, 2)
    assert list(prunable(linear, torch.zeros(1, 3), classifier=True)) == ["weight"]
    assert transposed_weights(nn.ConvTranspose1d(2, 3, 1)) == {"weight"}


COMPUTED = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", 2),
}


@pytest.mark.parametrize("how", COMPUTED)
def test_computed_weights_are_refused_by_name_unless_they_stay_whole(how: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), COMPUTED[how](nn.Linear(4, 4)), nn.Linear(4, 3))
    with pytest.raises(ValueError, match=r"layer '1' computes its weight from other parameters"):
        prunable(model, torch.zeros(1, 4))
    assert list(prunable(model, torch.zeros(1, 4), ignored=["1"])) == ["0.weight"]
    assert list(prunable(model[:2], torch.zeros(1, 4))) == ["0.weight"]  # now the classifier, left out anyway


@pytest.mark.parametrize(
    ("model", "options", "problem"),
    [
        (nn.Sequential(nn.Linear(4, 4)), {}, "no weight of a convolution or linear layer is left"),
        (nn.Sequential(nn.ReLU()), {"classifier": True}, "no weight of a convolution or linear layer is left"),
        (nn.Sequential(nn.ReLU()), {}, "no weight of a convolution or linear layer is left"),
        (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), {"ignored": [""]}, "is left to prune"),
        (nn.Sequential(nn.Linear(4, 4)), {"ignored": ["0.weight"]}, "no module of the model is called '0.weight'"),
        (nn.Sequential(nn.Linear(5, 4)), {}, "the model does not run on them"),
        (nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 4)), {}, "layer '0' has no weights yet"),
        (nn.ParameterList([nn.Linear(4, 4).weight]), {}, "is left to prune"),
    ],
)
def test_what_cannot_be_pruned_is_refused(model: nn.Module, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        prunable(model, torch.zeros(1, 4), **options)


def test_layers_that_the_example_does_not_reach_leave_the_classifier_unknown() -> None:
    class ByHand(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.layer.weight

    with pytest.raises(ValueError, match="so the classifier is unknown"):
        prunable(ByHand(), torch.zeros(1, 4))
    assert list(prunable(ByHand(), torch.zeros(1, 4), classifier=True)) == ["layer.weight"]


@pytest.mark.parametrize(
    ("model", "example", "options", "name"),
    [
        (3, torch.zeros(1), {}, "model"),
        (nn.Linear(1, 1), 3, {}, "example_inputs"),
        (nn.Linear(1, 1), torch.zeros(1), {"ignored": "0"}, "ignored"),
    ],
)
def test_wrong_kinds_are_refused(model: Any, example: Any, options: dict[str, Any], name: str) -> None:
    with pytest.raises(TypeError, match=f"^{name}: expected"):
        prunable(model, example, **options)
