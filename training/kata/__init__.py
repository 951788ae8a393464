"""Kata: Python programming problems from a grammar, with a scripted teacher, for distilling very small students."""

from training.kata.dataset import KataData, candidates, make_kata, teacher_trace, wrong_candidates
from training.kata.hidden_tests import kill_rate
from training.kata.problems import OPERATIONS, count_shapes

__all__ = [
    "OPERATIONS",
    "KataData",
    "candidates",
    "count_shapes",
    "kill_rate",
    "make_kata",
    "teacher_trace",
    "wrong_candidates",
]
