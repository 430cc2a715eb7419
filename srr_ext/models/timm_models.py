"""timm's models as ``timm/NAME``, where timm is installed; it fits first convolution and head to images itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from srr_ext.models.adapt import check_images
from srr_ext.models.names import nearest, reason
from srr_ext.models.torchvision_models import PRETRAINED
from srr_ext.models.weights import load_state, read_checkpoint

PREFIX = "timm/"


def names() -> list[str]:
    """List timm's models with the prefix, or raise a ValueError where timm is not installed."""
    return [PREFIX + name for name in _timm().list_models()]


def build(name: str, options: Mapping[str, int], weights: str | None) -> tuple[nn.Module, list[str]]:
    """Make a timm model.

    Parameters
    ----------
    name : str
        ``timm/NAME`` or ``timm/NAME.TAG``, with the tag of published weights.
    options : mapping of str to int
        ``num_classes``, ``in_channels``, ``image_size``, each of which may be missing.
    weights : str, optional
        ``"pretrained"``, or a checkpoint file.

    Returns
    -------
    model : nn.Module
    notes : list of str
        What was changed to fit the images and classes.

    Raises
    ------
    ValueError
        timm is not installed or has no such model, or weights that cannot be fetched or do not fit.
    """
    timm = _timm()
    variant = name.removeprefix(PREFIX)
    if not timm.is_model(variant):
        raise ValueError(f"model {name!r} is not known; {nearest(name, names())}")
    try:
        config = timm.get_pretrained_cfg(variant)
    except RuntimeError as error:  # an unknown tag
        tags = [PREFIX + other for other in timm.list_pretrained(variant.partition(".")[0])]
        raise ValueError(f"model {name!r} is not known: {reason(error)} {nearest(name, tags)}") from error
    pretrained = weights in PRETRAINED and not Path(str(weights)).is_file()
    if pretrained and not (config is not None and (config.hf_hub_id or config.url or config.file)):
        raise ValueError(f"weights: timm has no published weights for {variant}; give a checkpoint file")
    if weights is not None and not pretrained and not Path(weights).is_file():
        raise ValueError(f"weights: there is no file {weights}; {PRETRAINED[0]!r} takes timm's published weights")

    arguments, notes = _fit(name, options, config, pretrained)
    try:
        model = timm.create_model(variant, pretrained=pretrained, **arguments)
    except Exception as error:  # of the hub's client, the disk, or the model's own arguments
        if pretrained:
            place = f"{config.hf_hub_id} on huggingface.co" if config.hf_hub_id else config.url or config.file
            raise ValueError(
                f"weights: {place}, the published weights of {name}, could not be fetched ({reason(error)}); fetch the "
                "file where there is a network and give it as weights"
            ) from error
        raise ValueError(f"model {name!r} cannot be made with {arguments} ({reason(error)})") from error
    if "image_size" in options:
        channels = options.get("in_channels", config.input_size[0] if config is not None else 3)
        vanishing = check_images(model, name, channels, options["image_size"])
        notes += [vanishing] if vanishing else []
    if weights is not None and not pretrained:
        load_state(model, read_checkpoint(weights), f"weights: {weights}", hint="; ".join(notes))
    return model, notes


def _fit(name: str, options: Mapping[str, int], config: Any, pretrained: bool) -> tuple[dict[str, Any], list[str]]:
    """Return timm's own arguments for these options, and what they change."""
    arguments: dict[str, Any] = {}
    notes: list[str] = []
    channels, classes, side = (3, 1000, None)
    if config is not None:
        channels, classes, side = config.input_size[0], config.num_classes, config.input_size[-1]
    if "num_classes" in options:
        arguments["num_classes"] = options["num_classes"]
        if options["num_classes"] != classes:
            new = ", newly initialised" if pretrained else ""
            notes.append(f"head: {classes} -> {options['num_classes']} classes{new}")
    if "in_channels" in options:
        arguments["in_chans"] = options["in_channels"]
        if options["in_channels"] != channels:
            how = ", with timm's sum or repetition of the published kernels" if pretrained else ""
            notes.append(
                f"{name}: the first convolution reads {options['in_channels']} instead of {channels} channels{how}"
            )
    if config is not None and config.fixed_input_size and options.get("image_size", side) != side:
        arguments["img_size"] = options["image_size"]
        how = ", with timm's interpolation of the published position embedding" if pretrained else ""
        notes.append(f"{name}: made for images of {options['image_size']} instead of {side} pixels{how}")
    return arguments, notes


def _timm() -> ModuleType:
    try:
        import timm  # here, because it takes seconds, and it is not a dependency
    except ImportError as error:
        raise ValueError(f"model: timm/NAME needs timm, which is not installed ({error}); pip install timm") from error
    return timm
