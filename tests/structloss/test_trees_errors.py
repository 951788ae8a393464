"""What a tree says of broken code, and what trees of other versions are told."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest

from structloss.trees import TreeBatch, parse
from structloss.trees.kinds import LANGUAGES
from tests.structloss.test_trees_hard_inputs import SAMPLES


@pytest.mark.parametrize(
    ("language", "source", "expected"),
    [
        ("python", "x = 1\n", []),
        ("python", "", []),
        ("python", "x = f(1", [(0, 7, 1, 1, "unexpected", "x = f(1")]),
        ("python", "def f(: pass", [(6, 6, 1, 7, "missing ')'", "def f(")]),
        ("python", "é = 1\n名 = '🙂' $ 2\n", [(13, 21, 2, 5, "unexpected", "'🙂' $")]),
        ("python", "((((", [(0, 4, 1, 1, "unexpected", "((((")]),
        ("javascript", "let a = 1;\r\nlet b = [1, 2;\r\n", [(25, 25, 2, 14, "missing ']'", "let b = [1, 2")]),
        ("java", "int a = 1\n", [(9, 9, 1, 10, "missing ';'", "int a = 1")]),
        ("java", "class A { int f( { } }", [(16, 16, 1, 17, "missing ')'", "class A { int f(")]),
    ],
)
def test_errors_by_hand(language: str, source: str, expected: list[tuple]) -> None:
    tree = parse(source, language)
    assert tree.errors(source) == expected
    assert tree.errors(source.encode()) == expected


def test_excerpts_are_short() -> None:
    source = "x = 1\n" + "$" * 500 + "\n$\n"
    assert max(len(fault.excerpt) for fault in parse(source).errors(source)) == 60
    source = "f" * 500 + "("
    fault = parse(source).errors(source)[0]
    assert len(fault.excerpt) == 60
    assert source.startswith(fault.excerpt) or source.endswith(fault.excerpt)


@pytest.mark.parametrize("language", LANGUAGES)
def test_errors_of_cut_code_agree_with_the_error_share(language: str) -> None:
    raw = SAMPLES[language].encode()
    broken = 0
    for end in range(1, len(raw), 29):
        cut = raw[:end]
        tree = parse(cut, language)
        errors = tree.errors(cut)
        broken += bool(errors)
        assert bool(errors) == (tree.error_share > 0)
        assert sum(fault.end - fault.start or 1 for fault in errors) == tree.error_bytes
        for fault in errors:
            before = cut[: fault.start].split(b"\n")
            assert fault.line == len(before)
            assert fault.column == len(before[-1].decode("utf-8", "replace")) + 1
            assert (fault.start == fault.end) == fault.what.startswith("missing ")
            assert "\n" not in fault.excerpt
    assert broken > 20


def test_another_source() -> None:
    with pytest.raises(ValueError, match="source: got 1 bytes, but the tree was parsed from 7"):
        parse("x = f(1").errors("x")
    with pytest.raises(TypeError, match="source: got None"):
        parse("x = f(1").errors(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("language", LANGUAGES)
def test_trees_and_batches_survive_pickle(language: str) -> None:
    source = SAMPLES[language][:301]
    tree = parse(source, language)
    copy = pickle.loads(pickle.dumps(tree))
    for name in ("label", "kind", "parent", "leftmost", "byte_span"):
        np.testing.assert_array_equal(getattr(copy, name), getattr(tree, name))
    for name in ("language", "kind_version", "source_bytes", "error_bytes", "faults"):
        assert getattr(copy, name) == getattr(tree, name)
    assert copy.errors(source) == tree.errors(source)
    one, other = TreeBatch.from_trees([tree]), pickle.loads(pickle.dumps(TreeBatch.from_trees([copy])))
    np.testing.assert_array_equal(one.label, other.label)
    assert one.table_columns == other.table_columns


def test_versions_that_do_not_fit() -> None:
    tree = parse("x = 1")
    with pytest.raises(
        ValueError, match="got kind versions java-1, python-1, wants one: make a batch for each language"
    ):
        TreeBatch.from_trees([tree, parse("int x;", "java")])
    old = replace(tree, kind_version="python-0")
    for trees in ([old], [tree, old]):
        with pytest.raises(
            ValueError,
            match="got kind version 'python-0', but this installation has 'python-1'.*: parse the sources again",
        ):
            TreeBatch.from_trees(trees)
    with pytest.raises(ValueError, match="language: got 'cobol'"):
        TreeBatch.from_trees([replace(tree, language="cobol")])
