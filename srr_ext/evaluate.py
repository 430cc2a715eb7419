"""``python -m srr_ext.evaluate``: the accuracy of a network, dense or pruned, on the test images.

For example ``python -m srr_ext.evaluate --model resnet56 --weights resnet56.th --data folder:PATH`` or, for a pruned
network, ``python -m srr_ext.evaluate --run runs/digits_cnn-digits-001``.
"""

from __future__ import annotations

import sys

from srr_ext.cli import steps
from srr_ext.cli.loading import trained_network
from srr_ext.cli.parsing import command
from srr_ext.cli.running import Session, on_screen
from srr_ext.cli.tables import make_console
from srr_ext.config import EvaluateConfig
from srr_ext.training import evaluate_topk


def measure(config: EvaluateConfig, session: Session) -> tuple[dict[str, float], int]:
    """Measure.

    Parameters
    ----------
    config : EvaluateConfig
        Which network and which images.
    session : Session
        Shows how far the work is.

    Returns
    -------
    accuracy : dict of str to float
        ``top1`` and, for more than five classes, ``top5``, in percent.
    n : int
        Number of test images.

    Raises
    ------
    UsageError
        Something the user can put right.
    """
    device = steps.check_device(config)
    network, images = trained_network(config, session)
    accuracy = evaluate_topk(network.to(device), images, "test", progress=session.progress)
    return accuracy, images.size("test")


def measure_and_show(config: EvaluateConfig, arguments: list[str], prog: str) -> None:
    """Measure and print."""
    steps.check(config)
    accuracy, n = measure(config, on_screen())
    shares = ", ".join(f"{name.replace('top', 'top-')} {share:.2f} %" for name, share in accuracy.items())
    make_console().print(f"{shares} of {n:,} test images")


main = command(EvaluateConfig, "srr_ext.evaluate", measure_and_show)

if __name__ == "__main__":
    sys.exit(main())
