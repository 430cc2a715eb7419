"""Approximated oracle filter pruning against masked forward passes written out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from criteria_nets import CASES, CLASSES, Case, close, make_case
from torch import Tensor, nn
from zoo import conv

from srr_ext.calibration import Calibration
from srr_ext.criteria import SelectorContext, get_selector
from srr_ext.criteria.aofp import AOFP, aofp, ordered_importance

# From images and factors of the vertices of a group, 1 or 0, to what the layers behind it make of them.
Reader = Callable[[Tensor, Tensor], list[Tensor]]


def search(case: Case, number: int, read: Reader, steps: int, halvings: int = 64, seed: int = 0) -> np.ndarray:
    """Score one group as documented, one mask at a time."""
    size = case.groups[number].size
    generator = case.context(seed).generator("aofp", case.groups[number].name)
    space, keys = list(range(size)), {v: (0, 0.0) for v in range(size)}
    halving = 0
    while len(space) > 1 and halving < halvings:
        damages: dict[int, list[float]] = {v: [] for v in space}
        for step in range(steps):
            masked = generator.choice(np.array(space), len(space) // 2, replace=False).tolist()
            images = case.batches[(halving * steps + step) % len(case.batches)][0]
            factor = torch.ones(size, dtype=torch.float64)
            with torch.no_grad():
                base = read(images, factor)
                factor[masked] = 0
                ablated = read(images, factor)
            numerator = sum(((a - b) ** 2).sum().item() for a, b in zip(base, ablated, strict=True))
            for v in masked:
                damages[v].append(numerator / sum((a**2).sum().item() for a in base))
        known = {v: sum(d) / len(d) for v, d in damages.items() if d}
        order = sorted(space, key=lambda v: (known.get(v, math.inf), v))
        for place, v in enumerate(order):
            stays = place < len(space) // 2
            keys[v] = (-(halving + stays), known.get(v, max(known.values())))
        space, halving = sorted(order[: len(space) // 2]), halving + 1
    importance, value = np.zeros(size), -np.inf
    for v in sorted(range(size), key=lambda v: keys[v]):
        value = max(keys[v][1], np.nextafter(value, np.inf))
        importance[v] = value
    return importance


def chain() -> tuple[Case, list[Reader]]:
    """A convolution with normalisation behind it reads the first group, a flattening linear layer the second."""
    net = nn.Sequential(
        conv(3, 6), nn.ReLU(True), conv(6, 9, bias=False), nn.BatchNorm2d(9), nn.ReLU(True), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(36, CLASSES),
    )  # fmt: skip
    case = make_case(net, (3, 4, 4), {"0": "0", "2": "3"})
    first: Reader = lambda x, f: [net[2:4](net[:2](x) * f[:, None, None])]  # noqa: E731
    second: Reader = lambda x, f: [net[6:](net[:6](x) * f[:, None, None])]  # noqa: E731
    return case, [first, second]


@pytest.mark.parametrize(
    "options", [{"steps": 5}, {"steps": 1}, {"steps": 4, "halvings": 2}, {"steps": 7, "halvings": 1}]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_scores_are_those_of_masked_passes(options: dict[str, int], seed: int) -> None:
    case, readers = chain()
    scores = AOFP(**options)(case.groups, case.context(seed))
    for i, read in enumerate(readers):
        close(scores[i], search(case, i, read, seed=seed, **options))


def test_several_layers_that_read_a_stream_count_together_before_additions() -> None:
    case = CASES["residual"]()
    m = case.model
    names = [group.name for group in case.groups]

    def stream(x: Tensor, f: Tensor) -> list[Tensor]:
        f = f[:, None, None]
        first = m.n(m.stem(x)).relu()
        second = (m.nb1(m.b1(m.na1(m.a1(first)).relu())) + first).relu()
        third = (m.nb2(m.b2(m.na2(m.a2(second)).relu())) + second).relu()
        return [m.na1(m.a1(first * f)), m.na2(m.a2(second * f)), m.head((third * f).mean((2, 3)))]

    def inside(x: Tensor, f: Tensor) -> list[Tensor]:
        return [m.nb1(m.b1(m.na1(m.a1(m.n(m.stem(x)).relu())).relu() * f[:, None, None]))]

    scores = AOFP(steps=4)(case.groups, case.context())
    for name, read in {"stem": stream, "a1": inside}.items():
        close(scores[names.index(name)], search(case, names.index(name), read, 4))


def test_layers_that_pass_channels_on_are_skipped_and_concatenations_taken_apart() -> None:
    """Both groups are read by the same two layers, behind a depthwise convolution."""
    case = CASES["branches"]()
    m = case.model

    def read(x: Tensor, f: Tensor, place: slice) -> list[Tensor]:
        factor = torch.ones(9, dtype=torch.float64)
        factor[place] = f
        y = torch.cat([m.a(x), m.n(m.b(x))], 1).relu()
        return [m.down(m.deep(y) * factor[:, None, None]), m.side(y * factor[:, None, None])]

    scores = AOFP(steps=4)(case.groups, case.context())
    for i, place in enumerate((slice(0, 4), slice(4, 9))):
        close(scores[i], search(case, i, lambda x, f, place=place: read(x, f, place), 4))


def test_every_call_of_a_shared_layer_counts() -> None:
    case = CASES["shared_and_normalised"]()
    m = case.model
    assert [group.name for group in case.groups] == ["stem"]  # it meets what the shared layer makes

    def read(x: Tensor, f: Tensor) -> list[Tensor]:
        made, x = [], m.stem(x).relu()
        for _ in range(3):
            made.append(m.n(m.again(x * f[:, None, None])))
            x = m.n(m.again(x)).relu()
        return [*made, m.head((x * f[:, None, None]).amax((2, 3)))]

    close(AOFP(steps=5)(case.groups, case.context())[0], search(case, 0, read, 5))


def test_one_pass_is_the_mean_damage_of_random_halves() -> None:
    """With many masks it comes near the mean over all of them."""
    case, readers = chain()
    scores = AOFP(steps=3000, halvings=1)(case.groups[:1], case.context())[0]
    want = np.zeros(6)
    halves = list(itertools.combinations(range(6), 3))
    with torch.no_grad():
        for (images, _), half in itertools.product(case.batches, halves):
            factor = torch.ones(6, dtype=torch.float64)
            base = readers[0](images, factor)[0]
            factor[list(half)] = 0
            want[list(half)] += ((base - readers[0](images, factor)[0]) ** 2).sum().item() / (base**2).sum().item()
    close(scores, want / (len(halves) / 2 * len(case.batches)), rtol=0.05)
    close(get_selector("aofp_one_pass:steps=3000")(case.groups[:1], case.context())[0], scores)


def test_what_the_next_layer_ignores_goes_first_and_what_it_needs_last() -> None:
    case, _ = chain()
    case.model[2].weight.data[:, 2] = 0
    case.model[2].weight.data[:, 4] *= 3
    for select in (AOFP(steps=300), AOFP(steps=300, halvings=1)):  # in few masks it matters who else was masked
        score = select(case.groups[:1], case.context())[0]
        assert score.argmin() == 2 and score.argmax() == 4
    assert AOFP(steps=300)(case.groups[:1], case.context())[0][2] == 0


def test_outputs_that_are_zero_are_no_damage() -> None:
    case, _ = chain()
    case.model[2].weight.data.zero_()
    case.model[3].bias.data.zero_()
    case.model[3].running_mean.zero_()
    scores = aofp(case.groups, case.context())
    assert bool(scores[0].isfinite().all()) and scores[0].max() < 1e-300


def test_a_group_that_nothing_reads_in_evaluation_is_named() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.z, self.aux = conv(3, 4), conv(3, 6), conv(4, 5), conv(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            y = self.z(self.a(x).relu())
            return y + self.aux(self.b(x).relu()) if self.training else y

    case = make_case(Auxiliary(), (3, 4, 4), {"a": "a", "b": "b"})
    with pytest.warns(UserWarning, match="aofp: no layer that reads group b runs; its scores are 0"):
        scores = aofp(case.groups, case.context())
    assert scores[0].min() > 0 and scores[1].max() < 1e-300


def test_importance_has_exactly_the_order_of_both_numbers() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        left = generator.integers(0, 4, 40)
        damage = generator.choice([0, 1e-300, 0.1, 0.1 + 1e-17, 0.3, np.nextafter(0.3, 1), 1e300], 40)
        importance = ordered_importance(left, damage)
        assert np.isfinite(importance).all() and (importance >= damage).all()
        for i, j in itertools.combinations(range(40), 2):
            one, other = (-left[i], damage[i]), (-left[j], damage[j])
            assert (importance[i] < importance[j]) == (one < other)
            assert (importance[i] == importance[j]) == (one == other)
    damage = generator.normal(size=9) ** 2
    assert np.array_equal(ordered_importance(np.zeros(9, dtype=int), damage), damage)


def test_options() -> None:
    assert get_selector("aofp:steps=3,halvings=2") == AOFP(3, 2)
    assert get_selector("aofp_one_pass").halvings == 1
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        AOFP(steps=0)
    with pytest.raises(ValueError, match="halvings must be at least 1, got -1"):
        get_selector("aofp:halvings=-1")


def test_other_groups_do_not_matter() -> None:
    case, _ = chain()
    both = aofp(case.groups, case.context())
    assert torch.equal(aofp(case.groups[1:], case.context())[0], both[1])


def test_the_same_on_any_device(device: torch.device) -> None:
    case = CASES["branches"]()
    want = aofp(case.groups, case.context())
    moved = SelectorContext(case.model.to(device), case.batches[0][0].to(device), data=Calibration(case.batches))
    for a, b in zip(want, aofp(case.groups, moved), strict=True):
        close(b, a)


def test_progress_says_how_far_it_is() -> None:
    """As many steps as there are passes over the model."""

    class Counted:
        def __init__(self) -> None:
            self.total, self.done = 0, 0

        def stage(self, name: str, total: int) -> Counted:
            self.total = total
            return self

        def __enter__(self) -> Callable[..., None]:
            return lambda n=1, note="": setattr(self, "done", self.done + n)

        def __exit__(self, *error: object) -> None: ...

    case, _ = chain()
    for steps in (1, 2, 3, 5):
        counted = Counted()
        AOFP(steps)(case.groups, case.context(progress=counted))
        assert counted.done == counted.total == 3 * min(steps, 3)  # 9 channels are halved three times
