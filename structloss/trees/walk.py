"""The parser's tree to post-order arrays, by the rules of ``language_rules.py``.

The walk exists twice, with the same result: compiled (csrc/trees), and in Python for an installation without the
compiled extension. The parser's nodes can only be had as Python objects, one at a time; the compiled walk reads the
same objects without the interpreter in between.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from hashlib import blake2b
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import tree_sitter

from .kinds import language_rules
from .language_rules import ERROR, UNKNOWN, LanguageRules
from .options import DEFAULT, TreeOptions

try:
    from structloss._C import TreeWalker
except ImportError:  # the extension is optional at run time
    TreeWalker = None

# What to do with a grammar node. The compiled walk knows the numbers.
_DROPPED, _DESCEND, _TRANSPARENT, _ATOM, _PLAIN, _STRING, _TEXT_IF_LEAF, _ROOT = range(-1, 7)

# How a string literal says that it has parts. The compiled walk knows the numbers.
_INTERPOLATION = {"never": 0, "prefix": 1, "escape": 2}

_ERROR_ID = 0xFFFF
_MOST_LABELS = 1 << 16
_FIELD_MULTIPLIER = 0x9E3779B97F4A7C15
_64_BITS = (1 << 64) - 1

# Label, kind, parent, leftmost (n,) and byte spans (n, 2), all int64, in post-order.
Columns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]
# Grammar id -> (kind, mode) of the children that a node keeps.
_Plan = dict[int, tuple[int, int]]
# An open node: kind, mode, start, end, leftmost, first of its `roots`, field, plan, children still to come.
_Frame = tuple[int, int, int, int, int, int, int, _Plan, Iterator[tuple[tree_sitter.Node, int]]]


class TextLabels(dict[bytes, int]):
    """Labels of the nodes of one kind by their source text: a cache that forgets everything when it is full."""

    def __init__(self, kind_name: str, significant: Callable[[bytes], bytes] = bytes) -> None:
        self.kind_name = kind_name
        self.significant = significant

    def __missing__(self, text: bytes) -> int:
        if len(self) >= _MOST_LABELS:
            self.clear()
        label = self[text] = self.label_of(text)
        return label

    def label_of(self, text: bytes) -> int:
        return _label(self.kind_name, self.significant(text))


class InstalledGrammar(NamedTuple):
    """The rules by the ids of the installed grammar."""

    language: tree_sitter.Language
    plan: _Plan
    plan_below: dict[int, _Plan]  # only for parents that keep some of their tokens
    kind_labels: tuple[int, ...]
    text_labels: tuple[TextLabels, ...]  # by kind
    prefix_labels: TextLabels  # of strings that keep their parts, by what stands before the quote
    field_hashes: dict[str | None, int]  # empty where fields do not count
    interpolation: str
    walker: Any  # the compiled walk, or None


def installed_grammar(language: str, options: TreeOptions = DEFAULT) -> InstalledGrammar:
    """The grammar of `language` and the rules for it, always the same object.

    Raises ValueError for an unknown language, ImportError where its grammar is not installed.
    """
    return grammar_and_rules(language, options)


@cache
def grammar_and_rules(language: str, options: TreeOptions) -> InstalledGrammar:
    """What :func:`installed_grammar` remembers."""
    rules = language_rules(language)
    grammar = _grammar(language)
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
    stays = not options.collapse
    plan = {
        i: (kind_of.get(name, UNKNOWN), _mode(name, rules, stays=stays))
        for i, name in named
        if name not in rules.dropped
    }
    plan_below = {}
    for i, name in named:
        operators = rules.operators.get(name, ()) if options.operators else ()
        kept = {t: (kind_of[text], _PLAIN) for text in operators for t in tokens.get(text, ())}
        stay = rules.kept_below.get(name, ())
        kept |= {child: (kind_of[text], _mode(text, rules, stays=True)) for child, text in named if text in stay}
        if kept:
            plan_below[i] = plan | kept
    kind_labels = tuple(_label(name, b"") for name in rules.kinds)
    text_labels = tuple(TextLabels(name, _significant(name, rules, options)) for name in rules.kinds)
    prefix_labels = TextLabels(rules.string, bytes.lower if options.literals else _nothing)
    fields = [grammar.field_name_for_id(i) for i in range(grammar.field_count + 1)] if options.fields else []
    field_hashes: dict[str | None, int] = {name: _label("field", name.encode()) for name in fields if name}
    walker = None
    if TreeWalker is not None:
        ids = [*range(grammar.node_kind_count), _ERROR_ID]
        rows = {i: row for row, i in enumerate(plan_below, start=1)}
        walker = TreeWalker(
            rules=[[p.get(i, (UNKNOWN, _DROPPED)) for i in ids] for p in (plan, *plan_below.values())],
            rules_below=[rows.get(i, 0) for i in ids],
            kind_labels=kind_labels,
            text_label=[labels.label_of for labels in text_labels],
            prefix_label=prefix_labels.label_of,
            field_hashes=[field_hashes.get(name, 0) for name in fields],
            most_labels=_MOST_LABELS,
            interpolation=_INTERPOLATION[rules.interpolation],
        )
    return InstalledGrammar(
        grammar, plan, plan_below, kind_labels, text_labels, prefix_labels, field_hashes, rules.interpolation, walker
    )


def _grammar(language: str) -> tree_sitter.Language:
    try:
        return tree_sitter.Language(import_module(f"tree_sitter_{language}").language())
    except ModuleNotFoundError:
        raise ImportError(
            f"language: {language!r} needs its grammar, which is not installed: pip install tree-sitter-{language}"
        ) from None


def _mode(name: str, rules: LanguageRules, *, stays: bool = False) -> int:
    if name in rules.transparent and not stays:
        return _TRANSPARENT
    if name in rules.atoms:
        return _ATOM
    if name in rules.plain_leaves:
        return _PLAIN
    if name in rules.text_if_leaf:
        return _TEXT_IF_LEAF
    return _STRING if name == rules.string else _DESCEND


def _significant(name: str, rules: LanguageRules, options: TreeOptions) -> Callable[[bytes], bytes]:
    """What of the text of a kind's nodes their label holds."""
    if not (options.literals if name in rules.literals else options.names):
        return _nothing
    return _string_text if name == rules.string else bytes


def _nothing(text: bytes) -> bytes:
    return b""


def _in_field(label: int, field: int) -> int:
    """The label of a node that stands in a field of its parent; 0 is no field. As in the compiled walk."""
    return label if field == 0 else (((label ^ field) * _FIELD_MULTIPLIER) & _64_BITS) >> 1


def _children(node: tree_sitter.Node, field_hashes: dict[str | None, int]) -> Iterator[tuple[tree_sitter.Node, int]]:
    """The children with the hashes of their fields."""
    if not field_hashes:
        return ((child, 0) for child in node.children)
    return ((child, field_hashes.get(node.field_name_for_child(i), 0)) for i, child in enumerate(node.children))


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


def walk(root: tree_sitter.Node, source: bytes, grammar: InstalledGrammar) -> Columns:
    """The nodes below `root`, the root of a whole `source`, as far as the rules keep them."""
    return (python_walk if grammar.walker is None else compiled_walk)(root, source, grammar)


def compiled_walk(root: tree_sitter.Node, source: bytes, grammar: InstalledGrammar) -> Columns:
    """:func:`walk` by the compiled extension."""
    label, kind, parent, leftmost, byte_span = compiled_walks([(root, source)], grammar, pad=0)[0]
    return label[0], kind[0], parent[0], leftmost[0], byte_span[0]


def compiled_walks(
    trees: Iterable[tuple[tree_sitter.Node, bytes]], grammar: InstalledGrammar, pad: int
) -> tuple[Columns, np.ndarray]:
    """:func:`walk` of each of B (root, source): columns (B, N), padded to the longest with `pad`, and sizes (B,)."""
    sizes, *columns = grammar.walker.walk(trees, pad)
    return tuple(columns), sizes


def python_walk(root: tree_sitter.Node, source: bytes, grammar: InstalledGrammar) -> Columns:
    """:func:`walk` in Python.

    A loop, because code may be nested deeper than Python's stack. `frames` holds the open nodes around the
    current one, `roots` the finished subtrees that still wait for their parent.
    """
    _, plain_plan, plan_below, kind_labels, text_labels, prefix_labels, field_hashes, interpolation, _ = grammar
    rows: list[int] = []
    parents: list[int] = []
    roots: list[int] = []
    frames: list[_Frame] = []

    # The open node; the root of a hopeless source is an ERROR node.
    kind, mode, start, end, left, base, field = (
        plain_plan[root.kind_id][0],
        _ROOT,
        root.start_byte,
        root.end_byte,
        0,
        0,
        0,
    )
    plan = plan_below.get(root.kind_id, plain_plan)
    children = _children(root, field_hashes)
    while True:
        for node, node_field in children:
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
                node_mode == _STRING and not _interpolates(source, node_start, node_end, interpolation)
            ):
                label = text_labels[node_kind][source[node_start:node_end]]
            else:
                frames.append((kind, mode, start, end, left, base, field, plan, children))
                kind, mode, start, end = node_kind, node_mode, node_start, node_end
                left, base, field = len(parents), len(roots), node_field
                plan = plan_below.get(node_id, plain_plan)
                children = _children(node, field_hashes)
                break
            here = len(parents)
            rows += (_in_field(label, node_field), node_kind, here, node_start, node_end)
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
                    label = prefix_labels[_string_prefix(source[start:end])]
                elif mode == _TEXT_IF_LEAF and not kept:
                    label = text_labels[kind][source[start:end]]
                rows += (_in_field(label, field), kind, left, start, end)
                parents.append(-1)
            if not frames:
                break
            kind, mode, start, end, left, base, field, plan, children = frames.pop()
    table = np.fromiter(rows, np.int64, len(rows)).reshape(-1, 5)
    label_kind_leftmost = np.ascontiguousarray(table[:, :3].T)
    parent = np.fromiter(parents, np.int64, len(parents))
    return (*label_kind_leftmost[:2], parent, label_kind_leftmost[2], np.ascontiguousarray(table[:, 3:]))


def _interpolates(source: bytes, start: int, end: int, how: str) -> bool:
    """Whether the string literal at `start` keeps its parts: an f-string or a t-string, one with ``\\{``."""
    if how == "escape":
        return b"\\{" in re.findall(rb"\\[\0-\xff]", source[start:end])
    if how == "never" or source[start] in b"'\"":
        return False
    prefix = _string_prefix(source[start : start + 3]).lower()
    return b"f" in prefix or b"t" in prefix
