"""Source text to a syntax tree in post-order arrays.

Broken source is no error: it gives a tree that says what is broken.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import tree_sitter
import tree_sitter_python

from .kinds import ERROR, UNKNOWN, LanguageRules, language_rules

_GRAMMARS = {"python": tree_sitter_python.language}


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
    grammar = _grammar(language)
    # A parser holds state between calls and is not thread-safe; a new one costs less than a microsecond.
    root = tree_sitter.Parser(grammar.language).parse(source).root_node
    columns, parents = _walk(root, source, grammar)
    return Tree(
        label=columns[0],
        kind=columns[1],
        parent=parents,
        leftmost=columns[4],
        byte_span=np.ascontiguousarray(columns[2:4].T),
        language=language,
        kind_version=rules.version,
        source_bytes=len(source),
        error_bytes=_error_bytes(root) if root.has_error else 0,
    )


# What to do with a grammar node.
_DESCEND, _TRANSPARENT, _ATOM, _PLAIN, _STRING, _TEXT_IF_LEAF, _ROOT = range(7)

_ERROR_ID = 0xFFFF
_MOST_LABELS = 1 << 16

# Grammar id -> (kind, mode) of the children that a node keeps.
_Plan = dict[int, tuple[int, int]]
# An open node: kind, mode, start, end, leftmost, first of its `roots`, plan, children still to come.
_Frame = tuple[int, int, int, int, int, int, _Plan, Iterator[tree_sitter.Node]]


class _Grammar(NamedTuple):
    """The rules by the ids of the installed grammar."""

    language: tree_sitter.Language
    plan: _Plan
    plan_below: dict[int, _Plan]  # only for parents that keep some of their tokens
    kind_names: tuple[str, ...]
    kind_labels: tuple[int, ...]
    text_labels: dict[tuple[int, bytes], int]  # a cache


@cache
def _grammar(language: str) -> _Grammar:
    rules = language_rules(language)
    grammar = tree_sitter.Language(_GRAMMARS[language]())
    kind_of = {name: i for i, name in enumerate(rules.kinds)}
    named: list[tuple[int, str]] = [(_ERROR_ID, "ERROR")]
    tokens: dict[str, list[int]] = {}
    for i in range(grammar.node_kind_count):
        name = str(grammar.node_kind_for_id(i))
        if grammar.node_kind_is_visible(i):
            if grammar.node_kind_is_named(i):
                named.append((i, name))
            else:
                tokens.setdefault(name, []).append(i)
    plan = {i: (kind_of.get(name, UNKNOWN), _mode(name, rules)) for i, name in named if name not in rules.dropped}
    plan_below = {}
    for i, name in named:
        kept = {t: (kind_of[text], _PLAIN) for text in rules.operators.get(name, ()) for t in tokens.get(text, ())}
        if kept:
            plan_below[i] = plan | kept
    labels = tuple(_label(name, b"") for name in rules.kinds)
    return _Grammar(grammar, plan, plan_below, rules.kinds, labels, {})


def _mode(name: str, rules: LanguageRules) -> int:
    if name in rules.transparent:
        return _TRANSPARENT
    if name in rules.atoms:
        return _ATOM
    if name in rules.plain_leaves:
        return _PLAIN
    return {"string": _STRING, "format_specifier": _TEXT_IF_LEAF}.get(name, _DESCEND)


def _label(kind_name: str, text: bytes) -> int:
    """63 bits, so that a label fits int64 and stays clear of the negative padding."""
    digest = blake2b(kind_name.encode() + b"\0" + text, digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _string_text(text: bytes) -> bytes:
    """Prefix and content of a string literal without its quotes.

    ``'a'``, ``"a"`` and ``u"a"`` are the same literal, ``b"a"`` is another.
    """
    prefix = _string_prefix(text)
    body = text[len(prefix) :]
    quote = body[:3] if body[:3] in (b"'''", b'"""') else body[:1]
    content = body[len(quote) :]
    if quote and content.endswith(quote):
        content = content[: -len(quote)]
    return prefix.lower().replace(b"u", b"") + b"\0" + content


def _string_prefix(text: bytes) -> bytes:
    start = 0
    while start < len(text) and text[start] not in b"'\"":
        start += 1
    return text[:start]


def _walk(root: tree_sitter.Node, source: bytes, grammar: _Grammar) -> tuple[np.ndarray, np.ndarray]:
    """Post-order columns (label, kind, start, end, leftmost) as int64 (5, n), and parents (n,).

    A loop, because code may be nested deeper than Python's stack. `frames` holds the open nodes around the
    current one, `roots` the finished subtrees that still wait for their parent.
    """
    _, plain_plan, plan_below, names, kind_labels, text_labels = grammar
    if len(text_labels) > _MOST_LABELS:
        text_labels.clear()
    label_of = text_labels.get
    rows: list[int] = []
    parents: list[int] = []
    roots: list[int] = []
    frames: list[_Frame] = []

    # The open node; the root of a hopeless source is an ERROR node.
    kind, mode, start, end, left, base = (
        plain_plan[root.kind_id][0],
        _ROOT,
        root.start_byte,
        root.end_byte,
        0,
        0,
    )
    plan = plan_below.get(root.kind_id, plain_plan)
    children = iter(root.children)
    while True:
        for node in children:
            node_id = node.kind_id
            if node_id not in plan:
                continue
            node_start, node_end = node.start_byte, node.end_byte
            # Zero width: a token that the parser invented, or an empty block behind an error.
            if node_start == node_end:
                continue
            node_kind, node_mode = plan[node_id]
            if node_mode == _PLAIN:
                label = kind_labels[node_kind]
            elif node_mode == _ATOM or (
                node_mode == _STRING and (source[node_start] in b"'\"" or not _interpolates(source, node_start))
            ):
                text = source[node_start:node_end]
                cached = label_of((node_kind, text))
                if cached is None:
                    cached = _label(names[node_kind], _string_text(text) if node_mode == _STRING else text)
                    text_labels[node_kind, text] = cached
                label = cached
            else:
                frames.append((kind, mode, start, end, left, base, plan, children))
                kind, mode, start, end = node_kind, node_mode, node_start, node_end
                left, base = len(parents), len(roots)
                plan = plan_below.get(node_id, plain_plan)
                children = iter(node.children)
                break
            here = len(parents)
            rows += (label, node_kind, node_start, node_end, here)
            parents.append(-1)
            roots.append(here)
        else:
            kept = len(roots) - base
            if mode == _TRANSPARENT:
                numbered = kept > 1
            else:
                numbered = kept > 0 or mode != _ROOT or kind == ERROR
            if numbered:
                here = len(parents)
                for child in roots[base:]:
                    parents[child] = here
                roots[base:] = (here,)
                label = kind_labels[kind]
                if mode == _STRING:
                    label = _label(names[kind], _string_prefix(source[start:end]).lower())
                elif mode == _TEXT_IF_LEAF and not kept:
                    label = _label(names[kind], source[start:end])
                rows += (label, kind, start, end, left)
                parents.append(-1)
            if not frames:
                break
            kind, mode, start, end, left, base, plan, children = frames.pop()
    columns = np.fromiter(rows, np.int64, len(rows)).reshape(-1, 5).T
    return np.ascontiguousarray(columns), np.fromiter(parents, np.int64, len(parents))


def _interpolates(source: bytes, start: int) -> bool:
    """Whether the string literal at `start` is an f-string or a t-string."""
    prefix = _string_prefix(source[start : start + 3]).lower()
    return b"f" in prefix or b"t" in prefix


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
