"""Put bottlenecks in place of layers, and save and load the network that this makes."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_model
from torch import nn

from srr_ext import artifacts
from srr_ext.bottleneck.layer import REPLACEABLE, Bottleneck, Replaceable, replace_layers
from srr_ext.bottleneck.plan import BottleneckPlan
from srr_ext.copying import copy_model
from srr_ext.files import existing, replace_file, write_text
from srr_ext.models import architecture_of

PLAN = "bottlenecks.json"


def apply_bottlenecks(model: nn.Module, plan: BottleneckPlan) -> nn.Module:
    """Return a copy of the model with bottlenecks, whose weights are the model's on the directions that stay.

    Parameters
    ----------
    model : nn.Module
        The dense model; left untouched. Its training mode, dtype, device and ``requires_grad`` are carried over.
    plan : BottleneckPlan
        What `make_bottlenecks` returned. No images are needed any more.

    Returns
    -------
    nn.Module
        An ordinary model that can be trained. With all directions it would compute what the original does.

    Raises
    ------
    TypeError
        If ``plan`` is something else.
    ValueError
        If the plan holds no directions, or does not fit the model; the first layer that disagrees is named.
    """
    if not isinstance(plan, BottleneckPlan):
        raise TypeError(f"plan: expected a BottleneckPlan, got {type(plan).__name__}")
    absent = sorted(plan.layers.keys() - plan.bases.keys())
    if absent:
        raise ValueError(
            f"plan: holds ranks but no directions for layer {absent[0]!r}, as it was read from JSON; load the network "
            "with load_bottlenecks, or make the plan again"
        )
    small, pairs = _with_bottlenecks(model, plan)
    for name, (layer, bottleneck) in pairs.items():
        bottleneck.rotate(layer.weight, *plan.bases[name])
    return small


def _with_bottlenecks(
    model: nn.Module, plan: BottleneckPlan
) -> tuple[nn.Module, dict[str, tuple[Replaceable, Bottleneck]]]:
    """Copy the model and put in bottlenecks of the right shapes; also return what took the place of what."""
    small = copy_model(model)
    modules = dict(small.named_modules())
    pairs = {}
    for name, ranks in plan.layers.items():
        layer = modules.get(name)
        found = list(layer.weight.shape[:2]) if isinstance(layer, REPLACEABLE) else None
        if found != plan.widths.get(name):
            raise ValueError(
                f"the plan does not fit this model: layer {name!r}: expected {plan.widths.get(name)} output and input "
                f"channels, found {found or 'no such layer'}"
            )
        assert isinstance(layer, REPLACEABLE)
        n_out = len(layer.weight)
        n_in = layer.weight.shape[1] if plan.basis == "channels" else layer.weight[0].numel()
        if ranks.in_ > n_in or ranks.out > n_out:
            raise ValueError(
                f"the plan does not fit this model: layer {name!r}: ranks {ranks.in_} and {ranks.out} are more than "
                f"its {n_in} directions of inputs and {n_out} of outputs"
            )
        pairs[name] = (layer, Bottleneck(layer, ranks.in_, ranks.out, plan.basis))
    replace_layers(small, pairs.values())
    return small, pairs


def save_bottlenecks(folder: str | Path, model: nn.Module, plan: BottleneckPlan) -> Path:
    """Write a network with bottlenecks: ranks as JSON, tensors as safetensors, and how to make the dense network.

    Parameters
    ----------
    folder : str or Path
        Made if it is missing; files of these names that are there are replaced, each at once.
    model : nn.Module
        What `apply_bottlenecks` returned, trained since or not.
    plan : BottleneckPlan
        The plan that was applied.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    TypeError
        If ``plan`` is something else.
    """
    if not isinstance(plan, BottleneckPlan):
        raise TypeError(f"plan: expected a BottleneckPlan, got {type(plan).__name__}")
    folder = Path(folder)
    artifacts.write_architecture(folder, architecture_of(model))
    write_text(folder / PLAN, plan.to_json())
    replace_file(folder / artifacts.WEIGHTS, lambda path: save_model(model, str(path)))
    return folder


def load_bottlenecks(folder: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Read a network written by `save_bottlenecks`.

    Parameters
    ----------
    folder : str or Path
        Where it is.
    model : nn.Module, optional
        The dense network, for one that `srr_ext.models.create` did not make. It is copied, not changed; its weights do
        not matter.

    Returns
    -------
    nn.Module
        In evaluation mode, on the CPU (with ``model``: where that is), in the saved dtype.

    Raises
    ------
    ValueError
        Missing or damaged files, no ``model`` where it is needed, or files that do not fit the network: the first
        layer or tensor that disagrees is named.
    """
    folder = Path(folder)
    path = existing(folder / PLAN)
    plan = BottleneckPlan.from_json(path.read_text(encoding="utf-8", errors="replace"), str(path))
    weights = existing(folder / artifacts.WEIGHTS)
    small, _ = _with_bottlenecks(artifacts.dense_architecture(folder) if model is None else model, plan)
    return artifacts.fill(small, weights)
