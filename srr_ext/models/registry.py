"""From a name to a network: the package's own, torchvision's, timm's, any factory ``package.module:function``."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from srr_ext.models import timm_models, torchvision_models
from srr_ext.models.cifar_resnet import DEPTHS, CifarResNet
from srr_ext.models.cifar_vgg import STAGES, CifarVGG
from srr_ext.models.names import nearest, reason
from srr_ext.models.small import AlexNetSmall, DigitsCNN, LeNet5
from srr_ext.models.weights import load_weights

_ATTRIBUTE = "srr_architecture"


@dataclass(frozen=True)
class Architecture:
    """How a network was made, so that it can be made again: ``create(name, **options)``.

    Attributes
    ----------
    name : str
        Name known to :func:`create`.
    options : dict of str to int
        Keyword arguments of :func:`create`, without weights.
    notes : tuple of str
        What was changed in the published architecture to fit the images and classes, and what became of published
        weights; one sentence each. It follows from the rest, so it is neither compared nor saved.
    """

    name: str
    options: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = field(default=(), compare=False)

    def build(self) -> nn.Module:
        """Make the network again, with fresh weights."""
        options: dict[str, Any] = {**self.options}
        return create(self.name, **options)


@dataclass(frozen=True)
class Native:
    """A network of this package and the images it was drawn for."""

    factory: Callable[..., nn.Module]
    in_channels: int
    image_size: int


def _cifar_resnet(depth: int, option: str) -> Callable[..., nn.Module]:
    def factory(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
        return CifarResNet(depth, num_classes, in_channels, option)  # any image_size: it ends in a mean over pixels

    return factory


def _cifar_vgg(depth: int) -> Callable[..., nn.Module]:
    def factory(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
        return CifarVGG(depth, num_classes, in_channels)  # any image_size: it ends in a mean over pixels

    return factory


def _digits_cnn(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    return DigitsCNN(num_classes, in_channels)  # any image_size: it ends in a mean over pixels


NATIVE: dict[str, Native] = {
    "alexnet_small": Native(AlexNetSmall, in_channels=3, image_size=32),
    **{f"cifar_vgg{depth}_bn": Native(_cifar_vgg(depth), 3, 32) for depth in STAGES},
    "digits_cnn": Native(_digits_cnn, in_channels=1, image_size=8),
    "lenet5": Native(LeNet5, in_channels=1, image_size=28),
    **{f"resnet{depth}": Native(_cifar_resnet(depth, "A"), 3, 32) for depth in DEPTHS},
    **{f"resnet{depth}b": Native(_cifar_resnet(depth, "B"), 3, 32) for depth in DEPTHS},
}


def available_models(include_timm: bool = False) -> list[str]:
    """Names that :func:`create` knows, sorted; factories ``package.module:function`` come on top.

    Parameters
    ----------
    include_timm : bool, default False
        Whether to add timm's models as ``timm/NAME``. There are more than a thousand, and timm takes seconds to import.

    Returns
    -------
    list of str
        The package's own networks and every classifier of the installed torchvision.

    Raises
    ------
    ValueError
        timm was asked for and is not installed.

    Examples
    --------
    >>> "resnet56" in available_models(), "resnet50" in available_models()
    (True, True)
    """
    return sorted({*NATIVE, *torchvision_models.names(), *(timm_models.names() if include_timm else ())})


def create(
    name: str,
    num_classes: int | None = None,
    weights: str | None = None,
    *,
    in_channels: int | None = None,
    image_size: int | None = None,
) -> nn.Module:
    """Make a network by name.

    Parameters
    ----------
    name : str
        One of :func:`available_models`; or ``timm/NAME`` (also with the tag of published weights, ``timm/NAME.TAG``),
        where timm is installed; or ``package.module:function``, a factory of your own. It is called with those of
        ``num_classes``, ``in_channels`` and ``image_size`` that were given and that it has parameters for (``**kwargs``
        receives ``num_classes`` alone).
        ``resnet20`` ... ``resnet110`` are the CIFAR networks with zero-padded shortcuts (option A), ``resnet20b`` ...
        those with 1x1 convolutions (option B).
    num_classes : int, optional
        Width of the classifier; default 10 for the package's own networks, what the factory says for all others
        (1000 in torchvision).
    weights : str, optional
        A checkpoint file (``.th``, ``.pt``, ``.pth``, read without unpickling code, or ``.safetensors``); or
        ``"pretrained"`` for the published weights of torchvision and timm, which these download; or one of
        torchvision's names of them, such as ``"IMAGENET1K_V1"``. Where published weights have another number of classes
        or channels than asked for, head or stem are made anew, see Notes; a file has to fit in every tensor.
    in_channels : int, optional
        Channels of the images; default what the network was drawn for (3 in torchvision).
    image_size : int, optional
        Height and width of the images in pixels. Networks whose shape depends on it are made for it; torchvision's are
        fitted to small images, see Notes. Not given, nothing is fitted.

    Returns
    -------
    nn.Module
        In training mode, on the CPU, float32. It remembers its name and options, and what was fitted
        (``architecture_of(model).notes``).

    Raises
    ------
    ValueError
        Unknown name (with the nearest ones), images that the network cannot read, weights that cannot be fetched, or a
        checkpoint that does not fit.

    Notes
    -----
    torchvision's networks are fitted by these rules, and say so in ``notes``:

    - Images below 64 pixels: in resnet, resnext, wide_resnet, densenet and shufflenet_v2 the first convolution becomes
      3x3 with stride 1, and the max pooling after it goes; in mobilenet, efficientnet, mnasnet and regnet the first
      convolution, 3x3 already, gets stride 1. Both are usual for CIFAR. All other families stay as they are.
    - ``in_channels`` other than 3: the first convolution is made anew. Of published weights it gets the sum over
      colours (1 channel), or the colours in turn times 3 / ``in_channels``.
    - Published weights and another ``num_classes``: the head is newly initialised. So is a stem of another shape.
    - Images that do not survive to the end are refused; where one pixel is left of them, a note says so.

    timm fits its models by rules of its own, which for a first convolution are the same; it keeps every stem's stride.

    Examples
    --------
    >>> create("resnet20", num_classes=10).linear
    Linear(in_features=64, out_features=10, bias=True)
    """
    wanted = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    options = {key: value for key, value in wanted.items() if value is not None}
    for key, value in options.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{key} must be a positive integer, but is {value!r}")
    notes: list[str] = []
    if name.startswith(timm_models.PREFIX):
        model, notes = timm_models.build(name, options, weights)
    elif ":" in name:
        model = _from_factory(name, options)
        if weights is not None:
            load_weights(model, weights)
    elif name in NATIVE:
        model = _native(name, options, weights)
    elif name in torchvision_models.names():
        model, notes = torchvision_models.build(name, options, weights)
    else:
        near = nearest(name, available_models())
        raise ValueError(f"model {name!r} is not known; {near} timm's models are called timm/NAME")
    object.__setattr__(model, _ATTRIBUTE, Architecture(name, options, tuple(notes)))
    return model


def _native(name: str, options: dict[str, int], weights: str | None) -> nn.Module:
    """Make one of the package's own networks."""
    native = NATIVE[name]
    if weights in torchvision_models.PRETRAINED and not Path(str(weights)).is_file():
        raise ValueError(f"weights: {name} has no published weights that could be fetched; give a checkpoint file")
    defaults = {"num_classes": 10, "in_channels": native.in_channels, "image_size": native.image_size}
    model = native.factory(**{**defaults, **options})
    if weights is not None:
        load_weights(model, weights)
    return model


def architecture_of(model: nn.Module) -> Architecture | None:
    """How :func:`create` made the network, or None for one it did not make.

    Parameters
    ----------
    model : nn.Module
        Any network. Copies and pruned copies of a created network carry its record.

    Returns
    -------
    Architecture or None
    """
    record = getattr(model, _ATTRIBUTE, None)
    return record if isinstance(record, Architecture) else None


def _from_factory(name: str, options: dict[str, int]) -> nn.Module:
    """Import and call ``package.module:function``."""
    module_name, _, function = name.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), function)
        parameters = inspect.signature(factory).parameters
    except Exception as error:  # code of the user's own, which may raise anything
        raise ValueError(
            f"model {name!r}: {reason(error)}; package.module:function must be importable from here"
        ) from error
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    wanted = {*parameters, "num_classes"} if takes_all else {*parameters}  # others of **kwargs may mean anything
    given = {key: value for key, value in options.items() if key in wanted}
    try:
        model = factory(**given)
    except Exception as error:
        call = ", ".join(f"{key}={value}" for key, value in given.items())
        raise ValueError(
            f"model {name!r}: {function}({call}) raised {type(error).__name__}: {reason(error)}"
        ) from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"model {name!r} must return a torch.nn.Module, but returned {type(model).__name__}")
    return model
