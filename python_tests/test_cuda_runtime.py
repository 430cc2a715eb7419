"""The ops as good citizens of torch: opcheck, repeats, streams, captured graphs, torch.compile, several GPUs."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from graph_cases import median_gamma, random_graph
from torch import Tensor

from srr_ext import _native, ops
from srr_ext.ops import FilterGraphs

pytestmark = pytest.mark.skipif(not _native.AVAILABLE, reason="built with SRR_BUILD=none: no ops are registered")

SHAPES = ((300, 72), (129, 4, 3, 3), (64, 577), (1, 9), (0, 5))
N_FILTERS = [shape[0] for shape in SHAPES]


def make_weights(device: torch.device, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(device) for shape in SHAPES]


def evaluate(weights: list[Tensor], gammas: list[float], order: Tensor) -> tuple[Tensor, ...]:
    """Every raw op once, each on what the one before it made; two levels of gamma."""
    ops_ = torch.ops.srr_ext
    words, kinds = ops_.filter_graphs(weights, gammas)
    sizes = N_FILTERS * 2
    values = ops_.trajectories(words, sizes, torch.cat([order, order]), sizes, 0.35, 0.65)
    return (
        words,
        kinds,
        ops_.components(words, sizes),
        ops_.covering(words, sizes, 1),
        ops_.covering(words, sizes, 2),
        values,
    )


def make_arguments(device: torch.device, seed: int = 0) -> tuple[list[Tensor], list[float], Tensor]:
    weights = make_weights(device, seed)
    gammas = [factor * median_gamma(w.cpu()) for factor in (0.97, 1.0) for w in weights]
    generator = torch.Generator().manual_seed(seed)
    order = torch.cat([torch.randperm(n, generator=generator) for n in N_FILTERS]).to(device)
    return weights, gammas, order


def assert_same(got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    assert len(got) == len(expected)
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(got, expected, strict=True))


CPU = torch.device("cpu")


def test_every_device_gives_the_answers_of_the_cpu(device):
    assert_same(evaluate(*make_arguments(device)), evaluate(*make_arguments(CPU)))


def test_opcheck(device):
    weights, gammas, order = make_arguments(device)
    words = FilterGraphs.from_dense([random_graph(n, 0.1, n) for n in N_FILTERS]).words.to(device)
    for op, arguments in {
        "filter_graphs": (weights, gammas),
        "components": (words, N_FILTERS),
        "covering": (words, N_FILTERS, 2),
        "trajectories": (words, N_FILTERS, order, [40, 129, 0, 1, 0], 0.35, 0.65),
    }.items():
        torch.library.opcheck(getattr(torch.ops.srr_ext, op).default, arguments)


def test_repeats_give_the_same_bits(device):
    arguments = make_arguments(device)
    first = evaluate(*arguments)
    for _ in range(100 if device.type == "cuda" else 3):
        assert_same(evaluate(*arguments), first)


def test_compiled_functions_call_the_ops(device):
    weights, gammas, order = make_arguments(device)

    def measure(weights: list[Tensor], order: Tensor) -> tuple[Tensor, Tensor]:
        _, kinds, components, upper, lower, values = evaluate([w * 2 for w in weights], gammas, order)
        return 7 * components + 13 * (upper + lower), values[: len(kinds)] * 2  # exact, however they are compiled

    expected = measure(weights, order)
    backends = ["aot_eager", "inductor"] if device.type == "cuda" else ["aot_eager"]
    for backend in backends:
        torch.compiler.reset()
        assert_same(torch.compile(measure, fullgraph=True, backend=backend)(weights, order), expected)


def test_answers_have_no_gradient_and_live_with_their_weights(device):
    weights = [torch.nn.Parameter(w) for w in make_weights(device)]
    words, kinds = torch.ops.srr_ext.filter_graphs(weights, [0.1] * len(weights))
    for tensor in (words, kinds):
        assert not tensor.requires_grad and tensor.device == weights[0].device


@pytest.mark.cuda
def test_the_raw_ops_never_wait_for_the_device(cuda):
    """Neither by torch's count, nor by the clock: they return while the stream is still asleep."""
    arguments = make_arguments(cuda)
    evaluate(*arguments)  # memory is allocated and kernels are loaded now
    torch.cuda.synchronize()
    asleep = torch.cuda.Event()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(2_000_000_000)  # about a second
        asleep.record()
        evaluate(*arguments)
        returned_early = not asleep.query()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert returned_early


@pytest.mark.cuda
def test_another_stream_is_used_alone(cuda):
    """Weights made on a side stream are read there, after they are made; the default stream sleeps all the while."""
    weights, gammas, order = make_arguments(cuda)
    expected = evaluate(*make_arguments(CPU))
    stale = [torch.zeros_like(weight) for weight in weights]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        evaluate(stale, gammas, order)  # memory of this stream
    torch.cuda.synchronize()
    default_done, side_done = torch.cuda.Event(), torch.cuda.Event()
    torch.cuda._sleep(4_000_000_000)
    default_done.record()
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)  # an op that did not wait for this stream would see the stale weights
        for old, new in zip(stale, weights, strict=True):
            old.copy_(new)
        got = evaluate(stale, gammas, order)
        for old in stale:
            old.zero_()  # nor may it read them later
        side_done.record()
    side_done.synchronize()
    assert not default_done.query()
    torch.cuda.synchronize()
    assert_same(got, expected)


@pytest.mark.cuda
@pytest.mark.parametrize("change", ["contiguous", "channels_last", "half"])
def test_captured_calls_follow_the_weights(cuda, change):
    """Capture once, then put other weights in the same place and replay."""
    convert: Callable[[Tensor], Tensor] = {
        "contiguous": lambda w: w,
        "channels_last": lambda w: w.contiguous(memory_format=torch.channels_last) if w.dim() == 4 else w,
        "half": lambda w: w.half(),
    }[change]
    weights, gammas, order = make_arguments(cuda)
    static = [convert(weight).clone(memory_format=torch.preserve_format) for weight in weights]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        evaluate(static, gammas, order)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = evaluate(static, gammas, order)
    for seed in (1, 2, 0):
        new = make_weights(cuda, seed)
        for old, weight in zip(static, new, strict=True):
            old.copy_(weight)
        graph.replay()
        assert_same(got, evaluate([convert(weight) for weight in new], gammas, order))
    assert_same(got, evaluate([w.cpu() for w in static], gammas, order.cpu()))


@pytest.mark.cuda
def test_a_gpu_that_is_not_the_current_one(cuda):
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device only")
    second = torch.device("cuda:1")
    torch.cuda.set_device(0)
    got = evaluate(*make_arguments(second))
    assert torch.cuda.current_device() == 0 and all(tensor.device == second for tensor in got)
    assert_same(got, evaluate(*make_arguments(CPU)))


@pytest.mark.cuda
def test_memory_is_given_back(cuda):
    arguments = make_arguments(cuda)
    evaluate(*arguments)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(20):
        evaluate(*arguments)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before


@pytest.mark.cuda
def test_the_checked_ops_wait_once(cuda):
    """filter_graphs reads the kinds back to refuse what is not finite; nothing else is read."""
    weights = make_weights(cuda)
    ops.filter_graphs(weights, 0.1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            graphs = ops.filter_graphs(weights, 0.1)
            ops.components(graphs)
            ops.covering(graphs, 1)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [warning for warning in caught if "called a synchronizing CUDA operation" in str(warning.message)]
    assert len(waits) <= 1, [str(warning.message) for warning in waits]
