"""Single weights that go, and masks that keep them at zero: which tensors, by which score, how many, where."""

from srr_ext.sparsity.choose import choose, layer_counts, n_of_m, parse_scope
from srr_ext.sparsity.cost import sparse_cost
from srr_ext.sparsity.formats import format_latency, to_csr, to_semi_structured
from srr_ext.sparsity.gradual import GradualPruning
from srr_ext.sparsity.masks import Masks
from srr_ext.sparsity.prunable import prunable, transposed_weights
from srr_ext.sparsity.schedule import Gradual, cubic_count, cubic_sparsity, gradual_steps, iterative_counts
from srr_ext.sparsity.scores import Score, available_scores, get_score, gradient, magnitude, random, register_score
from srr_ext.sparsity.target import weights_to_keep

__all__ = [
    "Gradual",
    "GradualPruning",
    "Masks",
    "Score",
    "available_scores",
    "choose",
    "cubic_count",
    "cubic_sparsity",
    "format_latency",
    "get_score",
    "gradient",
    "gradual_steps",
    "iterative_counts",
    "layer_counts",
    "magnitude",
    "n_of_m",
    "parse_scope",
    "prunable",
    "random",
    "register_score",
    "sparse_cost",
    "to_csr",
    "to_semi_structured",
    "transposed_weights",
    "weights_to_keep",
]
