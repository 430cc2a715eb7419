"""Masks: exact zeros whatever was there, in every memory format, and a file that gives the same masks back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from srr_ext.sparsity import Masks


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(24, 5))


def random_masks(model: nn.Module, names: tuple[str, ...] = ("0.weight", "3.weight"), seed: int = 0) -> Masks:
    generator = torch.Generator().manual_seed(seed)
    return Masks({name: torch.rand(model.get_parameter(name).shape, generator=generator) < 0.4 for name in names})


def test_counts_are_exact() -> None:
    model = net()
    masks = random_masks(model)
    by_hand = {name: np.asarray(mask).sum() for name, mask in masks.items()}
    assert masks.counts == by_hand and masks.kept == sum(by_hand.values())
    assert masks.total == 4 * 6 * 9 + 24 * 5
    assert masks.density == masks.kept / masks.total
    ones = Masks.ones({name: model.get_parameter(name) for name in masks})
    assert ones.kept == ones.total == masks.total and ones.density == 1
    assert list(masks) == ["0.weight", "3.weight"] and len(masks) == 2
    assert repr(ones) == "Masks(keep 336 of 336 weights in 2 tensors)"


def test_masks_are_of_their_own() -> None:
    """Whoever gave them may go on writing; the copies lie contiguous on the CPU."""
    given = torch.ones(3, 2, dtype=torch.bool).T
    masks = Masks({"w": given})
    given.fill_(False)
    assert masks.kept == 6 and bool(masks["w"].all()) and masks["w"].is_contiguous()


def test_nonzero_reads_masks_from_zeros() -> None:
    model = net()
    masks = random_masks(model)
    masks.apply(model)
    model[0].weight.data[0, 0, 0, 0] = -0.0
    found = Masks.nonzero({name: model.get_parameter(name) for name in masks})
    assert found.counts["3.weight"] == masks.counts["3.weight"]
    assert not found["0.weight"][0, 0, 0, 0]


FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", FORMATS)
def test_masked_is_exactly_zero_and_all_else_bit_for_bit_the_same(
    form: str, dtype: torch.dtype, device: torch.device
) -> None:
    """NaN and infinity under the mask become +0 as well; biases and normalisation are not touched."""
    model = net().to(device, dtype).to(memory_format=FORMATS[form])
    masks = random_masks(model)
    for name, mask in masks.items():
        rotten = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, -1.0], device=device, dtype=dtype)
        gone = ~mask.to(device)
        weight = model.get_parameter(name).data
        weight[gone] = rotten[torch.arange(int(gone.sum()), device=device) % 5]
    strides = {name: model.get_parameter(name).stride() for name in masks}
    before = copy.deepcopy(model.state_dict())
    identities = {name: (id(p), p.data_ptr()) for name, p in model.named_parameters()}
    assert not masks.zeros_in(model)
    masks.apply(model)
    assert masks.zeros_in(model)
    for name, value in model.state_dict().items():
        if name in masks:
            kept = masks[name].to(device)
            assert torch.equal(value[kept], before[name][kept])
            zeros = value[~kept]
            assert bool((zeros == 0).all()) and not bool(zeros.signbit().any())
            assert value.stride() == strides[name]
        else:
            assert torch.equal(value, before[name])
    assert {name: (id(p), p.data_ptr()) for name, p in model.named_parameters()} == identities
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_gradients_are_masked_where_there_are_some() -> None:
    model = net()
    masks = random_masks(model)
    masks.apply_to_gradients(model)
    assert all(parameter.grad is None for parameter in model.parameters())
    model[3](torch.ones(2, 24)).sum().backward()
    wanted = model[3].weight.grad.clone() * masks["3.weight"]
    model[3].weight.grad[~masks["3.weight"]] = float("nan")
    masks.apply_to_gradients(model)
    assert model[0].weight.grad is None
    assert torch.equal(model[3].weight.grad, wanted)


@pytest.mark.parametrize("maker", [torch.optim.SGD, torch.optim.AdamW])
def test_training_leaves_masked_weights_at_zero_and_the_rest_as_if_they_were_not_there(
    maker: Callable[..., object],
) -> None:
    """Beside a network that has a multiplication by the masks in its forward pass and so no such weights at all."""
    torch.manual_seed(0)
    inputs, targets = torch.randn(16, 6), torch.randint(3, (16,))
    first, last = nn.Linear(6, 8), nn.Linear(8, 3)
    model = copy.deepcopy(nn.Sequential(first, nn.Tanh(), last))
    masks = random_masks(model, ("0.weight", "2.weight"))
    optimizers = [maker(parameters, lr=0.05, weight_decay=0.1) for parameters in (
        model.parameters(), [*first.parameters(), *last.parameters()],
    )]  # fmt: skip
    masks.apply(model)
    for _ in range(5):
        for optimizer in optimizers:
            optimizer.zero_grad()  # type: ignore[attr-defined]
        nn.functional.cross_entropy(model(inputs), targets).backward()
        masks.apply_to_gradients(model)
        hidden = nn.functional.linear(inputs, first.weight * masks["0.weight"], first.bias).tanh()
        outputs = nn.functional.linear(hidden, last.weight * masks["2.weight"], last.bias)
        nn.functional.cross_entropy(outputs, targets).backward()
        for optimizer in optimizers:
            optimizer.step()  # type: ignore[attr-defined]
        masks.apply(model)
        assert masks.zeros_in(model)
    torch.testing.assert_close(model[0].weight, first.weight * masks["0.weight"])
    torch.testing.assert_close(model[2].bias, last.bias)


def test_a_model_that_does_not_fit_is_refused_by_the_first_tensor_that_disagrees() -> None:
    model = net()
    masks = random_masks(model)
    masks.check(model)
    wider = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(25, 5))
    other = nn.Sequential(nn.Flatten(), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(24, 5))
    for method in (masks.check, masks.apply, masks.apply_to_gradients, masks.zeros_in):
        with pytest.raises(ValueError, match=r"'3\.weight' is masked as \[5, 24\], but the model has \[5, 25\]"):
            method(wider)
        with pytest.raises(ValueError, match=r"the model has no parameter '0\.weight'"):
            method(other)
    computed = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 6, 3)))
    with pytest.raises(ValueError, match=r"no parameter '0\.weight'"):
        Masks({"0.weight": masks["0.weight"]}).apply(computed)


def test_masks_keep_up_with_a_model_that_moves() -> None:
    """Another memory format or type in between gets a copy of its own."""
    model = net()
    masks = random_masks(model)
    for change in (
        {"memory_format": torch.channels_last},
        {"dtype": torch.float64},
        {"memory_format": torch.contiguous_format},
    ):
        model.to(**change)
        with torch.no_grad():
            for name in masks:
                model.get_parameter(name).fill_(3)
        masks.apply(model)
        for name, mask in masks.items():
            assert torch.equal(model.get_parameter(name), 3 * mask.to(model[0].weight.dtype))


def test_equal_by_value_in_any_order() -> None:
    masks = random_masks(net())
    backwards = Masks({name: masks[name] for name in reversed(list(masks))})
    assert masks == backwards and masks.same_as(backwards) and masks != random_masks(net(), seed=1)
    assert masks != Masks({"0.weight": masks["0.weight"]})
    assert not masks.same_as(Masks({name: mask[:1] for name, mask in masks.items()}))
    assert masks != 3 and copy.deepcopy(masks) == masks


def test_a_file_gives_the_same_masks_in_the_same_order_and_the_same_bytes(tmp_path: Path) -> None:
    model = net()
    masks = random_masks(model, ("3.weight", "0.weight", "1.weight"))
    masks.save(tmp_path / "a.safetensors")
    masks.apply(model)
    Masks(dict(masks)).save(str(tmp_path / "b.safetensors"))
    again = Masks.load(tmp_path / "a.safetensors")
    assert again == masks and list(again) == ["3.weight", "0.weight", "1.weight"]
    again.save(tmp_path / "a.safetensors")  # over itself
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]
    anyone = load_file(tmp_path / "a.safetensors")
    assert all(torch.equal(anyone[name], mask) for name, mask in masks.items())


def test_a_damaged_file_is_refused_or_holds_masks(tmp_path: Path) -> None:
    """Cut at any length, or with any one byte changed; a value may then say something else, but no third thing."""
    path = tmp_path / "masks.safetensors"
    Masks({"b": torch.tensor([True, False]), "a": torch.tensor([[True]])}).save(path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"is damaged|is no file of masks"):
            Masks.load(path)
    refused = 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 2]) + whole[place + 1 :])
        try:
            assert Masks.load(path).total == 3
        except ValueError as error:
            refused += 1
            assert "is damaged" in str(error) or "is no file of masks" in str(error)
            assert "\n" not in str(error)
    assert refused >= len(whole) - 40  # padding and the like may change
    path.write_bytes(whole[:-1] + b"\2")
    with pytest.raises(ValueError, match="it holds other tensors than the masks it names"):
        Masks.load(path)


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(ValueError, match="there is no file"):
        Masks.load(path)
    masks = {"w": torch.ones(2, dtype=torch.bool)}
    save_file(masks, path)
    with pytest.raises(ValueError, match="is no file of masks"):
        Masks.load(path)
    save_file(masks, path, {"format": "pt"})
    with pytest.raises(ValueError, match="is no file of masks"):
        Masks.load(path)
    weights: dict[str, Tensor] = {"w": torch.ones(2)}
    for tensors, order in (
        (weights, '["w"]'),
        (masks, '["v"]'),
        (masks, "[]"),
        (masks, "3"),
        (masks, '["w", "w"]'),
        (masks, "{"),
    ):
        save_file(tensors, path, {"format": f"srr_ext masks 1 {order}"})
        with pytest.raises(ValueError, match="is damaged"):
            Masks.load(path)
    torch.save(masks, path)
    with pytest.raises(ValueError, match="is damaged"):
        Masks.load(path)


@pytest.mark.parametrize(
    ("masks", "error"),
    [
        ({"w": torch.ones(2)}, "expected a boolean tensor for 'w', got a tensor of torch.float32"),
        ({"w": [True]}, "expected a boolean tensor for 'w', got list"),
        ({3: torch.ones(2, dtype=torch.bool)}, "expected the name of a parameter, got 3"),
        ({}, "no weight to mask"),
        ({"w": torch.ones(0, dtype=torch.bool)}, "no weight to mask"),
    ],
)
def test_what_is_no_mask_is_refused(masks: dict[str, Tensor], error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        Masks(masks)
