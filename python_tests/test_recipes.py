"""Ready recipes: each is complete, says what of it is published, and its target is within reach."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import srr_ext
from srr_ext.cli.parsing import as_dict, parse
from srr_ext.config import PruneConfig

ROOT = Path(__file__).parents[1]
RECIPES = sorted(path for path in (ROOT / "recipes").glob("*.yaml") if not path.stem.startswith("compare-"))
IMAGES = {  # channels, size and classes of what the recipes name
    "mnist": (1, 28, 10),
    "cifar10": (3, 32, 10),
    "folder": (3, 32, 10),
    "imagenet": (3, 224, 1000),
}


def test_the_pairs_of_the_sources_are_there() -> None:
    names = {path.stem for path in RECIPES}
    wanted = (
        "lenet5-mnist alexnet-mnist vgg13-cifar10 vgg16-cifar10 resnet20-cifar10 resnet56-cifar10 resnet50-imagenet"
    )
    assert names >= set(wanted.split())


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_read_and_its_target_is_reached(path: Path) -> None:
    """All its keys exist; the network takes the images; the planned cost is at the target, not far below."""
    config = parse(PruneConfig, ["--config", str(path)], "x")
    assert as_dict(config) != as_dict(PruneConfig())
    channels, size, classes = IMAGES[config.data.partition(":")[0]]
    torch.manual_seed(0)
    model = srr_ext.models.create(config.model, classes, in_channels=channels, image_size=size)
    plan = srr_ext.make_plan(model, torch.zeros(1, channels, size, size), allocator="uniform", **config.target)
    (quantity, keep), *_ = plan.target.items()
    share = plan.cost[quantity]["pruned"] / plan.cost[quantity]["dense"]
    assert keep - 0.05 < share <= keep


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_what_is_published_and_what_is_ours(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    comment = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    assert "srr prune" in comment and ("Published: " in comment or "All of it is ours" in comment)
    assert max(map(len, text.splitlines())) <= 130
