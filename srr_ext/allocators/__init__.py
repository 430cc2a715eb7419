"""Allocators: how many filters each group loses; and the decision which ones, with a selector."""

from srr_ext.allocators.afie import Afie, afie, afie_of
from srr_ext.allocators.base import (
    Allocation,
    Allocator,
    AllocatorContext,
    available_allocators,
    get_allocator,
    register_allocator,
)
from srr_ext.allocators.decide import decide, prepare, require_groups
from srr_ext.allocators.dict_ import FromDict, from_dict
from srr_ext.allocators.erk import erk
from srr_ext.allocators.gamma import smallest_gamma
from srr_ext.allocators.global_ import GlobalRanking, global_ranking
from srr_ext.allocators.li2016 import Li2016, li2016_a, li2016_b
from srr_ext.allocators.merge import merge
from srr_ext.allocators.schedule import Schedule
from srr_ext.allocators.sensitivity import Sensitivity, sensitivity
from srr_ext.allocators.srr import StructuralRedundancy, srr
from srr_ext.allocators.uniform import uniform
from srr_ext.allocators.widest import widest
from srr_ext.allocators.zero_groups import zero_groups

__all__ = [
    "Afie",
    "Allocation",
    "Allocator",
    "AllocatorContext",
    "FromDict",
    "GlobalRanking",
    "Li2016",
    "Schedule",
    "Sensitivity",
    "StructuralRedundancy",
    "afie",
    "afie_of",
    "available_allocators",
    "decide",
    "erk",
    "from_dict",
    "get_allocator",
    "global_ranking",
    "li2016_a",
    "li2016_b",
    "merge",
    "prepare",
    "register_allocator",
    "require_groups",
    "sensitivity",
    "smallest_gamma",
    "srr",
    "uniform",
    "widest",
    "zero_groups",
]
