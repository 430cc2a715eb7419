"""Latency as a cost: operations measured one by one on this device, remembered, and added up for any plan."""

from srr_ext.latency_table.cost import LatencyCost, with_batch
from srr_ext.latency_table.operations import Operation, record_operations
from srr_ext.latency_table.stopwatch import Stopwatch, TorchStopwatch
from srr_ext.latency_table.table import LatencyTable

__all__ = [
    "LatencyCost",
    "LatencyTable",
    "Operation",
    "Stopwatch",
    "TorchStopwatch",
    "record_operations",
    "with_batch",
]
