"""structloss: structure-aware losses for training code models.

The student's code is aligned with the teacher's code as syntax trees, and what the alignment finds becomes a loss,
beside masked and weighted cross-entropy fused with the LM head.

    trees      parse, Tree, TreeBatch
    alignment  tree_edit_distance, align_trees, soft_tree_edit_distance, soft_tree_divergence, mapping_nll, tree_nll
    LM head    linear_cross_entropy, linear_logprob, linear_topk_kl, hidden_and_head, check_head
    the loss   StructureAwareLoss, StructureBatch, StructureCollator, encode_example, VisitCache, TeacherTopk
    drop-ins   integrations: StructureLossMixin for Trainer and SFTTrainer, RowCollator, model_loss, capture, rollouts
    in loops   structloss.integrations (imported by name): TRL, transformers, loops of your own
    reading    explain
    metrics    metrics.syntax_match, metrics.dataflow_match, metrics.tsed, metrics.pass_at_k
"""

from structloss import metrics
from structloss.explain import explain
from structloss.extension import has_extension
from structloss.lm_head import linear_cross_entropy, linear_logprob, linear_topk_kl
from structloss.losses import (
    StructureAwareLoss,
    StructureBatch,
    StructureCollator,
    StructureLossOutput,
    TeacherTopk,
    VisitCache,
    encode_example,
)
from structloss.models import check_head, hidden_and_head
from structloss.tree_alignment import (
    TreeAlignment,
    align_trees,
    mapping_nll,
    soft_tree_divergence,
    soft_tree_edit_distance,
    tree_edit_distance,
    tree_nll,
)
from structloss.trees import Tree, TreeBatch, parse

__version__ = "0.1.0"

__all__ = [
    "StructureAwareLoss",
    "StructureBatch",
    "StructureCollator",
    "StructureLossOutput",
    "TeacherTopk",
    "Tree",
    "TreeAlignment",
    "TreeBatch",
    "VisitCache",
    "align_trees",
    "check_head",
    "encode_example",
    "explain",
    "has_extension",
    "hidden_and_head",
    "linear_cross_entropy",
    "linear_logprob",
    "linear_topk_kl",
    "mapping_nll",
    "metrics",
    "parse",
    "soft_tree_divergence",
    "soft_tree_edit_distance",
    "tree_edit_distance",
    "tree_nll",
]
