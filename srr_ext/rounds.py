"""Pruning in several rounds: how far each goes, and what their plans are together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

from srr_ext.channels.records import NO_VERTEX, ChannelAnalysis, ChannelGroup
from srr_ext.cost import Target
from srr_ext.plan import LayerPlan, PruningPlan


def target_of_round(target: Target, number: int, rounds: int, dense: int, now: int) -> Target:
    """Return what a network has to get down to in one of several rounds.

    Every round keeps the same share of what it begins with: after round i of n the cost is at most
    :math:`keep^{i/n}` of the dense network's.

    Parameters
    ----------
    target : Target
        Of all rounds together.
    number : int
        Of this round, from 1.
    rounds : int
        How many there are.
    dense, now : int
        Cost of the dense network, and of what the rounds before have left.

    Returns
    -------
    Target
        As a share of ``now``; 1 if the rounds before have gone as far already.
    """
    limit = Target(target.quantity, target.keep ** (number / rounds)).limit(dense)
    return Target(target.quantity, min(1.0, limit / now))


def floors_of_round(floor: float, done: PruningPlan) -> dict[str, float]:
    """Turn a share of the dense groups that always stays into shares of what the rounds before have left.

    Parameters
    ----------
    floor : float
        Share of each group of the dense network.
    done : PruningPlan
        The rounds before.

    Returns
    -------
    dict of str to float
        By group, at most 1.
    """
    shares = {name: floor * group["size"] / group["kept"] for name, group in done.groups.items()}
    # Rounded down, so that the last bit of a quotient never asks for one more vertex.
    return {name: min(1.0, math.floor(share * 1e12) / 1e12) for name, share in shares.items()}


def join(analysis: ChannelAnalysis, first: PruningPlan, later: PruningPlan) -> PruningPlan:
    """Make of two plans that follow each other one that does the same in one cut.

    Parameters
    ----------
    analysis : ChannelAnalysis
        Of the dense model.
    first : PruningPlan
        Made for the dense model.
    later : PruningPlan
        Made for the model that ``first`` leaves.

    Returns
    -------
    PruningPlan
        For the dense model, with the method, target and gamma of ``later``, seed and fingerprint of ``first``.
        ``info["rounds"]`` has what the allocator said in each round, with its ``gamma``.

    Raises
    ------
    ValueError
        If ``later`` was made for a model of other widths; the first module that disagrees is named.
    """
    layers: dict[str, LayerPlan] = {}
    for name, widths in first.widths.items():
        one, two = first.layers.get(name, LayerPlan()), later.layers.get(name, LayerPlan())
        sides = ((one.out, two.out), (one.in_, two.in_))
        left = [width if kept is None else len(kept) for width, (kept, _) in zip(widths, sides, strict=True)]
        if later.widths.get(name) != left:
            met = later.widths.get(name)
            raise ValueError(f"later: {name} has [output, input] channels {left} after the first plan, there {met}")
        if (both := LayerPlan(*(_chain(kept, then) for kept, then in sides))) != LayerPlan():
            layers[name] = both
    groups = {group.name: {"size": group.size, "kept": _survivors(group, layers)} for group in analysis.groups}
    cost = {key: {"dense": count["dense"], "pruned": later.cost[key]["pruned"]} for key, count in first.cost.items()}
    if "latency" in cost:  # a machine is not as fast at one time as at another, so that only shares go on
        share = Fraction(later.cost["latency"]["pruned"], later.cost["latency"]["dense"])
        cost["latency"]["pruned"] = max(1, round(first.cost["latency"]["pruned"] * share))
    return replace(
        later,
        layers=layers,
        groups=groups,
        cost=cost,
        widths=first.widths,
        info={"rounds": [*_said(first), *_said(later)]},
        seed=first.seed,
        fingerprint=first.fingerprint,
    )


def _said(plan: PruningPlan) -> list[dict[str, Any]]:
    """Return what was said of every round of a plan."""
    return plan.info.get("rounds", [{"gamma": plan.gamma, **plan.info}])


def _chain(kept: tuple[int, ...] | None, then: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Turn indices into what ``kept`` left into indices into the whole."""
    return kept if then is None else then if kept is None else tuple(kept[index] for index in then)


def _survivors(group: ChannelGroup, layers: Mapping[str, LayerPlan]) -> int:
    """Count the vertices that have a channel left; a later plan may tie channels otherwise and take a part of one."""
    alive: set[int] = set()
    for member in group.producers:
        kept = layers.get(member.module, LayerPlan()).out
        alive.update(member.vertex.tolist() if kept is None else member.vertex[list(kept)].tolist())
    return len(alive - {NO_VERTEX})
