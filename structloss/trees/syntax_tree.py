"""Source text to a syntax tree in post-order arrays.

Broken source is no error: it gives a tree that says what is broken.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tree_sitter

from .kinds import language_rules
from .walk import installed_grammar, walk


@dataclass(frozen=True, eq=False)
class Tree:
    """An ordered, labelled tree of n nodes in post-order (children before parents, left to right).

    label: int64 (n,), stable 63-bit hash of the kind's name and, for identifiers, literals and operators, the
    text.
    kind: int64 (n,), id in ``kind_names(language)``.
    parent: int64 (n,), post-order index of the parent, -1 for the root (the last node).
    leftmost: int64 (n,), post-order index of the leftmost leaf below the node: its subtree is
    ``leftmost[i]..i``.
    byte_span: int64 (n, 2), [start, end) in bytes of the UTF-8 source.
    source_bytes: length of the source; error_bytes: bytes below ERROR nodes plus one for each token that the
    parser had to invent.
    """

    label: np.ndarray
    kind: np.ndarray
    parent: np.ndarray
    leftmost: np.ndarray
    byte_span: np.ndarray
    language: str
    kind_version: str
    source_bytes: int
    error_bytes: int

    @property
    def size(self) -> int:
        """Number of nodes; 0 for a source that holds nothing but white space and comments."""
        return len(self.label)

    @property
    def error_share(self) -> float:
        """Share of the source that the grammar could not place, in [0, 1]."""
        return min(1.0, self.error_bytes / self.source_bytes) if self.source_bytes else 0.0


def parse(source: str | bytes, language: str = "python") -> Tree:
    """Parse `source` into a :class:`Tree`; what is kept is decided in ``kinds.py``.

    Any text is accepted: broken, truncated or empty code, null bytes, any line ends. `bytes` need not be
    valid UTF-8; lone surrogates of a `str` count as three bytes, as in ``str.encode("utf-8",
    "surrogatepass")``. The grammar is tolerant, so ``error_share == 0`` does not mean that an interpreter
    would accept the source.

    Raises ValueError for an unknown language, TypeError where `source` is neither str nor bytes.

    >>> from structloss.trees import kind_names
    >>> tree = parse("x = a + 1")
    >>> [kind_names()[k] for k in tree.kind]
    ['identifier', 'identifier', '+', 'integer', 'binary_operator', 'assignment', 'module']
    """
    if isinstance(source, str):
        source = source.encode("utf-8", "surrogatepass")
    elif not isinstance(source, bytes):
        raise TypeError(f"source: got {type(source).__name__}, wants str or bytes")
    rules = language_rules(language)
    grammar = installed_grammar(language)
    # A parser holds state between calls and is not thread-safe; a new one costs less than a microsecond.
    root = tree_sitter.Parser(grammar.language).parse(source).root_node
    label, kind, parent, leftmost, byte_span = walk(root, source, grammar)
    return Tree(
        label=label,
        kind=kind,
        parent=parent,
        leftmost=leftmost,
        byte_span=byte_span,
        language=language,
        kind_version=rules.version,
        source_bytes=len(source),
        error_bytes=_error_bytes(root) if root.has_error else 0,
    )


def _error_bytes(root: tree_sitter.Node) -> int:
    """Bytes below the outermost ERROR nodes, and one for each MISSING token."""
    total = 0
    stack = [root]
    while stack:
        node = stack.pop()
        if node.is_error:
            total += node.end_byte - node.start_byte
        elif node.is_missing:
            total += 1
        else:
            stack += [child for child in node.children if child.has_error]
    return total
