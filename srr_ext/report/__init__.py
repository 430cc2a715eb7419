"""What a pruning run leaves for people to look at: the structure of both networks, a page, curves for TensorBoard."""

from srr_ext.report.layer_latency import layer_latency
from srr_ext.report.page import write
from srr_ext.report.structure import observe
from srr_ext.report.tensorboard import EventLog

__all__ = ["EventLog", "layer_latency", "observe", "write"]
