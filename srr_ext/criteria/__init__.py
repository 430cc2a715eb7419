"""Selectors: which filters of a group go first."""

from srr_ext.criteria.base import Selector, SelectorContext, available_selectors, get_selector, register_selector
from srr_ext.criteria.fpgm import fpgm
from srr_ext.criteria.norms import l1, l2
from srr_ext.criteria.random import random

__all__ = [
    "Selector",
    "SelectorContext",
    "available_selectors",
    "fpgm",
    "get_selector",
    "l1",
    "l2",
    "random",
    "register_selector",
]
