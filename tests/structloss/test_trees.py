"""Syntax trees: shape rules against trees written by hand, invariants, broken input, stability."""

from __future__ import annotations

import ast
import inspect
import json
import os
import pickle
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from structloss.trees import Tree, kind_names, num_kinds, parse


def nested(tree: Tree) -> object:
    """Bracket form of a tree from `kind` and `parent` alone: 'leaf' or ('kind', child, ...)."""
    names = kind_names(tree.language)
    children: list[list[int]] = [[] for _ in range(tree.size)]
    forms: list[object] = []
    for i in range(tree.size):
        name = names[tree.kind[i]]
        forms.append((name, *(forms[c] for c in children[i])) if children[i] else name)
        if tree.parent[i] >= 0:
            children[tree.parent[i]].append(i)
    return forms[-1] if forms else None


def check_invariants(tree: Tree, source: bytes) -> None:
    """Post-order, leftmost and spans against a recursive walk over children lists."""
    n = tree.size
    for array in (tree.label, tree.kind, tree.parent, tree.leftmost):
        assert array.shape == (n,)
        assert array.dtype == np.int64
    assert tree.byte_span.shape == (n, 2)
    assert 0.0 <= tree.error_share <= 1.0
    assert tree.source_bytes == len(source)
    if n == 0:
        return
    children: list[list[int]] = [[] for _ in range(n)]
    for i, p in enumerate(tree.parent.tolist()):
        if p >= 0:
            children[p].append(i)
    assert tree.parent.tolist().count(-1) == 1
    order: list[int] = []
    leftmost = {}
    stack: list[tuple[int, bool]] = [(n - 1, False)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
            leftmost[node] = leftmost[children[node][0]] if children[node] else node
        else:
            stack.append((node, True))
            stack += [(child, False) for child in reversed(children[node])]
    assert order == list(range(n))
    assert [leftmost[i] for i in range(n)] == tree.leftmost.tolist()
    spans = tree.byte_span.tolist()
    for i in range(n):
        assert 0 <= spans[i][0] < spans[i][1] <= len(source)
        inner = [spans[i][0], *(edge for c in children[i] for edge in spans[c]), spans[i][1]]
        assert inner == sorted(inner), "children lie in order inside their parent"
    assert tree.kind.min() >= 0
    assert tree.kind.max() < num_kinds(tree.language)
    assert tree.label.min() >= 0


BY_HAND = {
    "x = a + 1": ("module", ("assignment", "identifier", ("binary_operator", "identifier", "+", "integer"))),
    # One statement: no block, no expression_statement, no brackets.
    "if (a):\n    f(x)  # why\n": (
        "module",
        ("if_statement", "identifier", ("call", "identifier", ("argument_list", "identifier"))),
    ),
    # Two statements: the block stays.
    "while a:\n    b\n    c": (
        "module",
        ("while_statement", "identifier", ("block", "identifier", "identifier")),
    ),
    "x[1:]": ("module", ("subscript", "identifier", ("slice", "integer", ":"))),
    "x[:1]": ("module", ("subscript", "identifier", ("slice", ":", "integer"))),
    "yield x": ("module", ("yield", "identifier")),
    "yield from x": ("module", ("yield", "from", "identifier")),
    "return x,": ("module", ("return_statement", ("expression_list", "identifier"))),
    "a is not b not in c": (
        "module",
        ("comparison_operator", "identifier", "is not", "identifier", "not in", "identifier"),
    ),
    "not a and -b": (
        "module",
        ("boolean_operator", ("not_operator", "identifier"), "and", ("unary_operator", "-", "identifier")),
    ),
    "a **= 2": ("module", ("augmented_assignment", "identifier", "**=", "integer")),
    "async def f(*, k): pass": (
        "module",
        (
            "function_definition",
            "async",
            "identifier",
            ("parameters", "keyword_separator", "identifier"),
            "pass_statement",
        ),
    ),
    "s = 'text'": ("module", ("assignment", "identifier", "string")),
    "f'a{x!r:>{w}}'": (
        "module",
        (
            "string",
            "string_content",
            (
                "interpolation",
                "identifier",
                "type_conversion",
                ("format_specifier", ("format_expression", "identifier")),
            ),
        ),
    ),
    "match a:\n    case _: pass\n    case [*b]: pass": (
        "module",
        (
            "match_statement",
            "identifier",
            (
                "block",
                ("case_clause", "_", "pass_statement"),
                ("case_clause", ("list_pattern", ("splat_pattern", "*", "identifier")), "pass_statement"),
            ),
        ),
    ),
    "with a as b, c: pass": (
        "module",
        (
            "with_statement",
            ("with_clause", ("as_pattern", "identifier", "identifier"), "identifier"),
            "pass_statement",
        ),
    ),
    "from .. import a as b": (
        "module",
        (
            "import_from_statement",
            ("relative_import", "import_prefix"),
            ("aliased_import", "identifier", "identifier"),
        ),
    ),
    "": None,
    "  \n\n": None,
    "# only a comment\n": None,
}


@pytest.mark.parametrize("source", BY_HAND, ids=repr)
def test_shape_rules(source: str) -> None:
    tree = parse(source)
    assert nested(tree) == BY_HAND[source]
    assert tree.error_bytes == 0
    check_invariants(tree, source.encode())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a + b", "a - b"),
        ("a < b", "a > b"),
        ("x = 1", "x = 999"),
        ("x = 1", "y = 1"),
        ("x += 1", "x -= 1"),
        ("'a'", "'b'"),
        ("'a'", "b'a'"),
        ("r'\\n'", "'\\n'"),
        ("f'a'", "f'b'"),
        ("f'{a:x}'", "f'{a:d}'"),
        ("f'{a!r}'", "f'{a!s}'"),
        ("f'{a=}'", "f'{a}'"),
        ("a and b", "a or b"),
        ("a in b", "a not in b"),
        ("x[1:]", "x[:1]"),
        ("return x", "return x,"),
        ("def f(*a): pass", "def f(**a): pass"),
        ("from . import a", "from .. import a"),
        ("async def f(): pass", "def f(): pass"),
        ("try:\n  a\nexcept E:\n  b", "try:\n  a\nexcept* E:\n  b"),
    ],
)
def test_different_meaning_is_a_different_tree(one: str, other: str) -> None:
    assert signature(one) != signature(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a+b", "a  +  b"),
        ("a + b", "(a + b)"),
        ("'a'", '"a"'),
        ("'a'", "u'a'"),
        ("'a'", "'''a'''"),
        ("f(a, b)", "f(\n    a,\n    b,\n)  # note"),
        ("if a:\n    b\n", "if a: b"),
        ("if a:\r\n\tb\r\n", "if a:\n    b\n"),
        ("\ufeffx = 1", "x = 1"),
    ],
)
def test_layout_is_not_structure(one: str, other: str) -> None:
    assert signature(one) == signature(other)


def signature(source: str) -> tuple[list[int], list[int]]:
    tree = parse(source)
    return tree.label.tolist(), tree.parent.tolist()


def stdlib_functions() -> list[str]:
    tree = ast.parse(inspect.getsource(textwrap) + inspect.getsource(ast))
    source = inspect.getsource(textwrap) + inspect.getsource(ast)
    found = [ast.get_source_segment(source, n) for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    return [textwrap.dedent(f) for f in found if f]


def test_invariants_on_real_code_whole_and_truncated() -> None:
    functions = stdlib_functions()
    assert len(functions) > 100
    for k, source in enumerate(functions[::2]):
        raw = source.encode()
        check_invariants(parse(raw), raw)
        cut = raw[: len(raw) * (k % 9 + 1) // 10]
        check_invariants(parse(cut), cut)
        glued = raw[len(raw) // 2 :] + raw[: len(raw) // 3]
        check_invariants(parse(glued), glued)


@pytest.mark.parametrize(
    "source",
    [
        "def f(:\n  return (a + \n",
        "((((",
        "))))",
        "x = 'abc",
        '"""',
        "f'{",
        "f'{a",
        "\x00",
        "x = 1\x00 + 2",
        "x\r\ny\rz",
        "\tif x:\n  y\n\tz",
        "\ufeff",
        "\ufeff\ufeffx",
        "名前 = '🙂' + \"é\"",
        "🙂 = 1",
        "\ud800 = 1",
        "banana banana banana",
        "\\",
        "if",
        "lambda",
        "\x0c",
        b"x = '\xff\xfe'",
        b"\xff",
        b"\xc3",
        b"\x80abc = 1",
    ],
    ids=ascii,
)
def test_broken_input_gives_a_tree(source: str | bytes) -> None:
    raw = source.encode("utf-8", "surrogatepass") if isinstance(source, str) else source
    check_invariants(parse(source), raw)
    np.testing.assert_array_equal(parse(source).label, parse(raw).label)


FRAGMENTS = [
    *("def f(x):\n", "    ", "\t", "\n", "(", ")", "[", "]", "x", "=", "1", "'", "f'{", "}", ":", "if "),
    *("else", "+", "not ", "#", "\\", "\r\n", "é", "🙂", '"""', "match x:\n", "case ", "lambda ", "*"),
]


@settings(max_examples=150, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=60),
        st.text(max_size=60),
        st.lists(st.sampled_from(FRAGMENTS), max_size=30).map("".join),
    )
)
def test_any_text_gives_a_tree(source: str | bytes) -> None:
    check_invariants(parse(source), source.encode("utf-8", "surrogatepass") if isinstance(source, str) else source)


def test_error_share_counts_hand_picked_bytes() -> None:
    assert parse("x = 1\n").error_bytes == 0
    assert parse("((((").error_bytes == 4
    assert parse("((((").error_share == 1.0
    stray = parse("x = 1\x00 + 2\n")
    assert stray.error_bytes == 1
    assert stray.error_share == pytest.approx(1 / 11)
    # `return (a +` (11 bytes) is out of place, and the bracket that `f(` lacks has no bytes: counted as one.
    assert parse("def f(:\n  return (a + \n").error_bytes == 12
    assert parse("").error_share == 0.0


@pytest.mark.parametrize(
    ("source", "size"),
    [("[" * 5000 + "x" + "]" * 5000, 5002), ("-" * 5000 + "x", 10002), ("(" * 5000 + "x" + ")" * 5000, 2)],
)
def test_deep_nesting(source: str, size: int) -> None:
    tree = parse(source)
    assert tree.size == size
    check_invariants(tree, source.encode())


def test_deep_broken_nesting() -> None:
    source = "f(" * 5000
    check_invariants(parse(source), source.encode())


def test_vocabulary_is_closed_and_stable() -> None:
    names = kind_names("python")
    assert len(set(names)) == len(names) == num_kinds("python")
    assert names[:3] == ("unknown", "ERROR", "module")
    assert parse("x").kind_version == "python-1"
    # Pinned: a checkpoint stores these ids.
    assert {name: names.index(name) for name in ("identifier", "call", "+", "async")} == {
        "identifier": 58,
        "call": 16,
        "+": 120,
        "async": 165,
    }
    # Pinned: labels may be stored too.
    assert parse("x").label.tolist() == [356879449529321870, 5391962802994620737]


def test_every_kind_of_the_installed_grammar_is_known() -> None:
    for source in stdlib_functions()[::3]:
        assert 0 not in parse(source).kind


def test_labels_do_not_depend_on_the_hash_seed() -> None:
    code = (
        "import json\nfrom structloss.trees.syntax_tree import parse\n"
        "print(json.dumps(parse('def f(a, b):\\n    return g(a) + \"x\"').label.tolist()))"
    )
    expected = parse('def f(a, b):\n    return g(a) + "x"').label.tolist()
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    run = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)
    assert json.loads(run.stdout) == expected


def test_pickle() -> None:
    tree = parse("def f(a):\n    return (a\n")
    copy = pickle.loads(pickle.dumps(tree))
    for field in ("label", "kind", "parent", "leftmost", "byte_span"):
        np.testing.assert_array_equal(getattr(copy, field), getattr(tree, field))
    assert (copy.error_bytes, copy.source_bytes) == (tree.error_bytes, tree.source_bytes)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="language: got 'cobol', but only these exist: java, javascript, python"):
        parse("x", "cobol")
    with pytest.raises(ValueError, match="only these exist"):
        kind_names("cobol")
    with pytest.raises(TypeError, match="source: got int"):
        parse(3)  # type: ignore[arg-type]
