"""Does a filter of a redundant layer matter less? The claim behind SRR, measured without fine-tuning.

    python docs/results/claim_order.py --model resnet20 --weights dense.safetensors --data folder:cifar10-jpeg \
        --output docs/results/claim-order/resnet20-rms.json
    python docs/results/claim_order.py --table docs/results/claim-order

The claim (Wang, Li, Wang, CVPR 2021): where layer eta is much more redundant than layer xi, accuracy after pruning the
least important filter of xi <= the globally least important one <= a random one of eta <= the least important one of
eta. Each of the four is done to the trained network, by itself, with 1, 2, 4, ... filters, and measured on validation
images. Beside it stands what the claim rests on: how far the redundancy of a layer goes together with the harm that
random filters do which are taken from it (Spearman's correlation over all layers; the claim wants it clearly negative),
and the same for the mere width of a layer, as one of many filters does less harm than one of few in any case.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from srr_ext import analyze, analyze_channels, cut, data, models
from srr_ext.channels import ChannelAnalysis, ChannelGroup
from srr_ext.criteria import SelectorContext, get_selector
from srr_ext.graph import select_groups
from srr_ext.plan import plan_from_vertices
from srr_ext.progress import Progress

Harm = tuple[float, float]  # loss and top-1 in percent


class Trial:
    """One trained network whose filters are taken out, on the images it is measured on."""

    def __init__(self, model: nn.Module, analysis: ChannelAnalysis, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.model, self.analysis, self.images, self.labels = model.eval(), analysis, images, labels

    @torch.no_grad()
    def without(self, gone: dict[str, Sequence[int]]) -> Harm:
        """Measure the network without some vertices of some groups, each of which keeps one at least."""
        sizes = {group.name: group.size for group in self.analysis.groups}
        kept = {
            name: np.setdiff1d(np.arange(sizes[name]), vertices[: sizes[name] - 1]) for name, vertices in gone.items()
        }
        small = cut(self.model, plan_from_vertices(self.analysis, kept)) if gone else self.model
        scores = torch.cat([small(batch) for batch in self.images.split(250)])
        right = (scores.argmax(1) == self.labels).double().mean()
        return float(cross_entropy(scores, self.labels)), 100 * float(right)


def least_important(importance: dict[str, np.ndarray], count: int, per_layer: dict[str, float]) -> dict[str, list[int]]:
    """Return the vertices with the lowest importance over all groups, each divided by its group's mean."""
    pooled = [(s / per_layer[name], name, v) for name, scores in importance.items() for v, s in enumerate(scores)]
    gone: dict[str, list[int]] = {}
    for _, name, vertex in sorted(pooled)[:count]:
        gone.setdefault(name, []).append(vertex)
    return gone


def study(
    trial: Trial,
    groups: Sequence[ChannelGroup],
    redundancy: dict[str, float],
    importance: dict[str, np.ndarray],
    counts: Sequence[int],
    draws: int,
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    """Take filters out in the four ways, and at random out of every layer; return every measurement."""
    most = max(groups, key=lambda group: redundancy[group.name])
    least = min(groups, key=lambda group: redundancy[group.name])
    mean = {name: float(scores.mean()) for name, scores in importance.items()}
    ascending = {name: np.argsort(scores, kind="stable").tolist() for name, scores in importance.items()}
    found: dict[str, Any] = {
        "dense": trial.without({}),
        "most_redundant": most.name,
        "least_redundant": least.name,
        "by_count": {},
    }
    with progress.stage("filters out", len(counts) * (3 + draws * len(groups))) as step:

        def measured(gone: dict[str, Sequence[int]]) -> Harm:
            harm = trial.without(gone)
            step()
            return harm

        for count in counts:
            at_random = {
                group.name: [
                    measured({group.name: draw.permutation(group.size)[:count].tolist()})
                    for draw in [np.random.default_rng([seed, count, place]) for place in range(draws)]
                ]
                for group in groups
            }
            found["by_count"][str(count)] = {
                "least important of the least redundant": measured({least.name: ascending[least.name][:count]}),
                "least important of all": measured(least_important(importance, count, mean)),  # type: ignore[arg-type]
                "random of the most redundant": at_random[most.name],
                "least important of the most redundant": measured({most.name: ascending[most.name][:count]}),
                "random of every layer": at_random,
            }
    return found


def correlation(quantity: dict[str, float], harm: dict[str, list[Harm]]) -> float:
    """Spearman's correlation of a quantity of layers with the mean loss that their random filters leave behind."""
    from scipy.stats import spearmanr  # it takes a second

    pairs = [(quantity[name], statistics.mean(loss for loss, _ in found)) for name, found in harm.items()]
    if min(len({value for value, _ in pairs}), len(pairs)) < 2:
        return math.nan
    return float(spearmanr(*zip(*pairs, strict=True)).statistic)


def run(options: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """Do the study that the flags describe."""
    images = data.load(options.data, seed=options.seed, validation=options.validation, progress=progress)
    model = models.create(
        options.model,
        len(images.classes),
        options.weights,
        in_channels=images.in_channels,
        image_size=images.image_size,
    ).eval()
    example = images.example()
    analysis = analyze_channels(model, example)
    groups = select_groups(analysis, "keep")
    report = analyze(model, example, keep_macs=options.keep_macs, distance=options.distance, analysis=analysis)
    redundancy = {group.name: group.redundancy for group in report.groups}
    scores = get_selector("l1")(groups, SelectorContext(model, example))
    importance = {group.name: score.numpy() for group, score in zip(groups, scores, strict=True)}
    batches = list(images.batches("validation", 250))
    chosen = torch.randperm(images.size("validation"), generator=torch.Generator().manual_seed(options.seed))
    pixels, labels = (torch.cat(parts)[chosen[: options.images]] for parts in zip(*batches, strict=True))
    found = study(
        Trial(model, analysis, pixels, labels),
        groups,
        redundancy,
        importance,
        options.removed,
        options.draws,
        options.seed,
        progress,
    )
    named = ("model", "data", "distance", "keep_macs", "validation", "images", "draws", "removed", "seed")
    settings = {name: getattr(options, name) for name in named} | {"gamma": report.gamma}
    width = {group.name: group.size for group in groups}
    return {"settings": settings, "redundancy": redundancy, "width": width, **found}


WAYS = (
    "least important of the least redundant",
    "least important of all",
    "random of the most redundant",
    "least important of the most redundant",
)
HEAD = ("network", "distance", "filters", *WAYS, "order holds", "harm and R", "harm and width")


def rows(record: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the cells of one study: by how much each way raises the loss, in thousandths."""
    settings, made = record["settings"], []
    for count, found in record["by_count"].items():
        harm = {
            way: [1000 * (loss - record["dense"][0]) for loss, _ in (found[way] if way == WAYS[2] else [found[way]])]
            for way in WAYS
        }
        means = [statistics.mean(harm[way]) for way in WAYS]
        cells = [f"{mean:+.1f}" for mean in means]
        if len(harm[WAYS[2]]) > 1:
            cells[2] += f" ± {statistics.stdev(harm[WAYS[2]]):.1f}"
        holds = ["yes" if earlier >= later else "no" for earlier, later in pairwise(means)]
        of_layers = found["random of every layer"]
        related = [f"{correlation(record[key], of_layers):+.2f}" for key in ("redundancy", "width")]
        name, distance = settings["model"], settings["distance"]
        made.append((name, distance, count, *cells, ", ".join(holds), *related))
    return made


def table(folder: Path) -> str:
    """Return the Markdown table of all studies in a folder."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    cells = [HEAD, ("---", "---", *["--:"] * (len(HEAD) - 2)), *(row for record in records for row in rows(record))]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a study, or print the table of those that were run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, help="print the table of the studies in this folder")
    parser.add_argument("--model", default="digits_cnn")
    parser.add_argument("--weights")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--distance", choices=("rms", "euclidean"), default="rms")
    parser.add_argument("--keep-macs", type=float, default=0.5, help="target for which gamma is chosen")
    parser.add_argument("--validation", type=float, default=0.1, help="share of the training images held out")
    parser.add_argument("--images", type=int, default=1000, help="validation images to measure on")
    parser.add_argument("--removed", type=int, nargs="+", default=[1, 2, 4, 8], help="how many filters go")
    parser.add_argument("--draws", type=int, default=20, help="random choices per layer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="file for all measurements, as JSON")
    options = parser.parse_args(arguments)
    if options.table:
        print(table(options.table))
        return
    from rich.console import Console

    from srr_ext.files import write_json
    from srr_ext.progress import on

    record = run(options, on(Console(stderr=True)))
    if options.output:
        write_json(options.output, record)
    print("\n".join(" | ".join(row) for row in (HEAD, *rows(record))))


if __name__ == "__main__":
    sys.exit(main())
