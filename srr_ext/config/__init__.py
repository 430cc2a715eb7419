"""The commands' configuration: every field is a flag, a key of ``--config`` files, and part of the record of a run."""

from srr_ext.config.looking import AnalyzeConfig, EvaluateConfig, ExportConfig
from srr_ext.config.pruning import DEFAULT_COMPRESSION, CompareConfig, PruneConfig, SparsifyConfig, TrainRunConfig
from srr_ext.config.shared import ModelAndData, Planning, PlanOptions, PruneOptions, RetrainOptions, Training

__all__ = [
    "DEFAULT_COMPRESSION",
    "AnalyzeConfig",
    "CompareConfig",
    "EvaluateConfig",
    "ExportConfig",
    "ModelAndData",
    "PlanOptions",
    "Planning",
    "PruneConfig",
    "PruneOptions",
    "RetrainOptions",
    "SparsifyConfig",
    "TrainRunConfig",
    "Training",
]
