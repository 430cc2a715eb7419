"""Which weights stay, against a stable sort of all of them; exact numbers, ties, and patterns that torch can hold."""

from __future__ import annotations

import importlib
import itertools
import subprocess
import sys
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

from srr_ext.sparsity import Masks, choose, layer_counts, n_of_m, parse_scope, transposed_weights

SHAPES = st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple), min_size=1, max_size=4)
VALUES = {  # many ties, signed zeros, and numbers next to each other
    torch.float32: [0.0, -0.0, 1.0, float(np.nextafter(np.float32(1), np.float32(2))), -2.0, 1e-45, 3.4e38],
    torch.float64: [0.0, -0.0, 1.0, float(np.nextafter(1.0, 2.0)), 0.1, float(np.float32(0.1)), -1e300],
    torch.float16: [0.0, -0.0, 1.0, 6e-8, 65504.0, -1.0],
    torch.bfloat16: [0.0, -0.0, 1.0, 1.0078125, -1.0],
}


@st.composite
def problems(draw: st.DrawFn) -> tuple[dict[str, Tensor], Masks]:
    """Scores of small tensors, each of a type of its own, and what is alive."""
    scores, alive = {}, {}
    for i, shape in enumerate(draw(SHAPES)):
        dtype = draw(st.sampled_from(list(VALUES)))
        size = int(np.prod(shape))
        values = draw(st.lists(st.sampled_from(VALUES[dtype]), min_size=size, max_size=size))
        scores[f"t{i}.weight"] = torch.tensor(values, dtype=torch.float64).to(dtype).reshape(shape)
        there = draw(st.one_of(st.just([True] * size), st.lists(st.booleans(), min_size=size, max_size=size)))
        alive[f"t{i}.weight"] = torch.tensor(there).reshape(shape)
    return scores, Masks(alive)


def sorted_choice(scores: dict[str, Tensor], alive: Masks, keep: int) -> dict[str, list[bool]]:
    """Sort every living weight by score, the first of equals first, and keep the first so many."""
    living = [
        (-float(score), t, i)
        for t, name in enumerate(scores)
        for i, (score, there) in enumerate(zip(scores[name].flatten(), alive[name].flatten(), strict=True))
        if there
    ]
    stay = {(t, i) for _, t, i in sorted(living)[:keep]}
    return {name: [(t, i) in stay for i in range(scores[name].numel())] for t, name in enumerate(scores)}


def flat(masks: Masks) -> dict[str, list[bool]]:
    return {name: mask.flatten().tolist() for name, mask in masks.items()}


@settings(max_examples=150, deadline=None)
@given(problems())
def test_global_is_a_stable_sort_of_everything_for_every_number(problem: tuple[dict[str, Tensor], Masks]) -> None:
    scores, alive = problem
    before = {name: score.clone() for name, score in scores.items()}
    for keep in range(alive.kept + 1):
        chosen = choose(scores, alive, keep)
        assert chosen.kept == keep
        assert flat(chosen) == sorted_choice(scores, alive, keep)
        assert list(chosen) == list(scores)
        assert all(chosen[name].shape == score.shape for name, score in scores.items())
    assert all(torch.equal(before[name].signbit(), score.signbit()) for name, score in scores.items())
    assert all(torch.equal(before[name], score) for name, score in scores.items())


@settings(max_examples=100, deadline=None)
@given(problems())
def test_layerwise_is_a_stable_sort_of_each_tensor(problem: tuple[dict[str, Tensor], Masks]) -> None:
    scores, alive = problem
    for keep in range(alive.kept + 1):
        chosen = choose(scores, alive, keep, "layerwise")
        assert chosen.kept == keep
        for name, score in scores.items():
            alone = sorted_choice({name: score}, Masks({name: alive[name]}), chosen.counts[name])
            assert flat(chosen)[name] == alone[name]


@settings(max_examples=60, deadline=None)
@given(problems(), st.sampled_from(["global", "layerwise"]), st.data())
def test_choosing_again_from_what_is_left_is_nested_and_the_same_as_at_once(
    problem: tuple[dict[str, Tensor], Masks], scope: str, data: st.DataObject
) -> None:
    scores, alive = problem
    keep, masks = alive.kept, alive
    for _ in range(3):
        keep = data.draw(st.integers(0, keep))
        less = choose(scores, masks, keep, scope)
        assert less.kept == keep
        assert all(not bool((less[name] & ~masks[name]).any()) for name in less)
        masks = less
    if scope == "global":
        assert masks == choose(scores, alive, keep)


def shared_out(sizes: list[int], alive: list[int], keep: int) -> list[int]:
    """Hare quotas with largest remainders, in fractions; who has less than it is due leaves first, one at a time."""
    counts: dict[int, int] = {}
    while True:
        waiting = [i for i in range(len(sizes)) if i not in counts]
        rest = keep - sum(counts.values())
        size = sum(sizes[i] for i in waiting)
        due = {i: Fraction(rest * sizes[i], size) if size else Fraction(0) for i in waiting}
        short = [i for i in waiting if due[i] > alive[i]]
        if not short:
            break
        worst = min(short, key=lambda i: Fraction(alive[i], sizes[i]))
        counts[worst] = alive[worst]
    counts |= {i: int(quota) for i, quota in due.items()}
    by_remainder = sorted(due, key=lambda i: (int(due[i]) - due[i], i))
    for i in by_remainder[: keep - sum(counts.values())]:
        counts[i] += 1
    return [counts[i] for i in range(len(sizes))]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=6), st.data())
def test_layer_counts_are_largest_remainders(pairs: list[tuple[int, int]], data: st.DataObject) -> None:
    sizes, alive = [size for size, _ in pairs], [min(pair) for pair in pairs]
    keep = data.draw(st.integers(0, sum(alive)))
    counts = layer_counts(sizes, alive, keep)
    assert sum(counts) == keep
    assert all(0 <= count <= there for count, there in zip(counts, alive, strict=True))
    assert counts == shared_out(sizes, alive, keep)


@settings(deadline=None)
@given(st.lists(st.integers(1, 200), min_size=1, max_size=8), st.data())
def test_with_everything_alive_each_tensor_is_within_one_weight_of_its_share(
    sizes: list[int], data: st.DataObject
) -> None:
    keep = data.draw(st.integers(0, sum(sizes)))
    for size, count in zip(sizes, layer_counts(sizes, sizes, keep), strict=True):
        assert abs(Fraction(keep * size, sum(sizes)) - count) < 1


def test_equal_scores_keep_the_first_in_order_of_tensors() -> None:
    scores = {"b": torch.ones(2, 2), "a": torch.ones(3)}
    assert flat(choose(scores, Masks.ones(scores), 5)) == {"b": [True] * 4, "a": [True, False, False]}
    backwards = Masks({"a": torch.ones(3, dtype=torch.bool), "b": torch.ones(2, 2, dtype=torch.bool)})
    assert choose(scores, backwards, 5) == choose(scores, Masks.ones(scores), 5)


def test_many_ties_across_the_pieces_that_are_looked_at_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a tensor is longer than a piece: the same as a stable sort, for every number."""
    monkeypatch.setattr(importlib.import_module("srr_ext.sparsity.choose"), "_PIECE", 7)
    scores = {"a": torch.randint(3, (5, 9)).float(), "b": torch.randint(3, (20,)).float()}
    alive = Masks({name: torch.rand(score.shape) < 0.8 for name, score in scores.items()})
    for keep in range(alive.kept + 1):
        assert flat(choose(scores, alive, keep)) == sorted_choice(scores, alive, keep)


def test_scores_may_lie_anywhere_in_memory(device: torch.device) -> None:
    scores = {"a": torch.rand(4, 8, 3, 3), "b": torch.rand(6, 5)}
    elsewhere = {
        "a": scores["a"].to(device, memory_format=torch.channels_last).requires_grad_(),
        "b": scores["b"].to(device).T.clone().T,
    }
    alive = Masks.ones(scores)
    for scope, keep in (("global", 100), ("layerwise", 100)):
        assert choose(elsewhere, alive, keep, scope) == choose(scores, alive, keep, scope)
    assert n_of_m({"a": elsewhere["a"]}, Masks({"a": alive["a"]}), 2, 4) == n_of_m(
        {"a": scores["a"]}, Masks({"a": alive["a"]}), 2, 4
    )


PATTERNS = [(1, 2), (2, 4), (1, 4), (3, 4), (4, 8), (1, 16)]


@pytest.mark.parametrize(("n", "m"), PATTERNS)
@pytest.mark.parametrize("kind", ["linear", "conv1d", "conv2d", "conv3d", "grouped", "transposed"])
def test_every_group_of_inputs_keeps_the_n_largest(kind: str, n: int, m: int) -> None:
    """Group by group, in plain Python, at each position of the kernel; ties keep the first."""
    layer: Any = {
        "linear": lambda: nn.Linear(2 * m, 3), "conv1d": lambda: nn.Conv1d(m, 3, 2),
        "conv2d": lambda: nn.Conv2d(2 * m, 3, (2, 3)), "conv3d": lambda: nn.Conv3d(m, 2, (1, 2, 2)),
        "grouped": lambda: nn.Conv2d(2 * m, 4, 2, groups=2), "transposed": lambda: nn.ConvTranspose2d(2 * m, 3, 2),
    }[kind]()  # fmt: skip
    score = torch.randint(4, layer.weight.shape).float()
    alive = Masks({"weight": torch.rand(score.shape) < 0.7})
    chosen = n_of_m({"weight": score}, alive, n, m, transposed=transposed_weights(layer))["weight"]
    side = 0 if kind == "transposed" else 1
    groups = 0
    rest = [range(extent) for d, extent in enumerate(score.shape) if d != side]
    for place in itertools.product(*rest):
        row = [score[(*place[:side], i, *place[side:])].item() for i in range(score.shape[side])]
        there = [bool(alive["weight"][(*place[:side], i, *place[side:])]) for i in range(score.shape[side])]
        got = [bool(chosen[(*place[:side], i, *place[side:])]) for i in range(score.shape[side])]
        for begin in range(0, len(row), m):
            order = sorted((i for i in range(begin, begin + m) if there[i]), key=lambda i: (-row[i], i))
            assert [i for i in range(begin, begin + m) if got[i]] == sorted(order[:n])
            groups += 1
    assert groups == score.numel() // m


def test_with_everything_alive_exactly_n_of_m_stay() -> None:
    score = {"weight": torch.zeros(5, 12, 3, 3)}
    chosen = choose(score, Masks.ones(score), None, "2:4")
    assert chosen.kept == chosen.total // 2
    assert chosen["weight"].unflatten(1, (3, 4)).sum(2).eq(2).all()
    assert chosen["weight"][:, [0, 1, 4, 5, 8, 9]].all()
    assert choose(score, Masks.ones(score), chosen.kept, "2:4") == chosen
    assert choose(score, chosen, None, "2:4") == chosen
    with pytest.raises(ValueError, match="with scope '2:4' 270 weights stay, not 5"):
        choose(score, Masks.ones(score), 5, "2:4")


def test_n_of_m_is_the_same_as_a_stable_sort_for_wide_groups() -> None:
    score = torch.randint(9, (4, 600)).float()
    chosen = n_of_m({"w": score}, Masks.ones({"w": score}), 123, 300)["w"]
    order = score.unflatten(1, (2, 300)).sort(dim=-1, descending=True, stable=True).indices[..., :123]
    wanted = torch.zeros(4, 2, 300, dtype=torch.bool).scatter_(2, order, True).flatten(1)
    assert torch.equal(chosen, wanted)


def test_tensors_that_m_does_not_divide_stay_as_they_are_and_are_named() -> None:
    scores = {
        "stem.weight": torch.rand(8, 3, 3, 3),
        "deep.weight": torch.rand(8, 1, 3, 3),
        "fc.weight": torch.rand(3, 8),
    }
    alive = Masks({name: torch.rand(score.shape) < 0.8 for name, score in scores.items()})
    with pytest.warns(UserWarning, match=r"4 does not divide the inputs of stem\.weight, deep\.weight; left"):
        chosen = n_of_m(scores, alive, 2, 4)
    assert torch.equal(chosen["stem.weight"], alive["stem.weight"])
    assert torch.equal(chosen["deep.weight"], alive["deep.weight"])
    assert chosen["fc.weight"].unflatten(1, (2, 4)).sum(2).le(2).all()


@pytest.mark.parametrize(("dtype", "scope"), [(torch.float16, "2:4"), (torch.bfloat16, "2:4"), (torch.float32, "1:2")])
@pytest.mark.parametrize("shape", [(32, 32), (32, 128), (96, 64)])
def test_masks_fit_torch_s_semi_structured_format(shape: tuple[int, int], dtype: torch.dtype, scope: str) -> None:
    """What torch packs are just the weights that were kept, and it unpacks them; without masks it loses some."""
    layer = nn.Linear(shape[1], shape[0]).to(dtype)
    dense = layer.weight.detach().clone()
    masks = choose({"weight": dense.abs()}, Masks.ones({"weight": dense}), None, scope)
    masks.apply(layer)
    sparse, meta = sparse_semi_structured_from_dense_cutlass(layer.weight.detach())
    assert torch.equal(sparse, dense[masks["weight"]].view(shape[0], shape[1] // 2))
    again = sparse_semi_structured_to_dense_cutlass(sparse, meta)
    if dtype == torch.float32:  # unpacked as halves, of which those that happen to be NaN change a bit
        torch.testing.assert_close(again, layer.weight.detach(), rtol=1e-2, atol=0)
    else:
        assert torch.equal(again, layer.weight)
    unmasked, meta = sparse_semi_structured_from_dense_cutlass(dense)
    assert not torch.allclose(sparse_semi_structured_to_dense_cutlass(unmasked, meta), dense)


@pytest.mark.parametrize("text", ["2:4", "1:2", "4:8", "1:300"])
def test_a_scope_is_parsed(text: str) -> None:
    n, m = parse_scope(text)
    assert text == f"{n}:{m}"
    assert parse_scope("global") == "global" and parse_scope("layerwise") == "layerwise"


@pytest.mark.parametrize("text", ["", "Global", "layer", "2:4:8", "2:", ":4", "2 :4", "-1:4", "2.0:4", "٢:٤"])
def test_what_is_no_scope_is_refused_with_those_there_are(text: str) -> None:
    with pytest.raises(ValueError, match="scope must be global, layerwise or N:M such as 2:4, got"):
        parse_scope(text)


@pytest.mark.parametrize("text", ["0:4", "4:4", "5:4", "0:0"])
def test_patterns_that_keep_all_or_nothing_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="1 <= N < M"):
        parse_scope(text)
    n, m = map(int, text.split(":"))
    with pytest.raises(ValueError, match="1 <= N < M"):
        n_of_m({"w": torch.ones(4, 4)}, Masks.ones({"w": torch.ones(4, 4)}), n, m)


@pytest.mark.parametrize("scope", ["global", "layerwise", "1:2"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_not_finite_are_refused_by_name(bad: float, scope: str) -> None:
    scores = {"good": torch.ones(4, 2), "bad.weight": torch.ones(4, 2)}
    scores["bad.weight"][3, 1] = bad
    with pytest.raises(ValueError, match=r"those of 'bad\.weight' are not all finite"):
        choose(scores, Masks.ones(scores), 3, scope)


ONE = {"w": torch.ones(2, 2)}


@pytest.mark.parametrize(
    ("scores", "keep", "error"),
    [
        (ONE, 5, r"keep must be in \[0, 4\], the weights that are there, got 5"),
        (ONE, -1, r"keep must be in \[0, 4\]"),
        (ONE, None, "expected the number of weights that stay, got None"),
        (ONE, 2.0, r"expected the number of weights that stay, got 2\.0"),
        ({}, 1, "there are none of 'w', which is masked"),
        (ONE | {"v": torch.ones(2)}, 1, "there is no mask of 'v', which is scored"),
        ({"w": torch.ones(4)}, 1, r"'w' has scores of shape \[4\] for weights of \[2, 2\]"),
        ({"w": torch.ones(2, 2, dtype=torch.int64)}, 1, r"a floating-point tensor for 'w', got torch\.int64"),
        ({"w": np.ones((2, 2))}, 1, "a floating-point tensor for 'w', got ndarray"),
    ],
)
def test_what_does_not_fit_is_refused(scores: Any, keep: Any, error: str) -> None:
    for scope in ("global", "layerwise"):
        with pytest.raises((TypeError, ValueError), match=error):
            choose(scores, Masks.ones(ONE), keep, scope)
    with pytest.raises(ValueError, match="keep must be in"):
        layer_counts([4], [3], 4)


MEASURE = """
import resource, sys, torch
from srr_ext.sparsity import Masks, choose
scores = {"a": torch.rand(20_000, 1_000), "b": torch.ones(4_000, 1_000)}
alive = Masks.ones(scores)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert choose(scores, alive, int(sys.argv[2]), sys.argv[1]).kept in (int(sys.argv[2]), alive.total // 2)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.parametrize(("scope", "keep"), [("global", "2000000"), ("layerwise", "2000000"), ("2:4", "12000000")])
def test_memory_beside_the_scores_is_about_one_copy_of_them(scope: str, keep: str) -> None:
    """24 million weights take 96 MB as float32; indices or a copy as float64 alone would be 192 MB."""
    done = subprocess.run([sys.executable, "-c", MEASURE, scope, keep], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1.9 * 96e6
