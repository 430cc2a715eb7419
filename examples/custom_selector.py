"""A selector of your own in fifteen lines, by name beside the others: ``python custom_selector.py``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import srr_ext
from srr_ext.channels import ChannelGroup
from srr_ext.criteria import SelectorContext


@srr_ext.register_selector("peak")
def peak(groups: Sequence[ChannelGroup], context: SelectorContext) -> list[Tensor]:
    """Score a channel by its largest absolute weight: a filter of many small weights goes before one of few large.

    Returns one float64 tensor [group.size] per group; the channels with the lowest scores go first. A group may have
    several producers (layers whose outputs are added); their filters are concatenated.
    """
    return [context.filters(group).abs().amax(1) for group in groups]


def main() -> None:
    """Use it like a built-in one, and see how far it agrees with l1."""
    torch.manual_seed(0)
    model = srr_ext.models.create("resnet20")
    example = torch.randn(1, 3, 32, 32)
    print("selectors:", ", ".join(srr_ext.available_selectors()))
    plans = {name: srr_ext.make_plan(model, example, selector=name, keep_macs=0.5) for name in ("peak", "l1")}
    for name, plan in plans.items():
        error = srr_ext.verify(model, plan, example)
        print(f"{name:<5}{plan.cost['macs']['pruned']:>12,} of {plan.cost['macs']['dense']:,} MACs, error {error:.0e}")
    kept = {name: {(layer, c) for layer, p in plan.layers.items() for c in p.out or ()} for name, plan in plans.items()}
    print(f"{len(kept['peak'] & kept['l1'])} channels are kept by both, {len(kept['peak'] ^ kept['l1'])} by one alone")


if __name__ == "__main__":
    main()
