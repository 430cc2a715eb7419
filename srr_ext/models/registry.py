"""From a name to a network: the package's own, torchvision's classifiers, any factory ``package.module:function``."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from srr_ext.models.cifar_resnet import DEPTHS, CifarResNet
from srr_ext.models.small import DigitsCNN, LeNet5
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
    """

    name: str
    options: dict[str, int] = field(default_factory=dict)

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


def _digits_cnn(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    return DigitsCNN(num_classes, in_channels)  # any image_size: it ends in a mean over pixels


NATIVE: dict[str, Native] = {
    "digits_cnn": Native(_digits_cnn, in_channels=1, image_size=8),
    "lenet5": Native(LeNet5, in_channels=1, image_size=28),
    **{f"resnet{depth}": Native(_cifar_resnet(depth, "A"), 3, 32) for depth in DEPTHS},
    **{f"resnet{depth}b": Native(_cifar_resnet(depth, "B"), 3, 32) for depth in DEPTHS},
}


def available_models() -> list[str]:
    """Names that :func:`create` knows, sorted; factories ``package.module:function`` come on top.

    Returns
    -------
    list of str
        The package's own networks and every classifier of the installed torchvision.

    Examples
    --------
    >>> "resnet56" in available_models(), "resnet50" in available_models()
    (True, True)
    """
    import torchvision.models  # here, because it takes seconds and most users of the package bring their own network

    return sorted({*NATIVE, *torchvision.models.list_models(module=torchvision.models)})


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
        One of :func:`available_models`, or ``package.module:function``, a factory of your own. It is called with those
        of ``num_classes``, ``in_channels`` and ``image_size`` that were given and that it has parameters for
        (``**kwargs`` receives ``num_classes`` alone).
        ``resnet20`` ... ``resnet110`` are the CIFAR networks with zero-padded shortcuts (option A), ``resnet20b`` ...
        those with 1x1 convolutions (option B).
    num_classes : int, optional
        Width of the classifier; default 10 for the package's own networks, what the factory says for all others
        (1000 in torchvision).
    weights : str, optional
        A checkpoint file (``.th``, ``.pt``, ``.pth``, read without unpickling code, or ``.safetensors``), or for
        torchvision networks the name of published weights such as ``DEFAULT``, which torchvision downloads.
    in_channels : int, optional
        Channels of the images; default what the network was drawn for. torchvision's classifiers read 3.
    image_size : int, optional
        Height and width of the images in pixels, for networks whose shape depends on them.

    Returns
    -------
    nn.Module
        In training mode, on the CPU, float32. It remembers its name and options, see :func:`architecture_of`.

    Raises
    ------
    ValueError
        Unknown name (with the nearest ones), or a checkpoint that does not fit.

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
    if ":" in name:
        model = _from_factory(name, options)
    elif name in NATIVE:
        native = NATIVE[name]
        model = native.factory(
            **{"num_classes": 10, "in_channels": native.in_channels, "image_size": native.image_size, **options}
        )
    elif name in available_models():
        model, weights = _from_torchvision(name, options, weights)
    else:
        raise ValueError(f"model {name!r} is not known; {nearest(name, available_models())}")
    if weights is not None:
        load_weights(model, weights)
    object.__setattr__(model, _ATTRIBUTE, Architecture(name, options))
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


def nearest(name: str, known: list[str]) -> str:
    """Say which known names are like the unknown one.

    Parameters
    ----------
    name : str
        What was asked for.
    known : list of str
        What there is.

    Returns
    -------
    str
        Such as ``"did you mean resnet20 or resnet20b?"``; all known names where none is near and they are few.
    """
    close = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    listed = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
    return f"known are {listed}"


def _from_factory(name: str, options: dict[str, int]) -> nn.Module:
    """Import and call ``package.module:function``."""
    module_name, _, function = name.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), function)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ValueError(f"model {name!r}: {error}; package.module:function must be importable from here") from error
    parameters = inspect.signature(factory).parameters
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    wanted = {*parameters, "num_classes"} if takes_all else {*parameters}  # others of **kwargs may mean anything
    model = factory(**{key: value for key, value in options.items() if key in wanted})
    if not isinstance(model, nn.Module):
        raise ValueError(f"model {name!r} must return a torch.nn.Module, but returned {type(model).__name__}")
    return model


def _from_torchvision(name: str, options: dict[str, int], weights: str | None) -> tuple[nn.Module, str | None]:
    """Make a torchvision classifier; return it and the checkpoint file that is still to be loaded."""
    import torchvision.models

    if options.get("in_channels", 3) != 3:
        raise ValueError(
            f"in_channels is {options['in_channels']}, but torchvision's {name} reads images with 3 channels"
        )
    arguments: dict[str, Any] = {key: options[key] for key in ("num_classes",) if key in options}
    if name.startswith("vit_") and "image_size" in options:  # its position embedding has one entry per patch
        arguments["image_size"] = options["image_size"]
    if name in ("googlenet", "inception_v3"):  # auxiliary heads change what training returns
        arguments.update(aux_logits=False, init_weights=True)
    published = torchvision.models.get_model_weights(name).__members__
    if weights in ("DEFAULT", *published):
        arguments.pop("aux_logits", None), arguments.pop("init_weights", None)  # given weights decide both
        model: nn.Module = torchvision.models.get_model(name, weights=weights, **arguments)
        return model, None
    return torchvision.models.get_model(name, **arguments), weights
