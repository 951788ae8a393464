"""Hard inputs in every language: both walks give the same, nothing raises, the time grows like the source."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import numpy as np
import pytest
import tree_sitter
from hypothesis import given, settings
from hypothesis import strategies as st

from structloss.trees import Tree, parse
from structloss.trees.kinds import LANGUAGES
from structloss.trees.walk import compiled_walk, installed_grammar, python_walk
from tests.structloss.test_trees import check_invariants, stdlib_functions
from tests.structloss.test_trees_languages import REAL_CODE

every_language = pytest.mark.parametrize("language", LANGUAGES)

SAMPLES = {**REAL_CODE, "python": max(stdlib_functions()[:40], key=len)}
STATEMENT = {
    "java": "int f(int a) { return a + 1; }\n",
    "javascript": "let f = (a) => a + 1;\n",
    "python": "f = a + 1\n",
}


def check(source: str | bytes, language: str) -> Tree:
    """The tree of `source`, after all that can be said about it."""
    raw = source.encode("utf-8", "surrogatepass") if isinstance(source, str) else source
    grammar = installed_grammar(language)
    tree = parse(source, language)
    check_invariants(tree, raw)
    root = tree_sitter.Parser(grammar.language).parse(raw).root_node
    walks: list[Callable] = [python_walk] if grammar.walker is None else [python_walk, compiled_walk]
    for walk in walks:
        for got, name in zip(
            walk(root, raw, grammar), ("label", "kind", "parent", "leftmost", "byte_span"), strict=True
        ):
            np.testing.assert_array_equal(got, getattr(tree, name), err_msg=f"{walk.__name__} {name}")
    return tree


def same(one: Tree, other: Tree) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("label", "kind", "parent"))


@every_language
def test_cut_at_every_seventh_byte(language: str) -> None:
    raw = SAMPLES[language].encode()
    sizes = [check(raw[:end], language).size for end in range(0, len(raw), 7)]
    assert len(sizes) > 100
    assert sizes[0] == 0
    # What stands before the cut is still recognised.
    assert sizes[-1] > 0.8 * check(raw, language).size


@every_language
def test_line_ends_tabs_and_byte_order_mark(language: str) -> None:
    # In a string of several lines they are text.
    source = re.sub('""".*?"""', '"text"', SAMPLES[language], flags=re.DOTALL)
    plain = check(source, language)
    assert plain.error_bytes == 0
    for variant in (source.replace("\n", "\r\n"), source.replace("    ", "\t"), "\ufeff" + source, source.encode()):
        assert same(plain, check(variant, language))


@every_language
@pytest.mark.parametrize(
    "source",
    [
        "",
        " \t\r\n\f\v",
        "名前 = 'é' + größe;",
        "🙂 = '🙂' + \"e\u0301\u200d\";",
        "a\x00b = '\x00';\x00",
        "\x00",
        "\ufeff",
        "\ud800 = '\udfff'",
        b"\xff\xfe = '\xc3';",
        "/* never closed",
        "`never ${ closed",
        '"""never closed',
        "'never closed",
        '"\\',
        '"\\{',
        '"\\{a',
        '"a\\{"b\\{c}"}d"',
        "<a><b></a>",
        "/never closed",
        "}" * 50,
        ";" * 50,
    ],
    ids=ascii,
)
def test_odd_sources(language: str, source: str | bytes) -> None:
    check(source, language)


@every_language
def test_ten_thousand_lines(language: str) -> None:
    tree = check(STATEMENT[language] * 10_000, language)
    assert tree.error_bytes == 0
    one = parse(STATEMENT[language], language).size - 1
    assert tree.size == 10_000 * one + 1


@every_language
@pytest.mark.parametrize(
    "source",
    [
        "(" * 5000 + "x" + ")" * 5000,
        "[" * 5000,
        "f(" * 5000,
        "-" * 5000 + "x",
        "{" * 5000 + "}" * 5000,
        "if (a) " * 5000,
    ],
    ids=lambda source: source[:6],
)
def test_five_thousand_deep(language: str, source: str) -> None:
    check(source, language)


@every_language
def test_deep_valid_nesting_is_kept(language: str) -> None:
    assignment = "x = " + "f(" * 5000 + "y" + ")" * 5000 + ";"
    tree = check(assignment, language)
    assert tree.error_bytes == 0
    # The root, the assignment, x and y; a call, its name and its arguments.
    assert tree.size == 4 + 3 * 5000


@every_language
@settings(max_examples=100, deadline=None)
@given(source=st.one_of(st.binary(max_size=120), st.text(max_size=60)))
def test_random_bytes_and_text(language: str, source: str | bytes) -> None:
    check(source, language)


@every_language
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_real_code_with_random_bytes_in_it(language: str, data: st.DataObject) -> None:
    raw = SAMPLES[language].encode()
    start = data.draw(st.integers(0, len(raw)))
    end = data.draw(st.integers(start, len(raw)))
    check(raw[:start] + data.draw(st.binary(max_size=8)) + raw[end:], language)


@every_language
def test_time_grows_like_the_source(language: str) -> None:
    """16 times the source takes less than 64 times as long: quadratic work would take 256 times.

    Processor time, the best of three, so that a busy machine cannot fail it; measured: 17 to 24 times.
    """

    def seconds(lines: int) -> float:
        source = STATEMENT[language] * lines
        best = float("inf")
        for _ in range(3):
            start = time.process_time()
            parse(source, language)
            best = min(best, time.process_time() - start)
        return best

    seconds(100)
    assert seconds(8000) < 64 * seconds(500)
