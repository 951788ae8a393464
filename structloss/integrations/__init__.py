"""The structure-aware loss in other people's training loops: rows to batches, a trainer mixin, own code at the start.

Everything is duck-typed: neither transformers nor TRL is imported here.
"""

from structloss.integrations.own_code import capture, refresh_rollouts
from structloss.integrations.rows import RowCollator, encode_row, fenced_code, has_code
from structloss.integrations.step import model_loss, token_weight_sum
from structloss.integrations.trainer import StructureLossMixin

__all__ = [
    "RowCollator",
    "StructureLossMixin",
    "capture",
    "encode_row",
    "fenced_code",
    "has_code",
    "model_loss",
    "refresh_rollouts",
    "token_weight_sum",
]
