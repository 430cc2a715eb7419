"""Networks by name: ``srr_ext.models.create("resnet56", num_classes=10)``."""

from srr_ext.models.registry import Architecture, architecture_of, available_models, create, nearest
from srr_ext.models.weights import load_weights, read_checkpoint

__all__ = [
    "Architecture",
    "architecture_of",
    "available_models",
    "create",
    "load_weights",
    "nearest",
    "read_checkpoint",
]
