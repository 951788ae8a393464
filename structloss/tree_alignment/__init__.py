"""Hard and soft alignment of ordered trees."""

from structloss.tree_alignment.edit_distance import (
    DEFAULT_MAX_CELLS,
    TreeAlignment,
    align_trees,
    soft_tree_edit_distance,
    tree_edit_distance,
)
from structloss.tree_alignment.objectives import mapping_nll, soft_tree_divergence, tree_nll

__all__ = [
    "DEFAULT_MAX_CELLS",
    "TreeAlignment",
    "align_trees",
    "mapping_nll",
    "soft_tree_divergence",
    "soft_tree_edit_distance",
    "tree_edit_distance",
    "tree_nll",
]
