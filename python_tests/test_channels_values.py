"""Values that depend on the width or on other inputs: labels do not tell, so analysis has to look at numbers too."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import oracle
import pytest
import torch
import zoo
from torch import Tensor, nn

import srr_ext
from srr_ext.channels import analyze_channels

EXAMPLE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Between(nn.Module):
    """Two convolutions with something between them."""

    def __init__(self, between: Callable[..., Tensor]) -> None:
        super().__init__()
        self.a, self.z, self.between = zoo.conv(3, 16), zoo.conv(16, 5), between

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        """Apply first convolution, the function, second convolution."""
        out: Tensor = self.z(self.between(self.a(x).relu(), *others))
        return out


def _in_a_thread(x: Tensor) -> Tensor:
    """Compute where no interception reaches."""
    found: list[Tensor] = []

    def work() -> None:
        with torch.no_grad():
            found.append(x / (1 + x.mean(1, keepdim=True)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return found[0]


HIDDEN = {
    "width in a new tensor": lambda x: x * x.new_full((1,), x.shape[1] ** 0.5),
    "width in a large tensor": lambda x: x * torch.full((1, 1, 16, 16), float(x.shape[1])),
    "vmap": lambda x: torch.vmap(lambda image: image / (1 + image.mean(0, keepdim=True)))(x),
    "thread": _in_a_thread,
    "storage": lambda x: x * x.detach().untyped_storage().nbytes() ** 0.5,
}


@pytest.mark.parametrize("name", HIDDEN)
def test_what_cannot_be_followed_is_pinned(name: str) -> None:
    """No group remains whose cut would change the network's numbers."""
    model = Between(HIDDEN[name]).eval()
    analysis = analyze_channels(model, EXAMPLE)
    assert analysis.groups == ()
    assert {pin.module for pin in analysis.pins} == {"a", "z"}


def test_an_output_scaled_by_the_width_is_found_by_its_value() -> None:
    """After the last layer nothing is labelled any more, but the number still changes."""

    class Scaled(Between):
        def forward(self, x: Tensor, *others: Tensor) -> Tensor:
            hidden = self.a(x).relu()
            return torch.einsum("bchw->bc", self.z(hidden)) * hidden.shape[1]

    assert analyze_channels(Scaled(lambda x: x).eval(), EXAMPLE).groups == ()


MASKS = {
    "masked_fill": (lambda x, mask: x.masked_fill(mask > 0, -5.0)),
    "where": (lambda x, mask: torch.where(mask > 0, torch.tensor(1.0, dtype=x.dtype), x)),
    "add": (lambda x, mask: x + mask),
    "add_": (lambda x, mask: x.add_(mask)),
    "multiply a shifted one": (lambda x, mask: (x + 1) * mask),
}


@pytest.mark.parametrize("name", MASKS)
def test_an_example_whose_mask_is_empty_does_not_mislead(name: str) -> None:
    """A second input that happens to change nothing in the example may change something elsewhere."""
    model = Between(MASKS[name]).eval()
    empty, full = torch.zeros(1, 1, 16, 16), torch.ones(1, 1, 16, 16)
    analysis = analyze_channels(model, (EXAMPLE, empty))
    plan = oracle.plan_for(analysis, oracle.random_kept(analysis, 0, 0.5))
    assert srr_ext.verify(model, plan, (EXAMPLE, full)) < 1e-9


@pytest.mark.parametrize("where", ["output", "argument", "number"])
def test_numbers_that_are_no_numbers_end_the_search(where: str) -> None:
    """NaN differs from itself; that is no dependence on the width, and no reason to go on for ever."""

    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> Any:
            scores = self.head(self.second(self.first(x).relu()).mean((2, 3)))
            if where == "number":
                return scores, float("nan")
            return torch.log(-1 - scores * 0) if where == "output" else scores * float("nan")

    analysis = srr_ext.analyze_channels(Broken(), torch.randn(1, 1, 8, 8))
    assert {group.name for group in analysis.groups} == {"first", "second"}
