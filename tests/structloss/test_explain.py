"""explain: golden texts, nothing lost and nothing twice, width, colours, the command line."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import structloss
from structloss import align_trees, explain
from structloss.explain.__main__ import main
from structloss.explain.merged_tree import merged_lines
from structloss.explain.terminal import cut, display_width, visible
from structloss.trees import Tree, TreeBatch, parse
from tests.structloss.test_trees_languages import REAL_CODE

STUDENT = "def f(xs):\n    total = 0\n    for x in xs:\n        total += x\n    print('é名')\n    return total\n"
TEACHER = "def f(xs):\n    total = 1\n    for x in xs:\n        if x > 0:\n            total += x\n    return total\n"

GOLDEN = """\
= matched  ~ changed (student -> teacher)
- missing (teacher only)  + extra (student only)

= module  def f(xs): total = 0 for x in xs: total…
  = function_definition  def f(xs): total = 0 for…
    = identifier  f
    = parameters  (xs)  (2 nodes)
    = block  total = 0 for x in xs: total += x pr…
      = assignment  total = 0
        = identifier  total
        ~ integer  0 -> 1
      = for_statement  for x in xs: total += x
        = identifier  x
        = identifier  xs
        - if_statement  if x > 0: total += x
          - comparison_operator  x > 0
            - identifier  x
            - >
            - integer  0
          = augmented_assignment  tota…  (4 nodes)
      + call  print('é名')
        + identifier  print
        + argument_list  ('é名')
          + string  'é名'
      = return_statement  return total  (2 nodes)

distance 10, similarity 0.565: 17 matched, 1 changed, 5 missing, 4 extra
student: 22 nodes, 0.0 % of 97 bytes not understood
teacher: 23 nodes, 0.0 % of 100 bytes not understood"""


def test_golden_text() -> None:
    assert explain(STUDENT, TEACHER, color=False, width=50) == GOLDEN
    # Bytes say the same.
    assert explain(STUDENT.encode(), TEACHER.encode(), color=False, width=50) == GOLDEN


def test_colours_add_nothing_but_colour() -> None:
    text = explain(STUDENT, TEACHER, color=True, width=50)
    assert "\x1b[31m        - if_statement  if x > 0: total += x\x1b[0m" in text
    assert "\x1b[33m        ~ integer  0 -> 1\x1b[0m" in text
    assert "\x1b[36m      + call  print('é名')\x1b[0m" in text
    assert re.sub(r"\x1b\[[0-9]+m", "", text) == GOLDEN
    for row in text.splitlines():
        assert row.count("\x1b[0m") * 2 == row.count("\x1b["), "every line ends its own colours"


def test_other_languages_and_broken_code() -> None:
    text = explain("let a = 1", "const a = 1", language="javascript", color=False, width=60)
    assert "    ~ let -> const  let -> const" in text
    source = REAL_CODE["java"]
    assert "distance 0, similarity 1.000" in explain(source, source, language="java", color=False)
    broken = explain("x = (1 +", "x = (1 + 2)", color=False)
    assert re.search(r"student: \d+ nodes, 100\.0 % of 8 bytes not understood", broken)


def test_empty_trees() -> None:
    both = explain("", "# only a comment", color=False, width=80)
    assert "(two empty trees)" in both
    assert "distance 0, similarity 1.000: 0 matched, 0 changed, 0 missing, 0 extra" in both
    assert "- module  x = 1\n  - assignment  x = 1\n    - identifier  x\n    - integer  1\n" in explain(
        "", "x = 1", color=False, width=80
    )
    assert "+ module  x = 1\n" in explain("x = 1", "", color=False, width=80)


@pytest.mark.parametrize("width", [40, 41, 57, 200])
def test_no_line_is_wider_than_asked(width: int) -> None:
    deep = "x = " + "[" * 40 + "'名前名前名前名前名前名前'" + "]" * 40
    other = deep.replace("名前", "🙂é").replace("x = ", "еще_одно_имя_переменной_которое_не_кончается = ")
    for one, two in ((STUDENT, TEACHER), (deep, other), (other, "y"), ("", deep)):
        text = explain(one, two, color=False, width=width)
        # The summary is a sentence and may wrap.
        rows = text.rpartition("\ndistance")[0].splitlines()
        assert max(map(display_width, rows)) <= width
    assert "deep] " in explain(deep, other, color=False, width=40)


def test_display_width_and_cut() -> None:
    assert display_width("aé") == 2
    assert display_width("e\u0301\u200d") == 1
    assert display_width("名🙂") == 4
    assert cut("名前", 4) == "名前"
    assert cut("名前", 3) == "名…"
    assert cut("a名前", 3) == "a…"
    assert cut("名前", 1) == "…"


def test_no_source_steers_the_terminal() -> None:
    assert visible(b"a \t\r\n b") == "a b"
    assert visible(b"'\x1b[31m\x07'") == "'\\x1b[31m\\x07'"
    assert visible(b"\xff") == "\\xff"
    assert visible("\u202e\u2066\u009b".encode()) == "\\u202e\\u2066\\x9b"
    assert "\x1b" not in explain("x = '\x1b]0;title\x07'", "x = '\u202e'", color=False)


def test_a_terminal_decides_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" in explain("a", "b")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in explain("a", "b")
    assert "\x1b[" in explain("a", "b", color=True)
    monkeypatch.setenv("NO_COLOR", "")
    assert "\x1b[" in explain("a", "b"), "an empty NO_COLOR refuses nothing"
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b[" not in explain("a", "b")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False, raising=False)
    assert "\x1b[" not in explain("a", "b")
    monkeypatch.setenv("COLUMNS", "44")
    assert max(map(len, explain(STUDENT, TEACHER).rpartition("\ndistance")[0].splitlines())) == 44


def check_lines(student: Tree, teacher: Tree, match: np.ndarray) -> None:
    """Every node of both trees once, in pre-order, below its parent's line."""
    lines = merged_lines(student, teacher, match)
    for side, tree in (("student", student), ("teacher", teacher)):
        seen: dict[int, int] = {}
        starts: list[tuple[int, int]] = []
        for line in lines:
            node = getattr(line, side)
            if node is None:
                continue
            assert line.nodes in (1, node - tree.leftmost[node] + 1)
            for below in range(node - line.nodes + 1, node + 1):
                assert below not in seen
                seen[below] = line.depth
            starts.append((int(tree.leftmost[node]), -node))
        assert sorted(seen) == list(range(tree.size))
        assert starts == sorted(starts)
        for line in lines:
            node = getattr(line, side)
            if node is not None and tree.parent[node] >= 0:
                assert seen[int(tree.parent[node])] < line.depth
    for line in lines:
        together = line.student is not None and line.teacher is not None
        assert together == (line.status in ("matched", "changed"))
        if together:
            labels = (student.label[line.student], teacher.label[line.teacher])
            assert (labels[0] == labels[1]) == (line.status == "matched")


FRAGMENTS = [
    "x = 1\n",
    "if a:\n  ",
    "f(x)\n",
    "while b: ",
    "[1, 2]\n",
    "(",
    "x + y\n",
    "def f(a): ",
    "return a\n",
    "\n",
]


@settings(max_examples=150, deadline=None)
@given(*[st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join)] * 2)
def test_nothing_is_lost_and_nothing_stands_twice(one: str, two: str) -> None:
    student, teacher = parse(one), parse(two)
    batches = [TreeBatch.from_trees([tree]) for tree in (student, teacher)]
    exact = align_trees(*batches)
    match = exact.match_a[0, : student.size].numpy()
    check_lines(student, teacher, match)
    lines = merged_lines(student, teacher, match)
    counts = {
        status: sum(line.nodes for line in lines if line.status == status) for status in ("changed", "missing", "extra")
    }
    assert sum(counts.values()) == float(exact.distance[0])
    # The flattened mapping may cross.
    flattened = align_trees(*batches, method="flattened", max_cells=1)
    check_lines(student, teacher, flattened.match_a[0, : student.size].numpy())


def test_large_trees_are_flattened_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def small(a: TreeBatch, b: TreeBatch, *, method: str) -> structloss.TreeAlignment:
        return align_trees(a, b, method=method, max_cells=20)

    # structloss.explain is the function, so a dotted name does not reach the module.
    monkeypatch.setattr(sys.modules["structloss.explain.report"], "align_trees", small)
    text = explain(STUDENT, TEACHER, color=False)
    assert "too large for the exact distance" in text
    assert "too large" not in explain("x", "y", color=False)


def test_five_thousand_deep() -> None:
    source = "x = " + "[" * 5000 + "]" * 5000
    assert "[5000 deep] ~ list" not in explain(source, source, color=False)
    text = explain(source, source.replace("x", "y"), color=False, width=60)
    assert "= list  [[[[[[" in text
    assert "(5000 nodes)" in text


def test_command_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    student, teacher = tmp_path / "a.js", tmp_path / "b.js"
    student.write_text("let 名 = 1;")
    teacher.write_text("const 名 = 1;")
    command = [sys.executable, "-W", "error", "-m", "structloss.explain", "--width", "50", "-", str(teacher)]
    done = subprocess.run(command, input=student.read_bytes(), capture_output=True, check=True)
    assert done.stderr == b""
    assert (
        done.stdout.decode()
        == explain(student.read_text(), teacher.read_text(), language="javascript", color=False, width=50) + "\n"
    )

    for wrong, message in (
        (["-", "-"], "both standard input"),
        ([str(tmp_path / "none.py"), str(teacher)], "No such file"),
        ([str(student), str(teacher), "--width", "3"], "width: got 3, wants at least 40"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(wrong)
        assert stop.value.code == 2
        assert message in capfd.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    help_text = capfd.readouterr().out
    for word in ("matched", "changed", "missing", "extra", "similarity", "examples:"):
        assert word in help_text


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="width: got 39, wants at least 40 columns"):
        explain("x", "x", width=39)
    with pytest.raises(ValueError, match="language: got 'cobol'"):
        explain("x", "x", language="cobol")
    with pytest.raises(TypeError, match="source: got int"):
        explain(3, "x")  # type: ignore[arg-type]


def test_distance_is_that_of_the_alignment() -> None:
    a, b = (TreeBatch.from_sources([source]) for source in (STUDENT, TEACHER))
    assert torch.equal(align_trees(a, b).distance, torch.tensor([10.0]))
