"""``python -m srr_ext.analyze`` and ``srr analyze``: show where a network is redundant and what must stay."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict

from rich.console import Console

from srr_ext.channels import analyze_channels
from srr_ext.cli import steps
from srr_ext.cli.parsing import UsageError, blame, command, flag_of
from srr_ext.cli.running import on_screen
from srr_ext.cli.tables import make_console, pin_table, redundancy_table
from srr_ext.cli.training import dense_network
from srr_ext.config import AnalyzeConfig
from srr_ext.cost import CostModel
from srr_ext.files import write_json
from srr_ext.redundancy import analyze
from srr_ext.training.lending import lent_to


def show(config: AnalyzeConfig, console: Console) -> None:
    """Analyse and print.

    Parameters
    ----------
    config : AnalyzeConfig
        Everything the user decides.
    console : rich.console.Console
        Receives the tables.

    Raises
    ------
    UsageError
        Something the user can put right.
    """
    if config.output is not None and (config.output.exists() or not config.output.parent.is_dir()):
        raise UsageError("--output", f"{config.output} is there already, or its folder is not; name a new file")
    session = on_screen()
    images = steps.load_data(config, session)
    network = dense_network(config, images, session, steps.rehearse if config.weights is None else None)
    example = images.example()
    with blame(flag_of(next(iter(config.target))), AnalyzeConfig), ExitStack() as stack:
        analysis = analyze_channels(network, example, ignored=config.ignored)
        if config.keep_latency is not None:  # the device and the threads with which `prune` measures
            device = steps.check_device(config)
            example = example.to(device)
            stack.enter_context(lent_to(device, network))
            stack.enter_context(steps.threads_for_macs(CostModel(analysis, "macs").dense))
        report = analyze(
            network,
            example,
            config.gamma,
            streams=config.streams,
            distance=config.distance,
            analysis=analysis,
            latency_batch=config.latency_batch,
            progress=session.progress,
            **config.target,
        )
    console.print(redundancy_table(report))
    if report.pins:
        console.print(pin_table(report.pins))
    if analysis.unreached:
        console.print(f"never reached by an image: {', '.join(analysis.unreached)}", markup=False)
    if config.output is not None:
        with blame("--output"):
            write_json(config.output, asdict(report) | {"unreached": analysis.unreached})


def check_and_show(config: AnalyzeConfig, arguments: list[str], prog: str) -> None:
    """Analyse and print."""
    steps.check(config)
    show(config, make_console())


main = command(AnalyzeConfig, "srr_ext.analyze", check_and_show)
