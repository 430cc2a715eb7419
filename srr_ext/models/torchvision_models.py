"""torchvision's classifiers, fitted to the images, with their published weights where these can be had."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from srr_ext.models.adapt import check_images, colour_kernels, keep_resolution, set_in_channels, stem_of
from srr_ext.models.names import reason
from srr_ext.models.weights import head_of, load_state, read_checkpoint

PRETRAINED = ("pretrained", "DEFAULT")  # weights that name no file: the best published ones
_COLOURS, _CLASSES, _PIXELS = 3, 1000, 224  # of ImageNet, for which all of them were drawn
_SIZED = ("vit_", "maxvit_")  # families whose tensors or windows depend on the size of the images
_AUXILIARY = ("googlenet", "inception_v3")
_AUXILIARY_HEADS = ("aux1", "aux2", "AuxLogits")
_DENSE_LAYER = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.(?:weight|bias|running_mean|running_var))$")


def names() -> list[str]:
    """List torchvision's classifiers."""
    import torchvision.models  # here, because it takes seconds and most users of the package bring their own network

    return torchvision.models.list_models(module=torchvision.models)


def build(name: str, options: Mapping[str, int], weights: str | None) -> tuple[nn.Module, list[str]]:
    """Make a classifier.

    Parameters
    ----------
    name : str
        One of :func:`names`.
    options : mapping of str to int
        ``num_classes``, ``in_channels``, ``image_size``, each of which may be missing.
    weights : str, optional
        The name of published weights, or a checkpoint file.

    Returns
    -------
    model : nn.Module
    notes : list of str
        What was changed to fit the images and classes.

    Raises
    ------
    ValueError
        Images that the network cannot read, weights that cannot be fetched or do not fit.
    """
    import torchvision.models

    member: Any = None
    if weights is not None and not Path(weights).is_file():
        enum = torchvision.models.get_model_weights(name)
        wanted = "DEFAULT" if weights in PRETRAINED else weights
        if wanted not in enum.__members__:
            offered = ", ".join(dict.fromkeys((*PRETRAINED, *enum.__members__)))
            raise ValueError(f"weights: there is no file {weights}; the published weights of {name} are {offered}")
        member = enum[wanted]

    model = _construct(name, options)
    in_channels, image_size = options.get("in_channels", _COLOURS), options.get("image_size")
    notes: list[str] = []
    resized = None if image_size is None else keep_resolution(model, name, image_size)
    if resized is not None:
        notes.append(resized)
    if in_channels != _COLOURS:
        set_in_channels(model, in_channels)
        notes.append(f"{name}: the first convolution reads {in_channels} instead of {_COLOURS} channels")
    if name.startswith(_SIZED) and image_size not in (None, _PIXELS):
        notes.append(f"{name}: made for images of {image_size} instead of {_PIXELS} pixels")
    if options.get("num_classes", _CLASSES) != _CLASSES:
        notes.append(f"head: {_CLASSES} -> {options['num_classes']} classes")
    vanishing = None if image_size is None else check_images(model, name, in_channels, image_size)
    if vanishing is not None:
        notes.append(vanishing)

    if member is not None:
        state = _fetch(name, member)
        notes += _conform(model, state) + _fill(model, state)
        load_state(model, state, f"weights: {member.name} of {name}")
    elif weights is not None:
        state = read_checkpoint(weights)
        hint = "; ".join(notes)
        notes += _conform(model, state)
        load_state(model, state, f"weights: {weights}", hint=hint)
    return model, notes


def _construct(name: str, options: Mapping[str, int]) -> nn.Module:
    """Call torchvision's builder with the options that it knows."""
    import torchvision.models

    arguments: dict[str, Any] = {key: options[key] for key in ("num_classes",) if key in options}
    if "image_size" in options:
        size = options["image_size"]
        if name.startswith("vit_"):  # its position embedding has one entry per patch
            arguments["image_size"] = size
        elif name.startswith("maxvit_"):
            arguments["input_size"] = (size, size)
    if name in _AUXILIARY:
        # Auxiliary heads change what training returns. The published weights want images in another scale, which
        # transform_input brings them to; it is on without these weights too, so that a network made again is the same.
        colours = options.get("in_channels", _COLOURS) == _COLOURS
        arguments.update(aux_logits=False, init_weights=True, transform_input=colours)
    try:
        return torchvision.models.get_model(name, weights=None, **arguments)
    except (AssertionError, ValueError) as error:
        if "image_size" not in options:
            raise
        size = options["image_size"]
        raise ValueError(f"image_size: {name} cannot be made for {size} x {size} pixels ({reason(error)})") from error


def _fetch(name: str, member: Any) -> dict[str, Tensor]:
    """Let torchvision download published weights, or take them from where it has put them earlier."""
    try:
        # A file that is already there is read without a look at its hash, so what is in it must not run.
        return dict(member.get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True))
    except Exception as error:  # the network, the disk, the hash, the file: each has exceptions of its own
        place = Path(torch.hub.get_dir()) / "checkpoints"
        raise ValueError(
            f"weights: {member.url}, the published weights of {name}, could not be fetched ({reason(error)}); fetch "
            f"that file where there is a network and put it into {place}, or give the file itself as weights"
        ) from error


def _conform(model: nn.Module, state: dict[str, Tensor]) -> list[str]:
    """Bring the tensors of a published file to today's names, in place, and leave out auxiliary heads."""
    own = model.state_dict().keys()
    for key in list(state):
        today = _DENSE_LAYER.sub(r"\1\2", key)  # as torchvision's own loader does
        today = today.replace(".mlp.linear_1.", ".mlp.0.").replace(".mlp.linear_2.", ".mlp.3.")
        if today != key and key not in own:
            state[today] = state.pop(key)
    heads = {child for child in _AUXILIARY_HEADS if getattr(model, child, None) is None}
    left_out = [key for key in state if key.split(".")[0] in heads]
    for key in left_out:
        del state[key]
    return ["auxiliary heads of the checkpoint, used only in training, were left out"] if left_out else []


def _fill(model: nn.Module, state: dict[str, Tensor]) -> list[str]:
    """Put into published tensors what the adapted network has otherwise, in place; say what."""
    notes: list[str] = []
    own = model.state_dict()
    head, stem = f"{head_of(model)}.weight", f"{stem_of(model)}.weight"
    if head not in state or stem not in state:
        return []  # another file under that name: loading it will say what it lacks
    if state[head].shape[0] != own[head].shape[0]:
        bias = head.replace(".weight", ".bias")
        state |= {key: own[key] for key in (head, bias) if key in own}
        notes.append("head: newly initialised, everything else has the published weights")
    if state[stem].shape[2:] != own[stem].shape[2:]:
        state[stem] = own[stem]
        notes.append("stem: newly initialised, as the published one has another shape")
    elif state[stem].shape != own[stem].shape:
        state[stem] = colour_kernels(state[stem], own[stem].shape[1])
        how = "the sum" if own[stem].shape[1] == 1 else "repeated and scaled ones"
        notes.append(f"stem: its kernels are {how} of the published kernels of the colours")
    position = "encoder.pos_embedding"
    if position in own and state[position].shape != own[position].shape:
        from torchvision.models.vision_transformer import interpolate_embeddings

        patch = own[stem].shape[-1]
        size = model.image_size
        assert isinstance(size, int)
        state.update(interpolate_embeddings(size, patch, OrderedDict(state)))
        notes.append(f"position embedding: the published one, interpolated for {size} pixels")
    return notes
