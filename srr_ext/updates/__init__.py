"""Updates: what is done to the weights that stay, between surgery and training."""

from srr_ext.updates.base import Update, available_updates, get_update, register_update, update_weights
from srr_ext.updates.reconstruct import Reconstruction, reconstruct

__all__ = [
    "Reconstruction",
    "Update",
    "available_updates",
    "get_update",
    "reconstruct",
    "register_update",
    "update_weights",
]
