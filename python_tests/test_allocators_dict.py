"""The user's own numbers of channels: taken as they are, or refused with the reason."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planning_nets import chain, deep, grouped, plan, residual

import srr_ext
from srr_ext import models
from srr_ext.allocators import FromDict, get_allocator
from srr_ext.cost import CostModel, Target


def counts(net: Any, keep: dict[str, Any], **options: Any) -> dict[str, int]:
    kept, _ = plan(net, FromDict(keep), keep=1.0, **options)
    return {name: len(vertices) for name, vertices in kept.items()}


def test_integers_are_channels_and_floats_are_shares() -> None:
    net = deep((12, 20, 9))
    assert counts(net, {"0": 5, "1": 0.5}) == {"0": 5, "1": 10, "2": 9}
    assert counts(net, {"2": 0.5}) == {"0": 12, "1": 20, "2": 5}  # 4.5, rounded up
    assert counts(net, {"0": 1.0, "2": np.int64(3)}) == {"0": 12, "1": 20, "2": 3}
    assert counts(net, {}) == {"0": 12, "1": 20, "2": 9}


def test_a_file_says_the_same(tmp_path: Path) -> None:
    path = tmp_path / "keep.json"
    path.write_text('{"0": 5, "1": 0.5}')
    kept, allocation = plan(deep((12, 20, 9)), f"dict:path={path}", keep=0.6)
    assert allocation.counts == (5, 10, 9)
    assert allocation.info == {"keep": {"0": 5, "1": 0.5}}
    assert [len(vertices) for vertices in kept.values()] == [5, 10, 9]
    json.dumps(allocation.info)


def test_layers_of_a_stream_name_their_group() -> None:
    assert counts(residual(), {"outer": 3}) == {"stem": 3, "inner": 12}
    assert counts(residual(), {"outer": 3, "stem": 3}) == {"stem": 3, "inner": 12}
    with pytest.raises(
        ValueError, match=r"keep\['stem'\]: keeps 4 of the 8 .* but keep\['outer'\] keeps 3 of the same"
    ):
        counts(residual(), {"outer": 3, "stem": 4})


def test_channels_that_go_together_and_pinned_ones_count() -> None:
    """Convolution 0 has vertices of two channels; convolution 1 has two pinned channels besides."""
    assert counts(grouped(), {"0": 6, "1": 4}) == {"0": 3, "1": 1}
    with pytest.raises(ValueError, match=r"keep\['0'\]: 5 of its 8 channels cannot stay.*nearest: 4, 6"):
        counts(grouped(), {"0": 5})
    with pytest.raises(ValueError, match=r"keep\['1'\]: 2 of its 10 channels cannot stay.*nearest: 4"):
        counts(grouped(), {"1": 2})


def test_least_important_channels_go() -> None:
    model, example = models.create("lenet5").eval(), models_example()
    made = srr_ext.make_plan(model, example, allocator=FromDict({"conv2": 4, "fc1": 0.25}), keep_macs=0.9)
    norms = model.conv2.weight.detach().abs().sum((1, 2, 3)).numpy()
    assert list(made.layers["conv2"].out or ()) == sorted(np.argsort(norms)[12:].tolist())
    assert len(made.layers["fc1"].out or ()) == 30
    assert made.allocator == "FromDict(keep={'conv2': 4, 'fc1': 0.25}, path='')"  # it can be made again
    assert srr_ext.verify(model, made, example) < 1e-9


def models_example() -> Any:
    import torch

    return torch.zeros(1, 1, 28, 28)


@pytest.mark.parametrize(
    ("keep", "options", "message"),
    [
        ({"stem": 3.5}, {}, r"keep\['stem'\]: a share must be in \(0, 1\], got 3.5"),
        ({"stem": 0.0}, {}, r"keep\['stem'\]: a share must be in \(0, 1\], got 0.0"),
        ({"stem": 0}, {}, r"keep\['stem'\]: at least one channel stays, got 0"),
        ({"stem": math.nan}, {}, r"keep\['stem'\]: a share must be"),
        ({"stem": 9}, {}, r"keep\['stem'\]: the layer has 8 channels, got 9"),
        ({"sten": 4}, {}, r"keep\['sten'\]: no layer of that name .* nearest: stem"),
        ({"stem": 2}, {"floor": 0.5}, r"keep\['stem'\]: 2 channels are fewer than the 4 that floor says: lower floor"),
        ({"stem": 0.25}, {"floor": 0.5}, r"keep\['stem'\]: 0.25 keeps 2 of 8 vertices, fewer than the 4 that floor"),
        ({"inner": 6}, {"round_to": 4}, r"keep\['inner'\]: 6 channels are not what round_to allows; the next .* is 8"),
    ],
)
def test_what_cannot_be_is_refused(keep: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        counts(residual(), keep, **options)


def test_shares_are_rounded_up_for_round_to() -> None:
    assert counts(residual(), {"inner": 0.4}, round_to=4) == {"stem": 8, "inner": 8}


@pytest.mark.parametrize("keep", [{"stem": "4"}, {"stem": True}, {"stem": None}, [("stem", 4)]])
def test_what_is_no_number_is_refused(keep: Any) -> None:
    with pytest.raises(TypeError, match="keep"):
        FromDict(keep)


def test_streams_and_pins_say_so() -> None:
    net = models.create("resnet20").eval()
    import torch

    example = torch.zeros(1, 3, 32, 32)
    analysis = srr_ext.analyze_channels(net, example, ignored=["layer1.0.conv1"])

    def make(name: str) -> None:
        srr_ext.make_plan(net, example, allocator=FromDict({name: 4}), keep_macs=1.0, analysis=analysis)

    with pytest.raises(ValueError, match=r"keep\['conv1'\]: its channels are in a residual stream.*streams='prune'"):
        make("conv1")
    with pytest.raises(ValueError, match=r"keep\['layer1.0.conv1'\]: its channels may not go: "):
        make("layer1.0.conv1")
    with pytest.raises(ValueError, match=r"keep\['layer1.0.bn1'\]: no layer of that name makes channels"):
        make("layer1.0.bn1")


def test_a_target_that_is_not_met_says_what_is() -> None:
    net = chain()
    cost = CostModel(net.analysis, "macs")
    left = cost.of({"0": np.arange(3), "3": np.arange(8)})
    with pytest.raises(
        ValueError, match=rf"keep_macs=0.3 is not met by what keep says: {left} of {cost.dense}"
    ) as error:
        plan(net, FromDict({"0": 3}), keep=0.3)
    wanted = float(str(error.value).rpartition(" ")[2])
    assert left <= Target("macs", wanted).limit(cost.dense)
    assert plan(net, FromDict({"0": 3}), keep=wanted)[1].counts == (3, 8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("{", "no JSON object of layers"),
        ("[1]", "no JSON object of layers but a list"),
        ('{"0": 1, "0": 2}', "'0' stands there twice"),
        ('{"0": 0}', "at least one channel stays"),
    ],
)
def test_files_are_checked_before_anything_runs(content: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "keep.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=message):
        get_allocator(f"dict:path={path}")


def test_something_must_be_given_and_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"dict needs a mapping: dict:path=keep.json"):
        plan(deep((4, 4)), "dict")
    with pytest.raises(ValueError, match="takes one of them, got both"):
        FromDict({"0": 1}, path=str(tmp_path))
