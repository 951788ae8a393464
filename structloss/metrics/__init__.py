"""How close a candidate program is to a reference, and how often programs are right."""

from .dataflow_match import dataflow_match
from .pass_at_k import PassAtK, pass_at_k
from .syntax_match import syntax_match
from .tsed import tsed

__all__ = ["PassAtK", "dataflow_match", "pass_at_k", "syntax_match", "tsed"]
