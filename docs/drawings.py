"""Draw the figures of the documentation from real numbers: ``python docs/drawings.py`` writes ``docs/figures/*.svg``.

One figure needs eight filters alone. The two others are of the embedded example, which is trained first, exactly as
``srr prune`` with its defaults trains it; that takes about half a minute.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import srr_ext
from srr_ext import data, models
from srr_ext.allocators import prepare
from srr_ext.allocators.gamma import redundancy_trajectories
from srr_ext.channels import ChannelAnalysis, analyze_channels
from srr_ext.cost import CostModel, Target
from srr_ext.graph import group_graphs, group_matrices, select_groups
from srr_ext.training import TrainConfig, train

FIGURES = Path(__file__).parent / "figures"
KEEP_MACS = 0.5

# Eight filters with two weights each: directions in degrees, and lengths, which do not matter to the graph.
DEGREES = (10, 22, 36, 50, 120, 131, 200, 300)
LENGTHS = (1.0, 0.7, 0.9, 0.6, 0.8, 1.1, 0.9, 0.7)
GAMMAS = (0.05, 0.18, 0.9)
SIGN = "\N{GREEK SMALL LETTER GAMMA}"

# Both are replaced when the file is written: a figure takes the text colour of a light or of a dark page.
INK, FAINT = "#010203", "#040506"
# Told apart without colour vision (Okabe and Ito 2008), and visible on white as well as on dark grey.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
_STYLE = (
    "<style>svg{color:#24292f;--faint:#8b949e}"
    "@media (prefers-color-scheme:dark){svg{color:#e3e6ea;--faint:#757d87}}</style>"
)


def toy_layer() -> Tensor:
    """Return the small layer that the first figure shows.

    Returns
    -------
    Tensor of float32, shape [8, 2]
        One row per filter.
    """
    angles = torch.deg2rad(torch.tensor(DEGREES, dtype=torch.float32))
    return torch.tensor(LENGTHS)[:, None] * torch.stack((angles.cos(), angles.sin()), 1)


def embedded_example() -> tuple[nn.Module, Tensor]:
    """Train the network of ``srr prune``'s default run.

    Returns
    -------
    model : nn.Module
        In evaluation mode.
    example : Tensor, shape [1, 1, 8, 8]
        One image.
    """
    torch.manual_seed(0)
    model = models.create("digits_cnn", 10, in_channels=1, image_size=8)
    images = data.load("digits")
    train(model, images, TrainConfig(), device="cpu")
    return model.eval(), images.example()


def draw_graphs(weight: Tensor) -> Any:
    """Draw filters, their graph at three thresholds, and what follows from it."""
    figure, axes = _figure(1, 1 + len(GAMMAS), (9.6, 3.3))
    unit = (weight / weight.norm(dim=1, keepdim=True)).numpy()
    _circle(axes[0])
    for number, (row, tip) in enumerate(zip(weight.tolist(), unit, strict=True)):
        axes[0].annotate("", row, (0, 0), arrowprops={"arrowstyle": "->", "color": INK, "lw": 1.2})
        axes[0].plot(*tip, "o", color=INK, ms=4)
        _number(axes[0], number, tip)
    axes[0].set_title("8 filters of 2 weights", color=INK, fontsize=10)
    axes[0].text(0, -1.6, "arrow: the filter\ndot: scaled to length 1", ha="center", va="top", color=INK, fontsize=9)
    for gamma, axis in zip(GAMMAS, axes[1:], strict=True):
        graphs = srr_ext.ops.filter_graphs([weight], gamma)
        joined = graphs.to_dense(0).numpy()
        k, upper, lower = (
            int(size)
            for size in (
                srr_ext.ops.components(graphs),
                srr_ext.ops.covering(graphs, 1),
                srr_ext.ops.covering(graphs, 2),
            )
        )
        _circle(axis)
        for i, j in zip(*np.nonzero(np.triu(joined)), strict=True):
            axis.plot(*np.stack((unit[i], unit[j]), 1), color=INK, lw=1)
        centres = _greedy_cover(joined)
        colours = _components(joined)
        for number, tip in enumerate(unit):
            alone = colours.count(colours[number]) == 1
            axis.plot(*tip, "o", color=FAINT if alone else COLOURS[colours[number]], ms=8)
            if number in centres:
                axis.plot(*tip, "o", mfc="none", mec=INK, ms=13)
            _number(axis, number, tip)
        cover = f"{upper}" if upper == lower else f"{lower} to {upper}"
        ratio = len(weight) / (0.35 * k + 0.65 * (upper + lower) / 2)
        axis.set_title(f"{SIGN} = {gamma:g}", color=INK, fontsize=10)
        parts = f"{k} component{'' if k == 1 else 's'}"
        axis.text(
            0, -1.6, f"{parts}\ncovered by {cover}\nR = {ratio:.2f}", ha="center", va="top", color=INK, fontsize=9
        )
    figure.subplots_adjust(0.01, 0.22, 0.99, 0.92, wspace=0.02)
    return figure


def draw_curves(model: nn.Module, example: Tensor) -> Any:
    """Draw R of every group of a network against gamma, on a logarithmic scale."""
    gammas = np.geomspace(0.02, 0.5, 120)
    reports = [srr_ext.analyze(model, example, float(gamma)) for gamma in gammas]
    auto = srr_ext.analyze(model, example, keep_macs=KEEP_MACS).gamma
    figure, (axis,) = _figure(1, 1, (7.6, 3.9))
    names = [group.name for group in reports[0].groups]
    for number, name in enumerate(names):
        values = [report.groups[number].redundancy for report in reports]
        label = f"{name} ({reports[0].groups[number].n_filters} filters)"
        axis.plot(gammas, values, color=COLOURS[number], lw=1.8, label=label)
    axis.axvline(auto, color=INK, lw=1, ls="--")
    axis.text(auto * 0.97, 7, f"auto: {SIGN} = {auto:.4f}", color=INK, ha="right", fontsize=9)
    axis.set_xscale("log")
    axis.set_yscale("log")
    ticks = (0.02, 0.05, 0.1, 0.2, 0.5)
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_xticks([], minor=True)
    heights = (1, 2, 5, 10, 24, 48, 72)
    axis.set_yticks(heights, [str(height) for height in heights])
    axis.set_yticks([], minor=True)
    axis.set_xlabel(SIGN, color=INK)
    axis.set_ylabel("redundancy R", color=INK)
    axis.legend(frameon=False, labelcolor=INK, fontsize=9, loc="upper left")
    figure.subplots_adjust(0.09, 0.13, 0.99, 0.98)
    return figure


def draw_removal(model: nn.Module, example: Tensor) -> Any:
    """Draw the trajectories of all groups, and the order in which the loop takes from them."""
    analysis = analyze_channels(model, example)
    names, values, taken = removal(model, example, analysis)
    figure, (left, right) = _figure(1, 2, (9.6, 3.7))
    for number, (name, trajectory) in enumerate(zip(names, values, strict=True)):
        gone = taken.count(number)
        left.plot(range(len(trajectory)), trajectory, color=COLOURS[number], lw=1, ls=":")
        walked = trajectory[: gone + 1]  # no value after the last removal that the floor allows
        left.plot(range(len(walked)), walked, color=COLOURS[number], lw=2, label=f"{name}: loses {gone}")
        left.plot(len(walked) - 1, walked[-1], "o", color=COLOURS[number], ms=5)
    left.set_xlabel("filters removed from the group", color=INK)
    left.set_ylabel("redundancy R of what is left", color=INK)
    left.set_title("each group alone: R after k removals", color=INK, fontsize=10)
    seen = [0] * len(names)
    for step, number in enumerate(taken):
        right.plot(step + 1, values[number][seen[number]], "o", color=COLOURS[number], ms=3.5)
        seen[number] += 1
    right.set_xlabel("removal", color=INK)
    right.set_title(f"together: the {len(taken)} removals, most redundant group first", color=INK, fontsize=10)
    for axis in (left, right):
        axis.set_yscale("log")
        axis.set_ylim(0.95, 1.15 * max(map(max, values)))
        heights = (1, 2, 5, 10, 20, 50)
        axis.set_yticks(heights, [str(height) for height in heights])
        axis.set_yticks([], minor=True)
    left.legend(frameon=False, labelcolor=INK, fontsize=9)
    figure.subplots_adjust(0.07, 0.14, 0.99, 0.92, wspace=0.12)
    return figure


def removal(
    model: nn.Module, example: Tensor, analysis: ChannelAnalysis
) -> tuple[list[str], list[list[float]], list[int]]:
    """Go through the loop of SRR as the paper states it, and check that the plan comes to the same.

    Parameters
    ----------
    model : nn.Module
        The dense network.
    example : Tensor
        One image.
    analysis : ChannelAnalysis
        Its channels.

    Returns
    -------
    names : list of str
        Of the groups.
    values : list of list of float
        R of each group after 0, 1, ... removals.
    taken : list of int
        The group that lost a filter in each step.
    """
    groups, target = select_groups(analysis, "keep"), Target("macs", KEEP_MACS)
    plan = srr_ext.make_plan(model, example, keep_macs=KEEP_MACS, analysis=analysis)
    assert plan.gamma is not None
    _, context = prepare(groups, model, example, "l1")
    graphs = group_graphs(groups, group_matrices(groups, model), plan.gamma)
    values = [trajectory.tolist() for trajectory in redundancy_trajectories(groups, graphs, context)]
    cost = CostModel(analysis, "macs")
    walker, taken, gone = cost.walker(groups), [], [0] * len(groups)
    while walker.current > target.limit(cost.dense):
        able = [i for i, trajectory in enumerate(values) if gone[i] < len(trajectory)]
        most = max(able, key=lambda i: (values[i][gone[i]], groups[i].size - gone[i], -i))
        walker.remove(most, int(context.schedules[most].order[gone[most]]))
        gone[most] += 1
        taken.append(most)
    needed: set[int] = set()
    for step in reversed(range(len(taken))):  # the last removal took more than was missing: others come back
        group, fewer = taken[step], list(gone)
        fewer[group] -= 1
        left = {g.name: s.kept(g.size - n) for g, s, n in zip(groups, context.schedules, fewer, strict=True)}
        if group in needed or cost.of(left) > target.limit(cost.dense):
            needed.add(group)
        else:
            gone = fewer
            taken[step] = -1
    taken = [group for group in taken if group >= 0]
    kept = {group.name: group.size - n for group, n in zip(groups, gone, strict=True)}
    if kept != {name: sizes["kept"] for name, sizes in plan.groups.items()}:
        raise RuntimeError(f"the loop keeps {kept}, the plan {plan.groups}")
    return [group.name for group in groups], values, taken


def write(name: str, figure: Any) -> Path:
    """Write a figure as SVG that suits light and dark pages, the same bytes for the same numbers.

    Parameters
    ----------
    name : str
        Without suffix.
    figure : matplotlib.figure.Figure
        Drawn in the colours above.

    Returns
    -------
    Path
        The file.
    """
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue().replace(INK, "currentColor").replace(FAINT, "var(--faint)")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"(<svg [^>]*>)", rf"\1{_STYLE}", svg, count=1)
    path = FIGURES / f"{name}.svg"
    path.write_text("\n".join(line.rstrip() for line in svg.splitlines()) + "\n", encoding="utf-8")
    return path


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size)
    axes = figure.subplots(rows, columns, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(FAINT)
        axis.tick_params(colors=INK, labelcolor=INK, labelsize=9)
    return figure, axes


def _circle(axis: Any) -> None:
    angles = np.linspace(0, 2 * np.pi, 200)
    axis.plot(np.cos(angles), np.sin(angles), color=FAINT, lw=0.6)
    axis.set(xlim=(-1.4, 1.4), ylim=(-1.4, 1.4), aspect="equal")
    axis.axis("off")


def _number(axis: Any, number: int, tip: np.ndarray) -> None:
    axis.text(*(1.28 * tip), str(number), ha="center", va="center", color=INK, fontsize=8)


def _greedy_cover(joined: np.ndarray) -> list[int]:
    """Return the centres of the greedy cover of radius 1."""
    covered, centres = np.zeros(len(joined), bool), []
    for vertex in np.argsort(-joined.sum(1), kind="stable"):
        if not covered[vertex]:
            centres.append(int(vertex))
            covered[vertex] = True
            covered |= joined[vertex]
    return centres


def _components(joined: np.ndarray) -> list[int]:
    """Return the number of the component of every vertex."""
    found = [-1] * len(joined)
    for start in range(len(joined)):
        if found[start] < 0:
            number, queue = max(found) + 1, [start]
            while queue:
                vertex = queue.pop()
                found[vertex] = number
                queue += [int(other) for other in np.flatnonzero(joined[vertex]) if found[other] < 0]
    return found


def main() -> None:
    """Draw all figures."""
    FIGURES.mkdir(exist_ok=True)
    write("graphs", draw_graphs(toy_layer()))
    model, example = embedded_example()
    write("gamma", draw_curves(model, example))
    write("removal", draw_removal(model, example))
    report = srr_ext.analyze(model, example, keep_macs=KEEP_MACS)
    print(report.to_json())


if __name__ == "__main__":
    main()
