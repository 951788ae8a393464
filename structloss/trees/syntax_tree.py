"""Source text to a syntax tree in post-order arrays.

Broken source is no error: it gives a tree that says what is broken.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import tree_sitter

from .kinds import language_rules
from .options import DEFAULT, TreeOptions
from .walk import Columns, InstalledGrammar, compiled_walks, installed_grammar, walk

_EXCERPT = 60
_Faults = tuple[tuple[int, int, str], ...]


class SyntaxFault(NamedTuple):
    """A place that the grammar could not make sense of.

    start, end: bytes of the source; equal where something is missing. line, column: of `start`, from 1, the column in
    code points. what: "unexpected", or "missing ')'". excerpt: the text, or what stands on the line before a missing
    token; at most 60 characters of one line.
    """

    start: int
    end: int
    line: int
    column: int
    what: str
    excerpt: str


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
    faults: [start, end) in bytes of the outermost ERROR nodes, and of each invented token with its name, in the order
    of the text. :meth:`errors` says what they are.
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
    faults: _Faults = ()
    options: TreeOptions = DEFAULT

    @property
    def size(self) -> int:
        """Number of nodes; 0 for a source that holds nothing but white space and comments."""
        return len(self.label)

    @property
    def error_share(self) -> float:
        """Share of the source that the grammar could not place, in [0, 1]."""
        return _error_share(self.error_bytes, self.source_bytes)

    def errors(self, source: str | bytes) -> list[SyntaxFault]:
        """What is broken in `source`, which is what the tree was parsed from; an empty list where nothing is.

        The grammar is tolerant: an empty list does not mean that an interpreter accepts the source.

        Raises ValueError where `source` has another length than the tree's.

        >>> parse("def f(: pass").errors("def f(: pass")
        [SyntaxFault(start=6, end=6, line=1, column=7, what="missing ')'", excerpt='def f(')]
        """
        raw = as_bytes(source)
        if len(raw) != self.source_bytes:
            raise ValueError(f"source: got {len(raw)} bytes, but the tree was parsed from {self.source_bytes}")
        found = []
        line, counted = 1, 0
        for start, end, missing in self.faults:
            line += raw.count(b"\n", counted, start)
            counted = start
            before = _text(raw[raw.rfind(b"\n", 0, start) + 1 : start])
            if missing:
                excerpt, what = before.strip()[-_EXCERPT:], f"missing {missing!r}"
            else:
                excerpt, what = (_text(raw[start:end]).splitlines() or [""])[0][:_EXCERPT], "unexpected"
            found.append(SyntaxFault(start, end, line, len(before) + 1, what, excerpt))
        return found


def parse(source: str | bytes, language: str = "python", options: TreeOptions = DEFAULT) -> Tree:
    """Parse `source` into a :class:`Tree`; `options` say what it keeps.

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
    source = as_bytes(source)
    rules = language_rules(language)
    grammar = installed_grammar(language, options)
    root = _parser(grammar).parse(source).root_node
    label, kind, parent, leftmost, byte_span = walk(root, source, grammar)
    faults = _faults(root) if root.has_error else ()
    return Tree(
        label=label,
        kind=kind,
        parent=parent,
        leftmost=leftmost,
        byte_span=byte_span,
        language=language,
        kind_version=rules.version,
        source_bytes=len(source),
        error_bytes=_error_bytes(faults),
        faults=faults,
        options=options,
    )


def parse_padded(
    sources: Sequence[str | bytes], language: str, options: TreeOptions, pad: int
) -> tuple[Columns, np.ndarray, list[float]] | None:
    """:func:`parse` of B sources in one compiled walk; None without the compiled extension.

    Returns the columns of the trees (B, N), padded with `pad`, their sizes (B,) and their error shares.
    """
    language_rules(language)  # an error that names the languages, also for what has no hash
    grammar = installed_grammar(language, options)
    if grammar.walker is None:
        return None
    parser = _parser(grammar)
    shares = []

    def roots() -> Iterator[tuple[tree_sitter.Node, bytes]]:
        for source in map(as_bytes, sources):
            root = parser.parse(source).root_node
            shares.append(_error_share(_error_bytes(_faults(root)), len(source)) if root.has_error else 0.0)
            yield root, source

    return *compiled_walks(roots(), grammar, pad), shares


def as_bytes(source: str | bytes) -> bytes:
    """`source` as the parser reads it; raises TypeError where it is neither str nor bytes."""
    if isinstance(source, str):
        return source.encode("utf-8", "surrogatepass")
    if not isinstance(source, bytes):
        raise TypeError(f"source: got {type(source).__name__}, wants str or bytes")
    return source


def _parser(grammar: InstalledGrammar) -> tree_sitter.Parser:
    """A new one: it holds state between calls, so it is not thread-safe, and costs less than a microsecond."""
    return tree_sitter.Parser(grammar.language)


def _text(source: bytes) -> str:
    return source.decode("utf-8", "replace")


def _faults(root: tree_sitter.Node) -> _Faults:
    """The outermost ERROR nodes and the MISSING tokens."""
    found = []
    stack = [root]
    while stack:
        node = stack.pop()
        if node.is_error:
            found.append((node.start_byte, node.end_byte, ""))
        elif node.is_missing:
            found.append((node.start_byte, node.start_byte, str(node.type)))
        else:
            stack += [child for child in node.children if child.has_error]
    return tuple(sorted(found))


def _error_bytes(faults: _Faults) -> int:
    return sum(end - start + bool(missing) for start, end, missing in faults)


def _error_share(error_bytes: int, source_bytes: int) -> float:
    return min(1.0, error_bytes / source_bytes) if source_bytes else 0.0
