"""What a tree keeps of the code, and what a label says of a node: the choices that a user has."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TreeOptions:
    """The choices of :func:`parse`. Node kinds mean the same whatever is chosen; labels and the set of nodes change.

    names: the label of an identifier holds its text; otherwise all identifiers are alike.
    literals: the same for numbers, strings and their like.
    operators: an operator, which is a token of its parent, is a node. Otherwise ``a + b`` and ``a - b`` are equal.
    collapse: a node that wraps one child and says nothing that the child does not (an expression statement, a
    pair of parentheses) is replaced by it; see ``language_rules.py``.
    fields: a label also holds the field that the node has in its parent, so that the body of a loop and its ``else``
    differ, or the two sides of a subtraction.
    """

    names: bool = True
    literals: bool = True
    operators: bool = True
    collapse: bool = True
    fields: bool = False


DEFAULT = TreeOptions()
