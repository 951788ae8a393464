"""How close a candidate program is to a reference, how often programs are right, and how two runs compare."""

from .dataflow_match import dataflow_match
from .intervals import bootstrap_interval, wilson_interval
from .paired import McNemar, PairedDifference, mcnemar_exact, paired_bootstrap
from .pass_at_k import PassAtK, pass_at_k
from .syntax_match import syntax_match
from .tsed import tsed

__all__ = [
    "McNemar",
    "PairedDifference",
    "PassAtK",
    "bootstrap_interval",
    "dataflow_match",
    "mcnemar_exact",
    "paired_bootstrap",
    "pass_at_k",
    "syntax_match",
    "tsed",
    "wilson_interval",
]
