"""Which tensors of a model may lose single weights: its convolutions' and linear layers', except the classifier's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_map

from srr_ext.copying import copy_model
from srr_ext.inputs import as_arguments, detached, run
from srr_ext.measuring import measuring
from srr_ext.models.names import nearest


def prunable(
    model: nn.Module, example_inputs: Any, *, classifier: bool = False, ignored: Iterable[str] = ()
) -> dict[str, nn.Parameter]:
    """Find the tensors whose weights may go: those of convolutions, transposed ones too, and of linear layers.

    Biases, normalisations and embeddings always stay whole.

    Parameters
    ----------
    model : nn.Module
        Any model that runs eagerly. It is left untouched.
    example_inputs : Tensor, tuple or dict
        Inputs for one forward pass, on any device; one image is enough.
    classifier : bool, default False
        Whether the classifier may lose weights too. It is the last of these layers that runs in evaluation mode (ours).
    ignored : iterable of str
        Names of modules that stay whole, with everything inside them.

    Returns
    -------
    dict of str to Parameter
        The model's own parameters in the order of its modules, by the names that ``model.named_parameters()`` gives
        them ("layer1.0.conv1.weight"), whether they require gradients or not. A parameter that several of these layers
        share is there once. One that another module holds too is not: a linear layer's that is tied to an embedding,
        or to a layer that stays whole.

    Raises
    ------
    TypeError
        If the model is no module, ``ignored`` is a string, or the example inputs are no tensor, tuple or dict.
    ValueError
        If ``ignored`` names no module, the model does not run on the example inputs, a layer computes its weight from
        other parameters (a parametrisation) or has none yet (a lazy layer), or no tensor is left.

    Notes
    -----
    A layer that only training reaches (an auxiliary classifier) may lose weights as well: its parameters count. The
    input projection of ``nn.MultiheadAttention`` is a parameter of its own, of no linear layer, and stays whole.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if isinstance(ignored, str):
        raise TypeError(f"ignored: expected a list of module names, got the string {ignored!r}")
    as_arguments(example_inputs)  # refuses what is no input, before anything runs
    whole = _inside(model, ignored)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, (_ConvNd, nn.Linear))}
    for name, layer in layers.items():
        if layer not in whole and any(is_lazy(parameter) for parameter in layer.parameters(recurse=False)):
            raise ValueError(f"layer {name!r} has no weights yet: run the model once before it is pruned")
    if not classifier and layers:
        whole.add(model.get_submodule(_last_to_run(model, example_inputs, layers)))
    weights: dict[str, nn.Parameter] = {}
    for name, layer in layers.items():
        if layer not in whole:
            weight = layer._parameters.get("weight")
            if weight is None:
                raise ValueError(
                    f"layer {name!r} computes its weight from other parameters, so that a zero would not last: take "
                    "the parametrisation off (torch.nn.utils.parametrize.remove_parametrizations, "
                    "torch.nn.utils.remove_weight_norm or torch.nn.utils.prune.remove), or name the layer in ignored"
                )
            weights[f"{name}.weight" if name else "weight"] = weight
    prunable_layers = {layer for layer in layers.values() if layer not in whole}
    elsewhere = {
        id(parameter)
        for module in model.modules()
        for key, parameter in module.named_parameters(recurse=False)
        if key != "weight" or module not in prunable_layers
    }
    found: dict[str, nn.Parameter] = {}
    for name, weight in weights.items():
        if id(weight) not in elsewhere and weight.numel():
            elsewhere.add(id(weight))  # once, under its first name
            found[name] = weight
    if not found:
        raise ValueError(
            "model: no weight of a convolution or linear layer is left to prune; allow the classifier, or ignore less"
        )
    return found


def transposed_weights(model: nn.Module) -> frozenset[str]:
    """Names of the weights whose input channels are dimension 0 instead of 1: those of transposed convolutions."""
    return frozenset(
        f"{name}.weight" if name else "weight"
        for name, module in model.named_modules()
        if isinstance(module, _ConvTransposeNd)
    )


def _inside(model: nn.Module, ignored: Iterable[str]) -> set[nn.Module]:
    """Return the modules that ``ignored`` names and all modules inside them."""
    modules = dict(model.named_modules(remove_duplicate=False))  # one may have several names
    inside: set[nn.Module] = set()
    for name in ignored:
        if name not in modules:
            raise ValueError(
                f"ignored: no module of the model is called {name!r}; {nearest(str(name), [*modules][1:])}"
            )
        inside.update(modules[name].modules())
    return inside


def _last_to_run(model: nn.Module, example_inputs: Any, layers: Iterable[str]) -> str:
    """Return the name of the last of these layers to run in evaluation mode."""
    twin = copy_model(model, share_parameters=True).eval()
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    inputs = tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, detached(example_inputs))
    ran: list[str] = []
    for name in layers:
        twin.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    try:
        with measuring(0), torch.no_grad():
            run(twin, inputs)
    except Exception as error:
        problem = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise ValueError(f"example_inputs: the model does not run on them ({problem})") from error
    if not ran:
        raise ValueError(
            "example_inputs: no convolution or linear layer runs on them, so the classifier is unknown; let it lose "
            "weights too (classifier), and name what has to stay whole in ignored"
        )
    return ran[-1]
