"""New weights for an architecture that is there, the control of every method that keeps weights."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from srr_ext.copying import copy_model
from srr_ext.training.lending import seeded

_STREAM = 1  # any number, but always this one


def reinitialise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Copy a model and draw all its weights anew.

    Parameters
    ----------
    model : nn.Module
        Left as it is.
    seed : int, default 0
        Fixes the weights. They are others than those of a network that was made under ``torch.manual_seed(seed)``.

    Returns
    -------
    nn.Module
        Every module has been given what its ``reset_parameters`` draws, for the widths that it has now, and trains it
        even if it was frozen; a module after those that it holds, so that a network which draws weights in its own way
        has the last word if it offers ``reset_parameters``, too. Where it draws them in its constructor alone, the
        weights are those that torch gives to layers of their kinds.

    Raises
    ------
    ValueError
        If a module with parameters of its own has no ``reset_parameters``, or one that leaves some of them out: they
        would keep their trained values.
    """
    fresh = copy_model(model)
    with seeded(_own_stream(seed)), torch.no_grad():
        for name, module in reversed(list(fresh.named_modules())):
            _reset(module, name or "the model itself")
    return fresh.requires_grad_(True)


def _own_stream(seed: int) -> int:
    """Return another seed, so that a network which resets itself as it was made does not get its first weights back."""
    return int(np.random.SeedSequence([seed, _STREAM]).generate_state(1, np.uint64)[0] >> 1)


def _reset(module: nn.Module, name: str) -> None:
    """Draw the parameters of one module, and make sure of it."""
    own = dict(module.named_parameters(recurse=False))
    # torch's attention and transformers have theirs under a name of their own.
    reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    if not callable(reset):
        if own:
            raise ValueError(
                f"model: {name} ({type(module).__name__}) has parameters but no reset_parameters(), so it cannot be "
                "trained from scratch; give it that method"
            )
        return
    for parameter in own.values():
        if parameter.is_floating_point():
            parameter.fill_(math.nan)
    reset()
    left = [key for key, parameter in own.items() if bool(parameter.isnan().any())]
    if left:
        raise ValueError(
            f"model: reset_parameters() of {name} ({type(module).__name__}) does not draw its {left[0]}, so it cannot "
            "be trained from scratch"
        )
