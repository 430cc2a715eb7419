"""Channel analysis and surgery on the zoo and on random networks: exact or pinned with a reason, never wrong."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import oracle
import pytest
import torch
import zoo
from random_nets import random_net
from torch import nn

from srr_ext.channels import analyze_channels

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)

ZOO = zoo.load()
PLANS = ((0, 0.5), (1, 0.25), (2, 0.75))  # seed and fraction of each group's vertices that go
FUZZ_CASES = int(os.environ.get("SRR_FUZZ_CASES", "40"))
FUZZ_START = int(os.environ.get("SRR_FUZZ_START", "0"))
every_entry = pytest.mark.parametrize("name", sorted(ZOO))


def prunable_channels(analysis: Any) -> dict[str, set[int]]:
    """Return, for each producer, the output channels that plans may remove."""
    found: dict[str, set[int]] = {}
    for group in analysis.groups:
        for member in group.members:
            if member.side == "out" and member.role == "producer":
                found.setdefault(member.module, set()).update(np.flatnonzero(np.asarray(member.vertex) >= 0).tolist())
    return found


def classes(analysis: Any, module: str, side: str = "out") -> dict[str, list[list[int]]]:
    """Return, for each group with a hold on one side of a module, its vertices as lists of channel indices."""
    found: dict[str, list[list[int]]] = {}
    for group in analysis.groups:
        for member in group.members:
            if member.module == module and member.side == side:
                vertex = np.asarray(member.vertex)
                found[group.name] = [np.flatnonzero(vertex == v).tolist() for v in range(group.size)]
    return found


def check_records(model: nn.Module, analysis: Any) -> None:
    """Check that the records of an analysis agree with each other and with the model."""
    modules = dict(model.named_modules(remove_duplicate=False))
    names = [group.name for group in analysis.groups]
    assert len(set(names)) == len(names)
    claimed: dict[tuple[str, str], np.ndarray] = {}
    for group in analysis.groups:
        assert group.size >= 1
        assert group.producers, f"group {group.name} has no producer"
        assert group.name == group.producers[0].module
        seen: set[int] = set()
        roles = [("producer", "follower", "consumer").index(member.role) for member in group.members]
        assert roles == sorted(roles), f"members of {group.name} are out of order"
        for member in group.members:
            assert member.module in modules, member.module
            vertex = np.asarray(member.vertex)
            layer = analysis.layers[member.module]
            assert vertex.shape == ((layer.n_out,) if member.side == "out" else (layer.n_in,)), (group.name, member)
            assert vertex.min() >= -1
            assert vertex.max() < group.size
            taken = claimed.setdefault((member.module, member.side), np.zeros(len(vertex), dtype=bool))
            assert not np.any(taken & (vertex >= 0)), f"two groups claim channels of {member.module}.{member.side}"
            taken |= vertex >= 0
            if member.role == "producer":
                seen |= set(vertex[vertex >= 0].tolist())
        assert seen == set(range(group.size)), f"vertices of {group.name} that no producer makes"
    for pin in analysis.pins:
        assert pin.reason.strip(), f"{pin.module} is pinned without a reason"
        assert pin.channels > 0


def check_accounted(analysis: Any) -> None:
    """Check that every output channel of every convolution and linear layer is in a group or pinned with a reason."""
    prunable = prunable_channels(analysis)
    for group in analysis.groups:
        for member in group.members:
            if member.side == "out":
                prunable.setdefault(member.module, set()).update(
                    np.flatnonzero(np.asarray(member.vertex) >= 0).tolist()
                )
    for layer in analysis.layers.values():
        if layer.kind in ("norm", "prelu") or layer.groups > 1:
            continue
        pinned = sum(pin.channels for pin in analysis.pins if pin.module == layer.name)
        free = len(prunable.get(layer.name, ()))
        assert free + pinned == layer.n_out, f"{layer.name}: {layer.n_out} channels, {free} prunable, {pinned} pinned"


@every_entry
def test_exact_or_pinned(name: str) -> None:
    """Random plans on every entry are exact in evaluation and training mode; what is not prunable has a reason."""
    entry = ZOO[name]
    model, example = entry.build()
    analysis = analyze_channels(model, example)
    check_records(model, analysis)
    check_accounted(analysis)
    for seed, fraction in PLANS:
        plan = oracle.plan_for(analysis, oracle.random_kept(analysis, seed, fraction))
        error = oracle.exactness(model, plan, example, training=not entry.random_training)
        assert error < oracle.CONTRACT, f"plan (seed {seed}, fraction {fraction}): relative error {error:.1e}"


@every_entry
def test_each_group_alone(name: str) -> None:
    """Removing one vertex of one group, the rest of the network intact, is exact: errors do not hide behind others."""
    entry = ZOO[name]
    model, example = entry.build()
    analysis = analyze_channels(model, example)
    rng = np.random.default_rng(0)
    for group in analysis.groups:
        if group.size < 2:
            continue
        kept = {g.name: np.arange(g.size) for g in analysis.groups}
        kept[group.name] = np.delete(kept[group.name], rng.integers(group.size))
        plan = oracle.plan_for(analysis, kept)
        error = oracle.exactness(model, plan, example, training=not entry.random_training)
        assert error < oracle.CONTRACT, f"group {group.name}: relative error {error:.1e}"


@every_entry
def test_finds_what_it_must(name: str) -> None:
    """Modules that can obviously be pruned are; those that cannot exactly be are not; the rest is local."""
    entry = ZOO[name]
    model, example = entry.build()
    analysis = analyze_channels(model, example)
    if entry.expect == "prunes":
        assert analysis.groups, f"nothing can be pruned: {analysis.pins}"
    prunable = prunable_channels(analysis)
    missing = [module for module in entry.prunable if not prunable.get(module)]
    reasons = [(pin.module, pin.reason) for pin in analysis.pins if pin.module in missing]
    assert not missing, f"not prunable: {missing}, because {reasons}"
    wrong = [module for module in entry.fixed if prunable.get(module)]
    assert not wrong, f"these channels cannot be removed exactly: {wrong}"


@every_entry
def test_analysis_leaves_the_model_alone(name: str) -> None:
    """Parameters, buffers, gradients, modes, hooks, attributes and global state are what they were, bit for bit."""
    model, example = ZOO[name].build()
    before, inputs = oracle.state_of(model), [x.clone() for x in oracle.tensors(example) if isinstance(x, torch.Tensor)]
    generator, grad = torch.get_rng_state(), torch.is_grad_enabled()
    analyze_channels(model, example)
    after = oracle.state_of(model)
    assert after.keys() == before.keys()
    assert {key for key in before if before[key] != after[key]} == set()
    assert all(
        torch.equal(a, b)
        for a, b in zip(inputs, (x for x in oracle.tensors(example) if isinstance(x, torch.Tensor)), strict=True)
    )
    assert torch.equal(generator, torch.get_rng_state())
    assert torch.is_grad_enabled() == grad


@pytest.mark.parametrize("name", sorted(ZOO)[::4])
def test_analysis_repeats(name: str) -> None:
    """Two analyses of the same model agree in every index and every word (on every fourth entry)."""
    model, example = ZOO[name].build()
    first, second = analyze_channels(model, example), analyze_channels(model, example)
    assert [g.name for g in first.groups] == [g.name for g in second.groups]
    assert first.pins == second.pins
    assert first.layers == second.layers
    for a, b in zip(first.groups, second.groups, strict=True):
        assert [(m.module, m.side, m.role) for m in a.members] == [(m.module, m.side, m.role) for m in b.members]
        assert all(np.array_equal(m.vertex, n.vertex) for m, n in zip(a.members, b.members, strict=True))


@pytest.mark.parametrize("seed", range(FUZZ_START, FUZZ_START + FUZZ_CASES))
def test_random_networks(seed: int) -> None:
    """Random graphs of layers and shape operations (SRR_FUZZ_CASES and SRR_FUZZ_START widen the search)."""
    model, example = random_net(seed)
    analysis = analyze_channels(model, example)
    check_records(model, analysis)
    check_accounted(analysis)
    for plan_seed, fraction in ((seed, 0.5), (seed + 1, 0.3)):
        plan = oracle.plan_for(analysis, oracle.random_kept(analysis, plan_seed, fraction))
        error = oracle.exactness(model, plan, example)
        assert error < oracle.CONTRACT, f"relative error {error:.1e}\n{model.describe()}"


def test_the_oracle_sees_removed_channels() -> None:
    """Plans on the zoo change the masked model's outputs, and a plan with shifted in-indices is caught."""
    blind = []
    for name in (
        "plain_chain",
        "residual",
        "inverted_residual",
        "dense_block",
        "shuffle_dynamic",
        "flatten_nhwc",
        "u_net",
    ):
        model, example = ZOO[name].build()
        plan = oracle.random_plan(model, example, 0, 0.5)
        if not oracle.has_effect(model, plan, example):
            blind.append(name)
    assert not blind


def _analysis(name: str) -> Any:
    model, example = ZOO[name].build()
    return analyze_channels(model, example)


def _pairs(step: int, count: int) -> list[list[int]]:
    return [[i, i + step] for i in range(count)]


def _same_classes(found: list[list[int]], wanted: list[list[int]]) -> None:
    assert sorted(map(sorted, found)) == sorted(map(sorted, wanted))


def test_plain_chain_groups() -> None:
    """Every convolution but the classifier is a group of its own width, consumers included."""
    groups = {group.name: group for group in _analysis("plain_chain").groups}
    assert {name: group.size for name, group in groups.items()} == {"net.0": 6, "net.2": 8, "net.5": 10}
    assert [(m.module, m.side, m.role) for m in groups["net.2"].members] == [
        ("net.2", "out", "producer"),
        ("net.3", "out", "follower"),
        ("net.5", "in", "consumer"),
    ]
    assert not any(group.stream for group in groups.values())


def test_classifier_is_pinned() -> None:
    """The outputs of the network stay, and the reason says so."""
    pins = [pin for pin in _analysis("plain_chain").pins if pin.module == "head"]
    assert sum(pin.channels for pin in pins) == 5
    assert any("output" in pin.reason.lower() for pin in pins)


def test_residual_stream() -> None:
    """Stem and second convolutions share one group of six vertices, which is a stream; inner ones are alone."""
    groups = {group.name: group for group in _analysis("residual").groups}
    stream = groups["stem.0"]
    assert {m.module for m in stream.producers} == {"stem.0", "blocks.0.conv2", "blocks.1.conv2"}
    assert stream.size == 6
    assert stream.stream
    assert {m.module for m in stream.members if m.role == "consumer"} == {"blocks.0.conv1", "blocks.1.conv1", "head"}
    assert {m.module for m in groups["blocks.0.conv1"].producers} == {"blocks.0.conv1"}
    assert not groups["blocks.0.conv1"].stream


def test_projection_separates_streams() -> None:
    """A projection starts a new stream: two streams, sizes six and ten."""
    streams = [group for group in _analysis("residual_projection").groups if group.stream]
    assert sorted(group.size for group in streams) == [6, 10]


def test_padded_shortcut_frees_only_what_is_not_padded() -> None:
    """Channels that meet the padded shortcut's copies of the old stream are never removable alone.

    With six channels padded to twelve by three on either side, channels 3 to 8 of the block's output are the old
    stream's. If any of them is removable it goes together with channel i - 3 of the stream before.
    """
    analysis = _analysis("residual_padded")
    for group in analysis.groups:
        members = {(m.module, m.side): np.asarray(m.vertex) for m in group.members}
        later = members.get(("blocks.1.conv2", "out"))
        if later is None or not np.any(later[3:9] >= 0):
            continue
        assert np.array_equal(later[3:9], members[("stem.0", "out")])
    inner = {group.name: group.size for group in analysis.groups if not group.stream}
    assert inner["blocks.0.conv1"] == 6
    assert inner["blocks.1.conv1"] == 12
    assert inner["blocks.3.conv1"] == 24


def test_shuffle_unites_the_right_channels() -> None:
    """Two groups of four: channels i and i + 4 go together, and leave positions 2 i and 2 i + 1 of the consumer."""
    analysis = _analysis("shuffle_dynamic")
    _same_classes(classes(analysis, "a")["a"], _pairs(4, 4))
    vertex_out = next(
        np.asarray(m.vertex) for g in analysis.groups for m in g.members if (m.module, m.side) == ("a", "out")
    )
    vertex_in = next(
        np.asarray(m.vertex) for g in analysis.groups for m in g.members if (m.module, m.side) == ("z", "in")
    )
    assert np.array_equal(vertex_in, vertex_out.reshape(2, 4).T.reshape(-1))


def test_flatten_channels_first_takes_runs() -> None:
    """After NCHW flatten with four positions, channel c is inputs 4 c to 4 c + 3 of the linear layer."""
    for pair in (classes(_analysis("flatten_nchw"), "head", "in"),):
        assert sorted(pair["features.2"]) == [list(range(4 * c, 4 * c + 4)) for c in range(8)]


def test_flatten_channels_last_takes_strides() -> None:
    """After NHWC flatten with eight channels, channel c is inputs c, c + 8, c + 16, ... of the linear layer."""
    assert sorted(classes(_analysis("flatten_nhwc"), "head", "in")["a"]) == [list(range(c, 128, 8)) for c in range(8)]


def test_depthwise_follows() -> None:
    """A depthwise convolution loses the same channels on both sides and starts no group of its own."""
    groups = {group.name: group for group in _analysis("depthwise").groups}
    assert set(groups) == {"s", "a"}
    sides = {(m.module, m.side): np.asarray(m.vertex) for m in groups["a"].members}
    assert np.array_equal(sides[("b", "out")], sides[("a", "out")])
    assert np.array_equal(sides[("z", "in")], sides[("a", "out")])


def test_depthwise_multiplier_repeats_vertices() -> None:
    """With multiplier two, input channel c goes with output channels 2 c and 2 c + 1."""
    found = classes(_analysis("depthwise_multiplier_2"), "b")
    assert "a" in found
    _same_classes(found["a"], [[2 * c, 2 * c + 1] for c in range(8)])


def test_cat_twice_shares_vertices() -> None:
    """``cat([x, x])``: channel c is inputs c and c + 8 of the consumer."""
    assert sorted(classes(_analysis("cat_twice"), "z", "in")["a"]) == _pairs(8, 8)


def test_dense_block_offsets() -> None:
    """The classifier of a dense block reads the stem's channels at 0 to 5 and the layers' after them."""
    analysis = _analysis("dense_block")
    places = {
        name: sorted(i for vertex in channels for i in vertex)
        for name, channels in classes(analysis, "z", "in").items()
    }
    assert places == {
        "stem.0": list(range(6)),
        "layers.0.2": list(range(6, 10)),
        "layers.1.2": list(range(10, 14)),
        "layers.2.2": list(range(14, 18)),
    }


def test_squeeze_excite_ties_gate_and_features() -> None:
    """The gate's last layer loses the channels it gates."""
    found = {
        group.name: {m.module for m in group.members if m.side == "out"} for group in _analysis("squeeze_excite").groups
    }
    tied = next(modules for modules in found.values() if "a.0" in modules)
    assert {"a.0", "a.1", "fc2"} <= tied
    assert {"fc1"} in found.values()


def test_grouped_convolution_keeps_groups_equal() -> None:
    """With two wide groups, a vertex takes as many input channels from one group as from the other, or none."""
    for pair in classes(_analysis("grouped_two"), "b", "in").values():
        for channels in pair:
            assert sum(c < 4 for c in channels) in (sum(c >= 4 for c in channels), len(channels), 0)
            if 0 < len(channels) < 4:
                assert sum(c < 4 for c in channels) == sum(c >= 4 for c in channels)


def test_recurrent_cell_ties_stem_nothing_else() -> None:
    """A state that starts at zero and is added to ties only the cell's last layer with itself."""
    analysis = _analysis("recurrent_convolution")
    assert classes(analysis, "cell.update.0")["cell.update.0"] == [[i] for i in range(8)]


def test_siamese_encoder_is_one_group() -> None:
    """Two calls of one encoder give one group per layer, not two."""
    assert {group.name: group.size for group in _analysis("siamese").groups} == {"encoder.0.0": 6, "encoder.1.0": 8}


def test_untaken_branches_are_named() -> None:
    """A convolution that nothing reaches is listed as unreached, and not as a layer to prune."""
    analysis = _analysis("never_called")
    assert "spare" in analysis.unreached
    assert "spare" not in prunable_channels(analysis)


def test_ignored_layers_keep_their_outputs() -> None:
    """``ignored`` pins a module's output channels by name, with a reason; the others stay prunable."""
    model, example = ZOO["plain_chain"].build()
    analysis = analyze_channels(model, example, ignored=("net.2",))
    assert {group.name for group in analysis.groups} == {"net.0", "net.5"}
    assert any(pin.module == "net.2" and pin.channels == 8 and "ignored" in pin.reason for pin in analysis.pins)


def test_unknown_ignored_layer_is_an_error() -> None:
    """A misspelt name in ``ignored`` is refused, naming it."""
    model, example = ZOO["plain_chain"].build()
    with pytest.raises(ValueError, match=r"net\.twelve"):
        analyze_channels(model, example, ignored=("net.twelve",))


@pytest.mark.parametrize("example", ["not a tensor", None, 3])
def test_wrong_examples_are_an_error(example: Any) -> None:
    """Example inputs that are no tensors are refused with the argument's name."""
    model, _ = ZOO["plain_chain"].build()
    with pytest.raises(TypeError, match="example_inputs"):
        analyze_channels(model, example)


def test_layer_facts() -> None:
    """Kinds, sizes, groups, kernels and positions as the example ran through."""
    layers = _analysis("bottleneck_grouped").layers
    grouped = layers["c2"]
    assert (grouped.kind, grouped.n_in, grouped.n_out, grouped.groups, grouped.kernel) == ("conv", 12, 12, 3, 9)
    assert grouped.positions == 2 * 8 * 8
    assert layers["n1"].kind == "norm"
    shared = _analysis("shared_conv_sizes").layers["b"]
    assert shared.positions == 2 * (8 * 8 + 4 * 4)


def test_total_params_counts_elements() -> None:
    """``total_params`` is the number of parameter elements of the model."""
    model, example = ZOO["u_net"].build()
    assert analyze_channels(model, example).total_params == sum(p.numel() for p in model.parameters())
