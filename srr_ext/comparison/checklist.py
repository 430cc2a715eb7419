"""What a comparison lacks of what one needs to be believed, after ShrinkBench (Blalock and others, MLSys 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from srr_ext.comparison.figures import QUANTITIES, written
from srr_ext.comparison.grid import DENSE_LONGER, REWINDS
from srr_ext.comparison.records import Comparison
from srr_ext.comparison.results import CONTROLS, EQUAL, trained_anew
from srr_ext.comparison.sparse_cells import SPARSIFY
from srr_ext.comparison.statistics import LEAST_SEEDS
from srr_ext.comparison.words import epochs_more, extra_epochs, plural

LEAST_POINTS = 5
_PROVEN = 1e-9  # relative difference of the cut network from the masked one
_TRAINING = ("fine_tune", "calibration", "retrain", "rewind_to")  # settings that say nothing of what is pruned


def warnings(comparison: Comparison) -> list[str]:
    """Say in plain words what the comparison lacks of what one needs to be believed."""
    rows = comparison.rows
    if not rows:
        return []
    found = []
    seeds = sorted({row.seed for row in rows})
    if len(seeds) < LEAST_SEEDS:
        have = "There is only one seed" if len(seeds) == 1 else f"There are only {len(seeds)} seeds"
        deviation = ", so there are no standard deviations" if len(seeds) == 1 else ""
        found.append(f"{have}{deviation}: differences may be luck, and no claim is made below {LEAST_SEEDS} seeds.")
    if len(comparison.keeps) < LEAST_POINTS:
        points = plural(len(comparison.keeps), "operating point")
        found.append(
            f"There {'is' if len(comparison.keeps) == 1 else 'are'} only {points}: curves of accuracy cross, so what "
            f"leads here may trail at other costs. {LEAST_POINTS} are the least to see it."
        )
    found += _controls_missing(comparison)
    if missing := _cells_missing(comparison):
        shown = "; ".join(missing[:6]) + (f"; and {len(missing) - 6} more" if len(missing) > 6 else "")
        found.append(
            f"{plural(len(missing), 'cell')} of the grid {'is' if len(missing) == 1 else 'are'} missing ({shown}), so "
            "that means are not over the same seeds. Tests pair only the seeds that both methods have."
        )
    found += _costs_differ(comparison)
    longer = {label: extra for label, extra in extra_epochs(comparison).items() if extra and label != DENSE_LONGER}
    if longer:
        said = ", ".join(f"{label} {epochs_more(extra)}" for label, extra in longer.items())
        found.append(f"Some do not train for as long as the others, which alone may explain a difference: {said}.")
    own = [
        label
        for label, method in comparison.methods.items()
        if label not in CONTROLS and any(key.split(".")[0] in _TRAINING for key in method["settings"])
    ]
    if own:
        found.append(f"Some have a recipe of their own, so that more than the method differs: {', '.join(own)}.")
    settings = [method["settings"] for method in comparison.methods.values()]
    if comparison.config.get("weights") and any(map(trained_anew, settings)):
        found.append(
            "The dense network came with its weights, and how long it was trained is not known here. If that was "
            "longer than the control from scratch was, this control shows nothing, and no claim is made from it."
        )
    usual = comparison.config.get("retrain")
    if comparison.config.get("weights") and any(one.get("retrain", usual) in REWINDS for one in settings):
        found.append(
            "The dense network came with its weights, and by which recipe it was trained is not known here. Rewinding "
            "takes it to be that of the settings."
        )
    if not comparison.latency:
        found.append("Time was not measured: fewer multiply-accumulates need not be faster.")
    dense = comparison.dense()
    if dense.std:
        found.append(
            f"The dense networks of the seeds differ ({written(dense)} %): each result is compared with its own."
        )
    if (error := comparison.facts["surgery_error"]) > _PROVEN:
        found.append(f"In some cell the cut network differs from the masked one by {error:.1e} (relative).")
    return found


def _controls_missing(comparison: Comparison) -> list[str]:
    """Say which controls are not there, be it under another name; channels and single weights need their own."""
    labels = dict.fromkeys(row.method for row in comparison.rows)
    kinds = {row.method: "weights" if row.allocator == SPARSIFY else "channels" for row in comparison.rows}
    present = [kind for kind in ("channels", "weights") if kind in kinds.values()]
    gone = []
    for kind in present:
        of_kind = [label for label in labels if kinds[label] == kind and label != DENSE_LONGER]
        if of_kind:
            suffix = f", of {kind}" if len(present) > 1 else ""
            gone += [f"{control}{suffix}" for control, there in _controls_of(comparison, kind, of_kind) if not there]
    if DENSE_LONGER not in labels:
        gone.append("the dense network trained for as much longer (is a gain only the longer training?)")
    found = [f"There is no control of this kind: {'; '.join(gone)}."] if gone else []
    rounds = [label for label, said in comparison.methods.items() if _in_rounds(said["settings"])]
    if rounds and any(trained_anew(said["settings"]) for said in comparison.methods.values()):
        found.append(
            f"New weights are trained under masks of one shot, so that nothing says what those of {', '.join(rounds)} "
            "are worth without their weights; srr sparsify --masks --retrain reinit does."
        )
    return found


def _controls_of(comparison: Comparison, kind: str, labels: Sequence[str]) -> list[tuple[str, bool]]:
    """Return which controls the methods of one kind need, and whether each is there."""
    parts = {row.method: (row.allocator.partition(":")[0], row.selector.partition(":")[0]) for row in comparison.rows}
    settings = {label: comparison.methods[label]["settings"] for label in labels}
    anew = [label for label in labels if trained_anew(settings[label])]
    spread = {
        "channels": "uniform widths (does the choice of widths matter?)",
        "weights": "the same share of every layer (does it matter in which layers weights go?)",
    }
    even = (
        (parts[label][0] == "uniform" or settings[label].get("scope") == "layerwise")
        and parts[label][1] != "random"
        and label not in anew
        for label in labels
    )
    return [
        (f"random selection (does the choice of {kind} matter?)", any(parts[label][1] == "random" for label in labels)),
        (spread[kind], any(even)),
        (
            "the pruned network trained from scratch (do the trained weights matter?)",
            bool(anew) or "scratch" in labels,
        ),
    ]


def _in_rounds(settings: Mapping[str, str]) -> bool:
    """Whether a method removes single weights a few at a time."""
    return settings.get("schedule", "one-shot") != "one-shot"


def _cells_missing(comparison: Comparison) -> list[str]:
    """Name the cells that others of the same share or seed have, and these not."""
    there = {(row.method, row.keep, row.seed) for row in comparison.rows}
    seeds = sorted({row.seed for row in comparison.rows} | set(comparison.config.get("seeds") or ()))
    return [
        f"{label} at {keep:g}, seed {seed}"
        for label in comparison.labels
        for keep in ([1.0] if label == DENSE_LONGER else comparison.keeps)
        for seed in seeds
        if (label, keep, seed) not in there
    ]


def _costs_differ(comparison: Comparison) -> list[str]:
    quantity = comparison.rows[0].quantity
    if quantity == "channels":
        return ["Methods keep the same share of channels, which may cost different numbers of multiply-accumulates."]
    found = []
    for keep in comparison.keeps:
        costs = {entry.method: getattr(entry, quantity).mean for entry in comparison.at(keep)}
        least, most = min(costs, key=costs.__getitem__), max(costs, key=costs.__getitem__)
        if costs[most] > (1 + EQUAL) * costs[least]:
            found.append(f"at {keep:g}, {most} has {100 * (costs[most] / costs[least] - 1):.1f} % more than {least}")
    noun = QUANTITIES[quantity].removeprefix("the ")
    return [f"{noun[:1].upper()}{noun[1:]} are not the same for all: {'; '.join(found)}."] if found else []
