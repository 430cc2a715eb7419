"""srr_ext: channel pruning for PyTorch by structural redundancy reduction, and the methods it is compared with."""

from srr_ext import models, ops, reference
from srr_ext._native import build_info
from srr_ext.allocators import available_allocators, register_allocator
from srr_ext.artifacts import load, save
from srr_ext.calibration import Calibration
from srr_ext.channels import ChannelAnalysis, analyze_channels
from srr_ext.criteria import available_selectors, register_selector
from srr_ext.plan import LayerPlan, PruningPlan, make_plan
from srr_ext.redundancy import RedundancyReport, analyze
from srr_ext.surgery import apply_plan, cut, prune_optimizer, verify
from srr_ext.training import recalibrate_batch_norm
from srr_ext.updates import available_updates, register_update, update_weights

__version__ = "0.1.0"

__all__ = [
    "Calibration",
    "ChannelAnalysis",
    "LayerPlan",
    "PruningPlan",
    "RedundancyReport",
    "analyze",
    "analyze_channels",
    "apply_plan",
    "available_allocators",
    "available_selectors",
    "available_updates",
    "build_info",
    "cut",
    "load",
    "make_plan",
    "models",
    "ops",
    "prune_optimizer",
    "recalibrate_batch_norm",
    "reference",
    "register_allocator",
    "register_selector",
    "register_update",
    "save",
    "update_weights",
    "verify",
]
