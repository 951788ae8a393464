"""The structure-aware loss and its terms, each usable alone."""

from structloss.losses.alignment_head import AlignmentHead
from structloss.losses.batch import CODE, PROMPT, REASONING, StructureBatch, TeacherTopk
from structloss.losses.collator import Example, StructureCollator, encode_example
from structloss.losses.own_code import OwnCodeError
from structloss.losses.pathway import distance_to_right, pathway_loss
from structloss.losses.rollouts import surplus_loss
from structloss.losses.schedule import ramp
from structloss.losses.structure_aware import StructureAwareLoss, StructureLossOutput
from structloss.losses.token_weights import relabel_costs, structural_factors, structural_gap, structural_surplus
from structloss.losses.visits import VisitCache
from structloss.trees import vocabulary_bytes

__all__ = [
    "CODE",
    "PROMPT",
    "REASONING",
    "AlignmentHead",
    "Example",
    "OwnCodeError",
    "StructureAwareLoss",
    "StructureBatch",
    "StructureCollator",
    "StructureLossOutput",
    "TeacherTopk",
    "VisitCache",
    "distance_to_right",
    "encode_example",
    "pathway_loss",
    "ramp",
    "relabel_costs",
    "structural_factors",
    "structural_gap",
    "structural_surplus",
    "surplus_loss",
    "vocabulary_bytes",
]
