"""A run's curves for TensorBoard: ``tensorboard --logdir runs``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from srr_ext.artifacts import EVENTS


class EventLog:
    """Writes training records and the final figures of a run as TensorBoard events.

    Parameters
    ----------
    folder : str or Path
        The run folder; events go to its subfolder ``events``, which is made with the first record.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> with EventLog(folder) as events:
    ...     events.log({"stage": "fine-tune", "epoch": 1, "loss": 0.7})
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / EVENTS
        self._writer: Any = None

    def __enter__(self) -> EventLog:
        """Return the log itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what is left and close the file."""
        self.close()

    def log(self, record: Mapping[str, Any]) -> None:
        """Write one record of ``log.jsonl`` as scalars ``<stage>/<name>`` at step ``epoch``.

        Parameters
        ----------
        record : mapping
            ``stage``, ``epoch`` and numbers such as ``lr``, ``loss``, ``train_top1`` and ``validation_top1``. Other
            values, and numbers that are not finite, are left out.

        Raises
        ------
        ValueError
            If ``stage`` or ``epoch`` is missing.
        """
        if "stage" not in record or "epoch" not in record:
            raise ValueError(f"record: expected stage, epoch and numbers, got {sorted(record)}")
        for name, value in record.items():
            if name not in ("stage", "epoch") and _is_number(value):
                self._open().add_scalar(f"{record['stage']}/{name}", value, record["epoch"])

    def summary(self, report: Mapping[str, Any]) -> None:
        """Write the figures of ``report.json``: scalars ``result/<name>``, and a row of the table of experiments.

        Parameters
        ----------
        report : mapping
            Content of ``report.json``.
        """
        from torch.utils.tensorboard.summary import hparams

        flat = dict(_flat(report))
        results = {f"result/{name}": float(value) for name, value in flat.items() if name.startswith(_RESULTS)}
        settings = {n: v for n, v in flat.items() if not n.startswith(_RESULTS) and not n.startswith(_OTHER)}
        writer = self._open()
        for name, value in results.items():
            writer.add_scalar(name, value, 0)
        for event in hparams(settings, results):
            writer.file_writer.add_summary(event)

    def close(self) -> None:
        """Write what is left and close the file; later records open a new one."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(log_dir=str(self.path))
        return self._writer


_RESULTS = ("macs.", "params.", "top1.", "latency_ms.dense", "latency_ms.pruned", "speed_up.", "compression_ratio")
_OTHER = ("command", "environment.", "latency_ms.", "n_test_images", "surgery_error")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted names and plain values of nested mappings; lists and missing values are left out."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, (str, bool)) or _is_number(value):
            yield prefix + name, value
