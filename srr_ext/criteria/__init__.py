"""Selectors: which filters of a group go first."""

from srr_ext.criteria.aofp import AOFP, aofp, aofp_one_pass
from srr_ext.criteria.base import (
    CountedSelector,
    Selector,
    SelectorContext,
    available_selectors,
    get_selector,
    register_selector,
)
from srr_ext.criteria.bn_scale import bn_scale
from srr_ext.criteria.cpli import CPLI, cpli, he2017
from srr_ext.criteria.eigendamage import COBD, EigenDamage, c_obd, eigendamage
from srr_ext.criteria.fpgm import fpgm
from srr_ext.criteria.group_norm import group_norm
from srr_ext.criteria.norms import l1, l2
from srr_ext.criteria.random import random
from srr_ext.criteria.taylor import taylor2016, taylor2019

__all__ = [
    "AOFP",
    "COBD",
    "CPLI",
    "CountedSelector",
    "EigenDamage",
    "Selector",
    "SelectorContext",
    "aofp",
    "aofp_one_pass",
    "available_selectors",
    "bn_scale",
    "c_obd",
    "cpli",
    "eigendamage",
    "fpgm",
    "get_selector",
    "group_norm",
    "he2017",
    "l1",
    "l2",
    "random",
    "register_selector",
    "taylor2016",
    "taylor2019",
]
