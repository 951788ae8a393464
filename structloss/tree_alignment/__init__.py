"""Hard and soft alignment of ordered trees."""

from structloss.tree_alignment.edit_distance import (
    DEFAULT_MAX_CELLS,
    TreeAlignment,
    align_trees,
    soft_tree_edit_distance,
    tree_edit_distance,
)

__all__ = [
    "DEFAULT_MAX_CELLS",
    "TreeAlignment",
    "align_trees",
    "soft_tree_edit_distance",
    "tree_edit_distance",
]
