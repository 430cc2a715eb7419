"""EigenDamage proper: layers become rotation, small core, rotation; see `make_bottlenecks`."""

from srr_ext.bottleneck.applying import apply_bottlenecks, load_bottlenecks, save_bottlenecks
from srr_ext.bottleneck.deciding import bottleneck_network, make_bottlenecks
from srr_ext.bottleneck.layer import Basis, Bottleneck
from srr_ext.bottleneck.plan import BottleneckPlan, Ranks

__all__ = [
    "Basis",
    "Bottleneck",
    "BottleneckPlan",
    "Ranks",
    "apply_bottlenecks",
    "bottleneck_network",
    "load_bottlenecks",
    "make_bottlenecks",
    "save_bottlenecks",
]
