"""Allocators: how many filters each group loses; and the decision which ones, with a selector."""

from srr_ext.allocators.base import (
    Allocation,
    Allocator,
    AllocatorContext,
    available_allocators,
    get_allocator,
    register_allocator,
)
from srr_ext.allocators.decide import decide, prepare, require_groups
from srr_ext.allocators.gamma import smallest_gamma
from srr_ext.allocators.global_ import GlobalRanking, global_ranking
from srr_ext.allocators.merge import merge
from srr_ext.allocators.schedule import Schedule
from srr_ext.allocators.srr import StructuralRedundancy, srr
from srr_ext.allocators.uniform import uniform
from srr_ext.allocators.widest import widest

__all__ = [
    "Allocation",
    "Allocator",
    "AllocatorContext",
    "GlobalRanking",
    "Schedule",
    "StructuralRedundancy",
    "available_allocators",
    "decide",
    "get_allocator",
    "global_ranking",
    "merge",
    "prepare",
    "register_allocator",
    "require_groups",
    "smallest_gamma",
    "srr",
    "uniform",
    "widest",
]
