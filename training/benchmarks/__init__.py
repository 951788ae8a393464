"""Benchmarks: problems by name, grading with base and plus verdicts, what must stay out of training."""

from training.benchmarks.grading import Grade, Grader
from training.benchmarks.leaks import LeakGuard, screen
from training.benchmarks.loading import NAMES, Benchmark, load_benchmark

__all__ = ["NAMES", "Benchmark", "Grade", "Grader", "LeakGuard", "load_benchmark", "screen"]
