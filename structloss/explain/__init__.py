"""A student's program beside its teacher's, as one tree for the terminal."""

from .report import explain

__all__ = ["explain"]
