"""What a syntax tree keeps of the concrete grammar: the form of the rules, which each ``kinds_*.py`` fills in.

* A named grammar node becomes a tree node, unless it is in ``dropped``.
* An anonymous token (punctuation, keyword, operator) is dropped, unless it changes the meaning of its parent and
  nothing else says so: ``operators`` lists those tokens per parent (``+`` in a ``binary_operator``, ``:`` in a
  ``slice``, ``from`` in a ``yield``, ``async`` in a ``function_definition``).
* A ``transparent`` node with exactly one kept child is replaced by that child, and one with none disappears: it says
  nothing that the child does not say. The root is never transparent.
* ``kept_below`` lists, per parent, dropped or transparent nodes that do say something there (the braces of
  ``x => { y }``), and stay.
* An ``atoms`` node is a leaf whose label carries its source text, a ``plain_leaves`` node one whose kind says all. A
  ``text_if_leaf`` node carries its text where it keeps no child.
* ``literals`` are the kinds whose text is a value (numbers, strings), where that of other leaves is a name.
* ``string`` is the string literal: a leaf whose label carries what stands between the quotes, unless it interpolates.
  Then it keeps its parts.

The kind ids are positions in a tuple written by name. The grammar's own ids move between releases of the grammar, so
they are never stored. A node type that is not in the tuple (a newer grammar) has the kind ``unknown``. Append to a
tuple, never reorder it; changing what an id means needs a new version string.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

UNKNOWN = 0
ERROR = 1


@dataclass(frozen=True)
class LanguageRules:
    """Vocabulary and tree rules of one language; the names are those of its tree-sitter grammar.

    interpolation: how a string literal says that it has parts: by the letters in front of its quote (``f"{x}"``), by
    an escape (``"\\{x}"``), or never.
    """

    version: str
    kinds: tuple[str, ...]
    dropped: frozenset[str]
    transparent: frozenset[str]
    atoms: frozenset[str]
    plain_leaves: frozenset[str]
    operators: Mapping[str, frozenset[str]]
    literals: frozenset[str]
    string: str
    interpolation: Literal["prefix", "escape", "never"]
    kept_below: Mapping[str, frozenset[str]] = field(default_factory=dict)
    text_if_leaf: frozenset[str] = frozenset()


def with_errors(operators: Mapping[str, frozenset[str]], parents: Iterable[str]) -> dict[str, frozenset[str]]:
    """`operators`, and those of `parents` below an error, where the parent of a token is missing."""
    return {**operators, "ERROR": frozenset().union(*(operators[parent] for parent in parents))}
