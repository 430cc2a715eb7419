"""The recipe: its ranges, and its flags."""

from __future__ import annotations

import math

import pytest

from srr_ext.cli.parsing import UsageError, as_dict, parse
from srr_ext.training import TrainConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("optimizer", "adam"),
        ("epochs", -1),
        ("batch_size", 1),
        ("lr", 0.0),
        ("lr", math.nan),
        ("schedule", "sine"),
        ("schedule", "linear"),
        ("milestones", (0.0, 1.0)),
        ("milestones", (2.0, 1.0)),
        ("milestones", (1.0, 1.0)),
        ("milestones", (1.0, math.inf)),
        ("milestones", (math.nan,)),
        ("decay", 0.0),
        ("decay", 1.5),
        ("warmup", 1.0),
        ("momentum", 1.0),
        ("weight_decay", -1e-4),
        ("label_smoothing", 1.0),
        ("clip_norm", -1.0),
        ("clip_norm", math.inf),
        ("ema", 1.0),
        ("ema", -0.1),
        ("distill", 1.1),
        ("distill", math.nan),
        ("temperature", 0.0),
        ("temperature", math.inf),
        ("precision", "fp8"),
    ],
)
def test_values_out_of_range_name_the_field(field: str, value: object) -> None:
    """One rule per field."""
    with pytest.raises(ValueError, match=rf"^{field} must be .*, but is "):
        TrainConfig(**{field: value})


def test_fields_that_contradict_each_other_are_refused() -> None:
    """Nothing that was asked for is left out in silence."""
    with pytest.raises(ValueError, match=r"^nesterov must be false without momentum"):
        TrainConfig(momentum=0.0)
    TrainConfig(optimizer="adamw", momentum=0.0)
    with pytest.raises(ValueError, match=r"^milestones must name at least one epoch with schedule step"):
        TrainConfig(schedule="step")
    with pytest.raises(ValueError, match=r"^milestones must be empty with schedule cosine"):
        TrainConfig(milestones=(1.0,))


def test_every_field_is_a_flag_that_comes_back() -> None:
    """What the command line says is what the recipe holds, the tuple included."""
    line = (
        "--optimizer adamw --lr 0.001 --schedule step --milestones 1 2.5 --decay 0.2 --clip-norm 1.5 --ema 0.99"
        " --distill 0.5 --temperature 2 --precision bf16 --no-channels-last --compile"
    )
    wanted = TrainConfig(
        optimizer="adamw",
        lr=0.001,
        schedule="step",
        milestones=(1.0, 2.5),
        decay=0.2,
        clip_norm=1.5,
        ema=0.99,
        distill=0.5,
        temperature=2.0,
        precision="bf16",
        channels_last=False,
        compile=True,
    )
    assert parse(TrainConfig, line.split(), "test") == wanted
    assert as_dict(wanted)["milestones"] == [1.0, 2.5]
    assert parse(TrainConfig, [], "test") == TrainConfig()
    with pytest.raises(UsageError, match=r"^--milestones: must be finite, above 0 and increasing"):
        parse(TrainConfig, "--schedule step --milestones 2 1".split(), "test")
