"""The two walks over the parser's tree, compiled and in Python, against the rules read slowly, in every language."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from hashlib import blake2b

import numpy as np
import pytest
import tree_sitter
from hypothesis import given, settings
from hypothesis import strategies as st

from structloss.trees import TreeOptions, parse
from structloss.trees import walk as walk_module
from structloss.trees.kinds import LANGUAGES, language_rules
from structloss.trees.language_rules import LanguageRules
from structloss.trees.walk import Columns, TextLabels, compiled_walk, grammar_and_rules, installed_grammar, python_walk
from tests.structloss.test_trees import FRAGMENTS, stdlib_functions
from tests.structloss.test_trees_languages import REAL_CODE

GRAMMARS = {language: installed_grammar(language) for language in LANGUAGES}
GRAMMAR = GRAMMARS["python"]

needs_compiled = pytest.mark.skipif(GRAMMAR.walker is None, reason="the compiled extension was not built")
both_walks = pytest.mark.parametrize("walk", [python_walk, pytest.param(compiled_walk, marks=needs_compiled)])

# A kept node: kind, text that its label hashes, start, end, children.
Form = tuple[str, bytes, int, int, list["Form"]]


def root_of(source: bytes, language: str = "python") -> tree_sitter.Node:
    return tree_sitter.Parser(GRAMMARS[language].language).parse(source).root_node


def kept_nodes(node: tree_sitter.Node, parent: str, source: bytes, rules: LanguageRules) -> list[Form]:
    """What stays of `node`: nothing, one tree, or the only child of a transparent node."""
    name, start, end = str(node.type), node.start_byte, node.end_byte
    text = source[start:end]
    stays = name in rules.kept_below.get(parent, ())
    if start == end:
        return []
    if not node.is_named:
        return [(name, b"", start, end, [])] if name in rules.operators.get(parent, ()) else []
    if name in rules.dropped and not stays:
        return []
    kind = name if name in rules.kinds else "unknown"
    if name in rules.plain_leaves:
        return [(kind, b"", start, end, [])]
    if name in rules.atoms:
        return [(kind, text, start, end, [])]
    prefix, quote, content = re.fullmatch(rb"([^'\"]*)('''|\"\"\"|'|\"|)(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    has_parts = {
        "prefix": re.match(rb"[^'\"]{0,2}[fFtT]", source[start : start + 3]),
        "escape": re.match(rb"([^\\]|\\[^{])*\\\{", text, re.DOTALL),
        "never": None,
    }
    if name == rules.string and not has_parts[rules.interpolation]:
        # The prefix u says nothing; a literal that breaks off has no second quote.
        content = content.removesuffix(quote)
        return [(kind, re.sub(b"[uU]", b"", prefix).lower() + b"\0" + content, start, end, [])]
    children = [form for child in node.children for form in kept_nodes(child, name, source, rules)]
    if name in rules.transparent and not stays and len(children) < 2:
        return children
    label = prefix.lower() if name == rules.string else text if name in rules.text_if_leaf and not children else b""
    return [(kind, label, start, end, children)]


def slow_columns(source: bytes, language: str = "python") -> list[tuple[int, int, int, int, int, int]]:
    """Rows of label, kind, parent, leftmost, start, end in post-order."""
    root = root_of(source, language)
    rules = language_rules(language)
    name = str(root.type)
    children = [form for child in root.children for form in kept_nodes(child, name, source, rules)]
    rows: list[list[int]] = []

    def number(form: Form) -> int:
        kind, text, start, end, below = form
        first = len(rows)
        indices = [number(child) for child in below]
        for index in indices:
            rows[index][2] = len(rows)
        digest = blake2b(kind.encode() + b"\0" + text, digest_size=8).digest()
        label = int.from_bytes(digest, "little") // 2
        rows.append([label, rules.kinds.index(kind), -1, first, start, end])
        return len(rows) - 1

    if children or name == "ERROR":
        number((name, b"", root.start_byte, root.end_byte, children))
    return [tuple(row) for row in rows]  # type: ignore[misc]


def rows_of(columns: Columns) -> list[tuple[int, ...]]:
    label, kind, parent, leftmost, span = columns
    assert span.shape == (len(label), 2)
    assert all(column.dtype == np.int64 and column.flags.c_contiguous for column in columns)
    return list(zip(*(c.tolist() for c in (label, kind, parent, leftmost, span[:, 0], span[:, 1])), strict=True))


@both_walks
def test_walk_of_real_code_whole_and_broken(walk: Callable) -> None:
    generator = random.Random(0)
    for k, source in enumerate(stdlib_functions()[::2]):
        raw = source.encode()
        torn = bytearray(raw)
        for _ in range(4):
            torn[generator.randrange(len(torn))] = generator.choice(b"()[]{}'\"`\0\n\t #:=fr\\\xff\xc3")
        cut = raw[: len(raw) * (k % 9 + 1) // 10]
        for variant in (raw, cut, raw[len(raw) // 2 :] + raw[: len(raw) // 3], bytes(torn)):
            assert rows_of(walk(root_of(variant), variant, GRAMMAR)) == slow_columns(variant), variant


@both_walks
@pytest.mark.parametrize(
    "source",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"# x", id="only a comment"),
        pytest.param(b";#", id="an error without a node below"),
        pytest.param(b"``True", id="a string in back quotes before a letter that could be its prefix"),
        pytest.param(b"x = f", id="a name that could be a prefix"),
        pytest.param(b'RbF\'a\' + rB"""b', id="prefixes in capitals, a string that breaks off"),
    ],
)
def test_walk_of_odd_sources(walk: Callable, source: bytes) -> None:
    assert rows_of(walk(root_of(source), source, GRAMMAR)) == slow_columns(source)


@both_walks
@pytest.mark.parametrize("language", REAL_CODE)
def test_walk_of_other_languages_whole_and_broken(walk: Callable, language: str) -> None:
    generator = random.Random(0)
    raw = REAL_CODE[language].encode()
    for k in range(120):
        torn = bytearray(raw)
        for _ in range(k % 9):
            torn[generator.randrange(len(torn))] = generator.choice(b"()[]{}'\"`\0\n\t \\;:=+</\xff\xc3")
        variant = bytes(torn)
        if k % 3 == 1:
            variant = variant[: generator.randrange(len(raw))]
        columns = walk(root_of(variant, language), variant, GRAMMARS[language])
        assert rows_of(columns) == slow_columns(variant, language), variant


STRINGS = ["f'", 'F"{', "rb'", "u'a'", "t'", "`a`", "``", "!r", ":>{w}", "=}", "print ", "async ", "yield from "]


OTHER = [
    "/*",
    "*/",
    "//",
    "${",
    "`",
    "=>",
    "->",
    "\\{",
    "class A {",
    "for (;;)",
    "if (a)",
    "</a>",
    "<a>",
    "catch",
    "case",
    "x++",
]


@both_walks
@pytest.mark.parametrize("language", LANGUAGES)
@settings(max_examples=100, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=60),
        st.lists(st.sampled_from(FRAGMENTS + STRINGS + OTHER), max_size=30).map(
            lambda parts: "".join(parts).encode("utf-8", "surrogatepass")
        ),
    )
)
def test_walk_of_any_text(walk: Callable, language: str, source: bytes) -> None:
    columns = walk(root_of(source, language), source, GRAMMARS[language])
    assert rows_of(columns) == slow_columns(source, language)


@needs_compiled
@pytest.mark.parametrize(
    "source", [b"[" * 5000 + b"x" + b"]" * 5000, b"-" * 5000 + b"x", b"(" * 5000 + b"x", b"f(" * 5000]
)
def test_walks_agree_on_deep_nesting(source: bytes) -> None:
    root = root_of(source)
    for one, other in zip(compiled_walk(root, source, GRAMMAR), python_walk(root, source, GRAMMAR), strict=True):
        np.testing.assert_array_equal(one, other)


def test_python_walk_is_used_without_the_extension() -> None:
    source = b"def f(x):\n    return f'{x}' + 'a'\n"
    assert rows_of(walk_module.walk(root_of(source), source, GRAMMAR._replace(walker=None))) == slow_columns(source)


@needs_compiled
def test_compiled_walk_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="source: the tree was parsed from another one"):
        compiled_walk(root_of(b"x = some_name"), b"x", GRAMMAR)
    with pytest.raises(TypeError):
        GRAMMAR.walker.walk([(root_of(b"x"), "x")], pad=-1)
    with pytest.raises(AttributeError):
        GRAMMAR.walker.walk([(None, b"x")], pad=-1)


@both_walks
def test_labels_survive_a_full_cache(walk: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    source = b"a, b, b, c, c, a, b"
    expected = parse(source).label.tolist()
    monkeypatch.setattr(walk_module, "_MOST_LABELS", 2)
    hashed: list[bytes] = []
    monkeypatch.setattr(TextLabels, "label_of", watched(TextLabels.label_of, hashed))
    grammar = grammar_and_rules.__wrapped__("python", TreeOptions())
    assert walk(root_of(source), source, grammar)[0].tolist() == expected
    # `c` does not fit and makes the others forgotten; so does `b` at the end.
    assert hashed == [b"a", b"b", b"c", b"a", b"b"]


@both_walks
def test_labels_of_many_texts_are_kept(walk: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[bytes] = []
    monkeypatch.setattr(TextLabels, "label_of", watched(TextLabels.label_of, hashed))
    grammar = grammar_and_rules.__wrapped__("python", TreeOptions())
    names = [f"name_{i * i}".encode() for i in range(3000)]
    source = b", ".join(names + names[::-1])
    label = walk(root_of(source), source, grammar)[0]
    assert hashed == names
    assert len(set(label[:3000].tolist())) == 3000
    np.testing.assert_array_equal(label[:3000], label[5999:2999:-1])
    if walk is compiled_walk:
        grammar.walker.forget_labels()
        np.testing.assert_array_equal(walk(root_of(source), source, grammar)[0], label)
        assert hashed == 2 * names


def watched(label_of: Callable, hashed: list[bytes]) -> Callable:
    def watched_label_of(labels: TextLabels, text: bytes) -> int:
        hashed.append(text)
        return label_of(labels, text)

    return watched_label_of


def test_a_label_is_hashed_once() -> None:
    seen: list[bytes] = []
    labels = TextLabels("identifier", lambda text: seen.append(text) or text)  # type: ignore[func-returns-value]
    assert labels[b"a"] == labels[b"a"] == parse("a").label[0]
    assert seen == [b"a"]
