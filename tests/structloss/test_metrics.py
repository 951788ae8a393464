"""Syntax match, data-flow match and TSED: hand-counted cases, known faults of such metrics, invariances."""

from __future__ import annotations

import ast
import inspect
import json
import os
import subprocess
import sys
import textwrap
from functools import cache

import pytest

from structloss.metrics import dataflow_match, syntax_match, tsed
from structloss.metrics.dataflow_match import data_flow_edges
from structloss.trees import Tree, parse

CHAIN = "def f(a):\n    b = a\n    c = b\n    return c\n"


def real_functions() -> list[str]:
    source = inspect.getsource(textwrap) + inspect.getsource(json.encoder) + inspect.getsource(ast)
    found = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef)]
    return [ast.unparse(node) for node in found][::2]


# Syntax match


@pytest.mark.parametrize(
    ("candidate", "reference", "expected"),
    [
        # Module, 2 Assign, 2 Call on either side; one Assign and its Call agree.
        ("x = f(1)\ny = h(2)", "x = f(1)\ny = g(2)", 2 * 2 / 10),
        # Repeats are clipped: Module, Expr, Call against Module, 3 Expr, 3 Call.
        ("f(1)", "f(1)\nf(1)\nf(1)", 2 * 2 / 10),
        ("f(1)\nf(1)\nf(1)", "f(1)", 2 * 2 / 10),
        # Module, If, Compare, Expr, Call each; Compare differs, and so do If and Module.
        ("if a < 1: f(2)", "if a > 1: f(2)", 2 * 2 / 10),
        ("", "", 1.0),
        ("", "x = 1", 0.0),
        ("x = 1", "", 0.0),
        ("# nothing", "", 1.0),
        ("def f(:", "x = 1", 0.0),
    ],
)
def test_syntax_match_counted_by_hand(candidate: str, reference: str, expected: float) -> None:
    assert syntax_match(candidate, reference) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("def f(a): return a + 1", "def longer(x): return x + 1"),
        ("for i in xs: print(i)", "for element in xs: print(element)"),
        ("import numpy as np\nnp.sum(1)", "import numpy as n\nn.sum(1)"),
        ("try: f()\nexcept E as e: print(e)", "try: f()\nexcept E as problem: print(problem)"),
        ("match v:\n case [x, *y]: f(x, y)", "match v:\n case [p, *q]: f(p, q)"),
        ("a+b", "(a   +  b)  # sum"),
        ("def f():\n  'Says what.'\n  return 1", "def f(): return 1"),
        ("x = 'a'", 'x = """a"""'),
        ("x = 0xff", "x = 255"),
        ("\ufeffx = 1", "x = 1"),
        ("x = '\\d'", "x = '\\\\d'"),
    ],
)
def test_syntax_match_does_not_see_names_and_layout(one: str, other: str) -> None:
    assert syntax_match(one, other) == 1.0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x = 1", "x = True"),
        ("x = 1", "x = 1.0"),
        ("x = 'a'", "x = b'a'"),
        ("x = len(y)", "x = sum(y)"),
        ("x.append(1)", "x.extend(1)"),
        ("f(a=1)", "f(b=1)"),
        ("import os", "import sys"),
        ("x = a if c else b", "x = not a"),
        ("class A:\n  def m(self): pass", "class A:\n  def n(self): pass"),
        ("if a:\n  f(1)\nelse:\n  g(1)", "if a:\n  f(1)\n  g(1)"),
        ("x = None", "x = ..."),
        ("f(**x)", "f(*x)"),
        ("async def f(): pass", "def f(): pass"),
    ],
)
def test_syntax_match_sees_what_matters(one: str, other: str) -> None:
    assert syntax_match(one, other) < 1.0


def test_syntax_match_is_symmetric_and_one_on_itself() -> None:
    functions = real_functions()
    for one, other in zip(functions, functions[1:] + functions[:1], strict=True):
        assert syntax_match(one, one) == 1.0
        score = syntax_match(one, other)
        assert 0.0 <= score <= 1.0
        assert score == syntax_match(other, one)


# Data-flow match


@pytest.mark.parametrize(
    ("candidate", "reference", "expected"),
    [
        # p0 -> b, b -> c, c -> return against p0 -> b, b -> return: only p0 -> b agrees.
        ("def f(a):\n  b = a\n  return b", CHAIN, 2 * 1 / 5),
        (CHAIN, CHAIN, 1.0),
        ("def f(x):\n  yy = x\n  zz = yy\n  return zz", CHAIN, 1.0),
        # a, b -> c; c, b -> d; d -> return; one early use more on the other side.
        (
            "def f(a, b):\n  print(b)\n  c = a + b\n  d = c * b\n  return d",
            "def f(a, b):\n  c = a + b\n  d = c * b\n  return d",
            2 * 5 / 11,
        ),
        # Repeats are clipped: p0 -> return three times and once.
        ("def f(a): return a", "def f(a): return a + a + a", 2 * 1 / 4),
        ("def f(a, b): return a", "def f(a, b): return b", 0.0),
        ("def f(): pass", CHAIN, 0.0),
        ("", CHAIN, 0.0),
        ("def f(:", CHAIN, 0.0),
        (CHAIN, "def f(): pass", None),
        ("def f(:", "print(1)", None),
        ("x = 1", "", None),
    ],
)
def test_dataflow_match_counted_by_hand(candidate: str, reference: str, expected: float | None) -> None:
    score = dataflow_match(candidate, reference)
    assert score is None if expected is None else score == pytest.approx(expected, abs=1e-15)


P0, P1 = ("parameter 0", ()), ("parameter 1", ())
PLAIN = ("assign", ())


def role(name: str) -> tuple[str, tuple]:
    return (name, ())


EDGES = {
    "loop with augmented assignment": (
        "def f(n):\n  t = 0\n  for i in range(n):\n    t += i\n  return t",
        {
            (P0, ("for", ("parameter 0",))): 1,
            (("for", ("parameter 0",)), ("assign", ("assign", "for"))): 1,
            (PLAIN, ("assign", ("assign", "for"))): 1,
            (("assign", ("assign", "for")), ("assign", ("assign", "for"))): 1,
            (PLAIN, role("return")): 1,
            (("assign", ("assign", "for")), role("return")): 1,
        },
    ),
    "a definition kills the one before": ("x = 1\nx = 2\nprint(x)", {(PLAIN, role("expression")): 1}),
    "branches meet": (
        "if c():\n  x = 1\nelse:\n  x = y = 2\nprint(x)",
        {(PLAIN, role("expression")): 2},
    ),
    "nothing follows a return": (
        "def f(a):\n  if a:\n    x = 1\n    return x\n  else:\n    x = 2\n  return x",
        {(P0, role("test")): 1, (PLAIN, role("return")): 2},
    ),
    "break leaves, continue repeats": (
        "x = 1\nwhile True:\n  print(x)\n  x = 2\n  if g(): continue\n  x = 3\n  break\nf = x",
        {(PLAIN, role("expression")): 2, (PLAIN, ("assign", ("assign",))): 1},
    ),
    "swap": (
        "def f(a, b):\n  a, b = b, a\n  return a",
        {
            (P0, ("assign", ("parameter 0",))): 1,
            (P1, ("assign", ("parameter 1",))): 1,
            (("assign", ("parameter 1",)), role("return")): 1,
        },
    ),
    "unpacking": (
        "def f(p):\n  x, (y, *z) = p\n  return z",
        {
            (P0, ("assign[0]", ("parameter 0",))): 1,
            (P0, ("assign[1][0]", ("parameter 0",))): 1,
            (P0, ("assign[1][1]", ("parameter 0",))): 1,
            (("assign[1][1]", ("parameter 0",)), role("return")): 1,
        },
    ),
    "comprehension": (
        "def f(p):\n  x = 1\n  return [x for x in p if x], x",
        {
            (P0, ("for", ("parameter 0",))): 1,
            (("for", ("parameter 0",)), role("test")): 1,
            (("for", ("parameter 0",)), role("return")): 1,
            (PLAIN, role("return")): 1,
        },
    ),
    "walrus": (
        "def f(p):\n  if (n := p): return n",
        {
            (P0, ("assign", ("parameter 0",))): 1,
            (("assign", ("parameter 0",)), role("test")): 1,
            (("assign", ("parameter 0",)), role("return")): 1,
        },
    ),
    "walrus in a comprehension binds outside": (
        "def f(p):\n  [y := x for x in p]\n  return y",
        {
            (P0, ("for", ("parameter 0",))): 1,
            (("for", ("parameter 0",)), ("assign", ("for",))): 1,
            (("assign", ("for",)), role("expression")): 1,
            (("assign", ("for",)), role("return")): 1,
        },
    ),
    "lambda": (
        "def f(k):\n  return sorted(g(), key=lambda t, d=k: t + k)",
        {
            (P0, ("parameter 1", ("parameter 0",))): 1,
            (P0, role("return")): 2,
        },
    ),
    "with and except": (
        "def f(p):\n  try:\n    with open(p) as h: return h\n  except OSError as e:\n    raise E from e",
        {
            (P0, ("with", ("parameter 0",))): 1,
            (("with", ("parameter 0",)), role("return")): 1,
            (role("except"), role("raise")): 1,
        },
    ),
    "an exception may come before or after each definition": (
        "x = 1\ntry:\n  x = 2\nexcept E:\n  print(x)",
        {(PLAIN, role("expression")): 2},
    ),
    "finally sees all ways": (
        "x = 1\ntry:\n  x = 2\nfinally:\n  print(x)\nreturn_ = x",
        {(PLAIN, role("expression")): 2, (PLAIN, ("assign", ("assign",))): 1},
    ),
    "closure and nonlocal": (
        "def f():\n  c = 0\n  def g(n):\n    nonlocal c\n    c += n\n  g(1)\n  return c",
        {
            (PLAIN, ("assign", ("assign", "parameter 0"))): 1,
            (("assign", ("assign", "parameter 0")), ("assign", ("assign", "parameter 0"))): 1,
            (P0, ("assign", ("assign", "parameter 0"))): 1,
            (role("function"), role("expression")): 1,
            (PLAIN, role("return")): 1,
            (("assign", ("assign", "parameter 0")), role("return")): 1,
        },
    ),
    "global": (
        "c = 0\ndef f():\n  global c\n  c = 1\nf()\nprint(c)",
        {(role("function"), role("expression")): 1, (PLAIN, role("expression")): 2},
    ),
    "recursion": (
        "def f(n): return f(n)",
        {(role("function"), role("return")): 1, (P0, role("return")): 1},
    ),
    "stores into parts": (
        "def f(d, k):\n  d[k] = 1\n  return d",
        {
            (P0, ("store", ("parameter 0", "parameter 1"))): 1,
            (P1, ("store", ("parameter 0", "parameter 1"))): 1,
            (("store", ("parameter 0", "parameter 1")), role("return")): 1,
        },
    ),
    "match": (
        "def f(p):\n  match p:\n    case [x]: return x\n    case {'k': y, **z} if y: return z\n"
        "    case _: return p\n  return p",
        {
            (P0, role("test")): 1,
            (P0, ("match", ("parameter 0",))): 3,
            (("match", ("parameter 0",)), role("return")): 2,
            (("match", ("parameter 0",)), role("test")): 1,
            (P0, role("return")): 1,
        },
    ),
    "class": (
        "class A:\n  y = 1\n  z = y\n  def m(self):\n    return A, y",
        {
            (PLAIN, ("assign", ("assign",))): 1,
            (role("class"), role("return")): 1,
        },
    ),
    "del, yield, delete and import": (
        "import os\ndef f(a, b):\n  yield a\n  del b[a], a\n  print(a, os.path)",
        {
            (P0, role("yield")): 1,
            (P0, role("delete")): 1,
            (P1, role("delete")): 1,
            (role("import"), role("expression")): 1,
        },
    ),
    "conditional expression and short circuit": (
        "x = 1\ng() and (x := 2)\nprint(x)",
        {(PLAIN, role("expression")): 3},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EDGES)
def test_edges_counted_by_hand(name: str) -> None:
    source, expected = EDGES[name]
    assert dict(data_flow_edges(ast.parse(source))) == expected


class Rename(ast.NodeTransformer):
    """Rename variables, parameters, functions; imports stay, so sources with imports are left out."""

    def __init__(self, names: set[str]) -> None:
        self.names = names

    def new(self, name: str) -> str:
        return f"zz_{name[::-1]}" if name in self.names else name

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if isinstance(node, ast.Name):
            node.id = self.new(node.id)
        elif isinstance(node, ast.arg):
            node.arg = self.new(node.arg)
        elif isinstance(node, ast.FunctionDef | ast.ExceptHandler) and node.name:
            node.name = self.new(node.name)
        elif isinstance(node, ast.Global | ast.Nonlocal):
            node.names = [self.new(name) for name in node.names]
        return node


def test_renaming_and_layout_change_nothing_on_real_code() -> None:
    seen = 0
    for source in real_functions():
        tree = ast.parse(source)
        if any(isinstance(n, ast.Import | ast.ImportFrom | ast.ClassDef) for n in ast.walk(tree)):
            continue
        bound = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}
        bound |= {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
        bound |= {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
        renamed = ast.unparse(Rename(bound).visit(ast.parse(source)))
        assert renamed != source
        assert syntax_match(renamed, source) == 1.0
        assert dataflow_match(renamed, source) in (1.0, None)
        seen += dataflow_match(source, source) == 1.0
    assert seen > 30


# The faults that such metrics are known for


def test_missing_flow_scores_zero_and_undefined_is_none() -> None:
    reference = "def f(a):\n  b = a\n  c = b\n  return c"
    assert dataflow_match("def f(): pass", reference) == 0.0
    assert dataflow_match("def f(): pass", "def f(): pass") is None


def test_operators_and_constants_are_seen() -> None:
    pairs = [("a < b", "a > b"), ("x + 1", "x + 999"), ("a + b", "a - b"), ("a * b", "a / b")]
    for one, other in pairs:
        assert syntax_match(f"def f(a, b, x): return {one}", f"def f(a, b, x): return {other}") < 0.5
        assert tsed(f"return {one}", f"return {other}") < 1.0


def test_garbage_scores_zero() -> None:
    assert syntax_match("banana banana banana banana", CHAIN) == 0.0
    assert dataflow_match("banana banana banana banana", CHAIN) == 0.0
    assert syntax_match("", CHAIN) == dataflow_match("", CHAIN) == tsed("", CHAIN) == 0.0


def test_one_early_use_does_not_shift_the_rest() -> None:
    body = "".join(f"  v{i} = v{i - 1} + 1\n" for i in range(1, 20))
    reference = f"def f(v0, w):\n{body}  return v19"
    edges = 20
    score = dataflow_match(f"def f(v0, w):\n  print(w)\n{body}  return v19", reference)
    assert score == pytest.approx(2 * edges / (2 * edges + 1))


def test_division_is_no_comment() -> None:
    assert syntax_match("def f(a, b): return a", "def f(a, b): return a // b + 1") < 0.5
    assert dataflow_match("def f(a, b): return a", "def f(a, b): return a // b + 1") == pytest.approx(2 / 3)


def test_scores_do_not_depend_on_the_hash_seed() -> None:
    code = (
        "import inspect, json, textwrap\nfrom structloss.metrics import dataflow_match, syntax_match, tsed\n"
        "a, b = [textwrap.dedent(inspect.getsource(function)) for function in (\n"
        "    textwrap.TextWrapper._wrap_chunks, textwrap.TextWrapper._handle_long_word)]\n"
        "print(json.dumps([metric(a, b) for metric in (dataflow_match, syntax_match, tsed)]))"
    )
    outputs = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        run = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)
        outputs.append(json.loads(run.stdout))
    assert outputs[0] == outputs[1]
    assert all(0.0 < score < 1.0 for score in outputs[0])


# Limits and errors


@pytest.mark.parametrize("metric", [syntax_match, dataflow_match])
def test_references_must_parse(metric) -> None:
    for reference in ("def f(:", "x = \x00", "return" * 3 + ")"):
        with pytest.raises(ValueError, match="reference: got source that Python cannot parse"):
            metric("x = 1", reference)
    with pytest.raises(TypeError, match="reference: got int"):
        metric("x = 1", 3)
    with pytest.raises(TypeError, match="candidate: got bytes"):
        metric(b"x = 1", "x = 1")


@pytest.mark.parametrize("metric", [syntax_match, dataflow_match])
@pytest.mark.parametrize(
    "hard",
    [
        "(" * 1000 + ")" * 1000,
        "-" * 20_000 + "x",
        "x = \x00",
        "\ud800",
        "x = " + "9" * 5000,
        "for i in x:" * 30,
    ],
    ids=["brackets", "minus", "null", "surrogate", "digits", "one-line"],
)
def test_candidates_that_python_refuses_score_zero(metric, hard: str) -> None:
    assert metric(hard, CHAIN) == 0.0


def test_long_and_deep_code_is_analysed() -> None:
    long_sum = "def f(a): return " + " + ".join(["a"] * 700)
    assert dataflow_match(long_sum, long_sum) == 1.0
    assert syntax_match(long_sum, long_sum) == 1.0
    elifs = "def f(a):\n  if a: return 1\n" + "".join(f"  elif a == {i}: return a\n" for i in range(200))
    assert dataflow_match(elifs, elifs) == 1.0
    # Loops in loops must not take exponential time.
    lines = [f"{' ' * i}a{i} = 0\n{' ' * i}for v{i} in x:\n{' ' * i} a{i} += 1\n" for i in range(18)]
    loops = "".join(lines) + " " * 18 + "print(a0)"
    assert dataflow_match(loops, loops) == 1.0
    huge = "x = 0x" + "f" * 6000
    assert syntax_match(huge, huge) == 1.0


# TSED


def brute_distance(a: Tree, b: Tree) -> int:
    """Textbook forest recursion over nested tuples, memoised."""

    def build(tree: Tree) -> tuple:
        forms: list[tuple] = [()] * tree.size
        children: list[list[int]] = [[] for _ in range(tree.size)]
        for i in range(tree.size):
            forms[i] = (int(tree.label[i]), tuple(forms[c] for c in children[i]))
            if tree.parent[i] >= 0:
                children[tree.parent[i]].append(i)
        return (forms[-1],) if tree.size else ()

    @cache
    def size(forest: tuple) -> int:
        return sum(1 + size(node[1]) for node in forest)

    @cache
    def distance(f: tuple, g: tuple) -> int:
        if not f or not g:
            return size(f) + size(g)
        (x, below_x), (y, below_y) = f[-1], g[-1]
        return min(
            distance(f[:-1] + below_x, g) + 1,
            distance(f, g[:-1] + below_y) + 1,
            distance(f[:-1], g[:-1]) + distance(below_x, below_y) + (x != y),
        )

    return distance(build(a), build(b))


@pytest.mark.parametrize(
    ("candidate", "reference", "expected"),
    [
        # module, assignment, identifier, integer: one of four differs.
        ("x = 1", "x = 2", 0.75),
        ("x = 1", "y = 2", 0.5),
        ("x = 1", "x = 1  # same", 1.0),
        # assignment, identifier, integer to insert below a module that is not there.
        ("", "x = 1", 0.0),
        ("", "", 1.0),
        # One statement more: three nodes of seven.
        ("x = 1", "x = 1\ny = 2", 1 - 3 / 7),
    ],
)
def test_tsed_counted_by_hand(candidate: str, reference: str, expected: float) -> None:
    assert tsed(candidate, reference) == pytest.approx(expected)
    assert tsed(reference, candidate) == pytest.approx(expected)


def test_tsed_against_a_textbook_recursion() -> None:
    sources = [
        "if a < b: return f(a, 1)",
        "while a > b: a = f(1)",
        "def f(x):\n  return x[1:]",
        "for i in x: print(i, (",
        "x = [i for i in y]",
    ]
    for one in sources:
        for other in sources:
            a, b = parse(one), parse(other)
            expected = max(0.0, 1 - brute_distance(a, b) / max(a.size, b.size))
            assert tsed(one, other) == pytest.approx(expected, abs=1e-6)


def test_tsed_takes_broken_candidates_and_refuses_languages() -> None:
    assert 0.0 < tsed("def f(a:\n  return a", "def f(a):\n  return a") < 1.0
    with pytest.raises(ValueError, match="language: got 'cobol'"):
        tsed("", "", language="cobol")
