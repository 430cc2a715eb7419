"""Compare methods: a grid of methods, shares to keep and seeds, beside controls, with one dense network for all.

    python -m srr_ext.compare --config recipes/compare-digits.yaml --output runs/compare-digits
    python -m srr_ext.compare --methods srr uniform+fpgm --keep 0.5 0.25 --seeds 0 1 2 --epochs 10

Running it again goes on where it was: finished cells stay. ``compare`` below is the whole pipeline, one step a line.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from srr_ext.cli.parsing import command
from srr_ext.cli.running import Session, on_screen
from srr_ext.cli.tables import make_console
from srr_ext.config import CompareConfig


def compare(config: CompareConfig, folder: Path, session: Session) -> int:
    """Run the pipeline.

    Parameters
    ----------
    config : CompareConfig
        Everything the user decides.
    folder : Path
        New, empty, or begun with the same settings.
    session : Session
        Shows how far the work is.

    Returns
    -------
    int
        How many cells failed.

    Raises
    ------
    UsageError
        Something the user can put right.
    KeyboardInterrupt
        Stopped; the message says how to go on.
    """
    from srr_ext.comparison import page, running

    running.check(config, folder, session)
    with running.opened(folder, config), running.stoppable(folder):
        weights = running.dense_network(config, folder, session)
        failed = running.run_cells(config, folder, weights, session)
        running.measure_latencies(config, folder, weights, session)
        page.write(folder)
    return failed


def compare_and_show(config: CompareConfig, arguments: list[str], prog: str) -> None:
    """Compare and show the results; exit with code 1 if a cell failed."""
    from srr_ext.comparison import results, running

    if config.resume is not None:
        config = running.resumed(config, prog)
    folder = config.output or running.default_folder(config)
    failed = compare(config, folder, on_screen())
    console = make_console()
    console.print(results.result_table(folder))
    for failure in results.load(folder).failures:
        text = f"failed: {failure.method}, keep {failure.keep:g}, seed {failure.seed}: {failure.message}"
        console.print(text, markup=False, soft_wrap=True)
    console.print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}", soft_wrap=True)
    again = f"; {shlex.join([*shlex.split(prog), *arguments])} tries what failed again" if failed else ""
    console.print(f"next: open {folder / 'report.html'}{again}", markup=False, soft_wrap=True)
    if failed:
        sys.exit(1)


main = command(CompareConfig, "srr_ext.compare", compare_and_show)

if __name__ == "__main__":
    sys.exit(main())
