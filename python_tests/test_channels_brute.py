"""Channel analysis against brute force: on narrow layers, every subset of the vertices that a plan may keep is exact.

Random plans can be lucky where an operation counts channels from one end (roll, slices, strides); all plans cannot.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import oracle
import pytest
import torch
from torch import Tensor, nn
from zoo import Net, conv, image, randomise

from srr_ext.channels import analyze_channels

OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "nothing": lambda x: x,
    "flip": lambda x: x.flip(1),
    "roll_1": lambda x: x.roll(1, 1),
    "roll_minus_1": lambda x: x.roll(-1, 1),
    "roll_2": lambda x: x.roll(2, 1),
    "first_two": lambda x: x[:, :2],
    "last_two": lambda x: x[:, -2:],
    "all_but_first": lambda x: x[:, 1:],
    "all_but_last": lambda x: x[:, :-1],
    "every_second": lambda x: x[:, ::2],
    "second": lambda x: x[:, 1:2],
    "last_twice": lambda x: torch.cat([x, x[:, -1:]], 1),
    "first_half": lambda x: x[:, : x.shape[1] // 2],
    "halves_swapped": lambda x: torch.cat(x.tensor_split(2, 1)[::-1], 1),
    "chunks_swapped": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "twice_interleaved": lambda x: x.repeat_interleave(2, 1),
    "twice_and_cut": lambda x: torch.cat([x, x], 1)[:, : x.shape[1] + 1],
    "shifted_sum": lambda x: x + x.roll(1, 1),
    "divided_by_width": lambda x: x / x.shape[1],
    "one_if_wide": lambda x: x * (2.0 if x.shape[1] > 2 else 1.0),
}


@pytest.mark.parametrize(("width", "leading"), [(3, 0), (4, 0), (4, 1), (4, 2), (4, 3), (5, 1)])
@pytest.mark.parametrize("name", list(OPERATIONS))
def test_every_choice_of_vertices_is_exact(name: str, width: int, leading: int) -> None:
    """Keep each non-empty subset of the vertices of a narrow layer, with other layers before it.

    The leading layers only shift whatever random choices the analysis makes for the layer under test.
    """
    operation = OPERATIONS[name]
    widths = operation(torch.zeros(1, width, 1, 1)).shape[1]
    before = nn.Sequential(*[conv(3, 3, 1) for _ in range(leading)])
    net: nn.Module = Net(
        lambda m, x: m.z(operation(m.a(m.before(x)).relu())), before=before, a=conv(3, width), z=conv(widths, 5)
    )
    randomise(net, width)
    example = image(size=4, batch=1)
    analysis = analyze_channels(net.eval(), example)
    for group in analysis.groups:
        if not any(member.module == "a" and member.side == "out" for member in group.members):
            continue
        for count in range(1, group.size + 1):
            for kept in itertools.combinations(range(group.size), count):
                plan = oracle.plan_for(analysis, {group.name: np.array(kept)})
                error = oracle.exactness(net, plan, example)
                assert error < oracle.CONTRACT, f"keeping {kept} of {group.size}: relative error {error:.1e}"


@pytest.mark.parametrize(
    "names", [("roll_1", "flip"), ("flip", "roll_1"), ("halves_swapped", "roll_2"), ("roll_1", "roll_minus_1")]
)
def test_every_choice_in_a_residual_block_is_exact(names: tuple[str, str]) -> None:
    """The same for two operations on either side of an addition, where the vertices are shared."""
    first, second = (OPERATIONS[name] for name in names)
    net: nn.Module = Net(
        lambda m, x: m.z(first(y := m.a(x).relu()) + second(m.b(y))), a=conv(3, 4), b=conv(4, 4), z=conv(4, 5)
    )
    randomise(net, 1)
    example = image(size=4, batch=1)
    analysis = analyze_channels(net.eval(), example)
    sizes = [group.size for group in analysis.groups]
    for masks in itertools.product(*(range(1, 2**size) for size in sizes)):
        kept = {
            group.name: np.array([v for v in range(group.size) if mask >> v & 1])
            for group, mask in zip(analysis.groups, masks, strict=True)
        }
        error = oracle.exactness(net, oracle.plan_for(analysis, kept), example)
        assert error < oracle.CONTRACT, f"keeping {kept}: relative error {error:.1e}"
