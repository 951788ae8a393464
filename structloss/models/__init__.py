"""Hidden states and head of a causal language model, without its logits."""

from structloss.models.check import check_head
from structloss.models.head import TESTED, HiddenAndHead
from structloss.models.hidden import hidden_and_head

__all__ = ["TESTED", "HiddenAndHead", "check_head", "hidden_and_head"]
