"""Keeps evaluation problems out of training: five rules, each with its count of what it dropped.

same id         the row names a problem of a benchmark (MBPP's numbers also stand for the sanitized set and MBPP+)
same text       the task text has the same words in the same order
same assertion  one of the row's tests is a test of a benchmark problem
13-gram         13 words in a row of the task text stand in that of a benchmark problem
same code       a function has the tree of a reference: names, docstrings, comments and annotations do not count
passes          a function with the name of a benchmark's entry point passes that problem's tests (needs a sandbox)

Each alone is leaky (a rewording has another text, a renamed function another name) and the last two can strike by
chance: functions of fewer than 30 tree nodes are too small to be told apart, and are never "the same".
"""

from __future__ import annotations

import ast
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from training.benchmarks.grading import Grader

Row = dict[str, Any]

WORDS = 13
SMALLEST_CODE = 30


@dataclass(frozen=True)
class Leak:
    """Which rule a row breaks, and with which benchmark problem."""

    rule: str
    problem: Row

    def __str__(self) -> str:
        return f"{self.rule} ({self.problem['family']})"


class LeakGuard:
    """What training must not see of `problems`, the rows of one benchmark or of several."""

    def __init__(self, problems: Iterable[Row]) -> None:
        self._ids: dict[str, Row] = {}
        self._texts: dict[str, Row] = {}
        self._assertions: dict[str, Row] = {}
        self._ngrams: dict[tuple[str, ...], Row] = {}
        self._codes: dict[str, Row] = {}
        self._by_entry_point: defaultdict[str, list[Row]] = defaultdict(list)
        for problem in problems:
            words = task_words(problem["prompt"])
            self._ids.setdefault(_plain_id(problem["id"]), problem)
            self._texts.setdefault(" ".join(words), problem)
            for test in _assertions(problem):
                self._assertions.setdefault(test, problem)
            for ngram in _ngrams(words):
                self._ngrams.setdefault(ngram, problem)
            for code in code_fingerprints(problem["reference"]):
                self._codes.setdefault(code, problem)
            self._by_entry_point[problem["entry_point"]].append(problem)

    def leak_of(self, row: Row) -> Leak | None:
        """The first rule that a problem or trace row breaks, by all rules that run nothing; None if it is clean.

        Looks at `problem_id` or `id`, `prompt`, the asserts in `tests`, and `code` or `reference`.
        """
        if problem := self.same_id(row.get("problem_id") or row["id"]):
            return Leak("same id", problem)
        words = task_words(row["prompt"])
        if problem := self._texts.get(" ".join(words)):
            return Leak("same text", problem)
        for test in _assertions(row):
            if problem := self._assertions.get(test):
                return Leak("same assertion", problem)
        for ngram in _ngrams(words):
            if problem := self._ngrams.get(ngram):
                return Leak("13-gram", problem)
        for code in code_fingerprints(_code_of(row)):
            if problem := self._codes.get(code):
                return Leak("same code", problem)
        return None

    def same_id(self, problem_id: str) -> Row | None:
        """The benchmark problem of that id, whatever the form of its set."""
        return self._ids.get(_plain_id(problem_id))

    def passing(self, rows: Iterable[Row], grader: Grader) -> Iterator[tuple[Row, Leak | None]]:
        """Each row, with a Leak where its code passes all tests of a problem whose entry point it defines."""
        rows = list(rows)
        pairs = [
            (place, problem)
            for place, row in enumerate(rows)
            for name in sorted(_functions(_code_of(row)))
            for problem in self._by_entry_point.get(name, ())
        ]
        grades = grader.grade((problem, _code_of(rows[place])) for place, problem in pairs)
        solved: dict[int, Leak] = {}
        for (place, problem), grade in zip(pairs, grades, strict=True):
            if grade.verdict.status == "passed":
                solved.setdefault(place, Leak("passes", problem))
        for place, row in enumerate(rows):
            yield row, solved.get(place)


def screen(rows: Iterable[Row], guard: LeakGuard, grader: Grader | None = None) -> tuple[list[Row], dict[str, int]]:
    """The rows that break no rule, and how many each rule dropped; without a grader nothing is run."""
    dropped: Counter[str] = Counter()
    kept = []
    for row in rows:
        leak = guard.leak_of(row)
        if leak is None:
            kept.append(row)
        else:
            dropped[str(leak)] += 1
    if grader is not None:
        judged = list(guard.passing(kept, grader))
        kept = [row for row, leak in judged if leak is None]
        dropped.update(str(leak) for _, leak in judged if leak is not None)
    return kept, dict(sorted(dropped.items()))


def task_words(prompt: str) -> list[str]:
    """The words of a task text, lower case: a docstring where the prompt is code, without examples and asserts."""
    tree = _parsed(prompt)
    documented = (ast.Module, ast.FunctionDef, ast.ClassDef)
    found = [] if tree is None else [ast.get_docstring(n) for n in ast.walk(tree) if isinstance(n, documented)]
    text = next((text for text in reversed(found) if text), prompt)
    return normalise_text(re.split(r"^\s*(?:assert\b|>>>)", text, maxsplit=1, flags=re.MULTILINE)[0]).split()


def normalise_text(text: str) -> str:
    """Lower case words only: what two copies of one task text share."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def code_fingerprints(source: str) -> set[str]:
    """The trees of the top-level functions, as text, with every name that the function binds numbered.

    Functions of fewer than `SMALLEST_CODE` nodes have none, and neither has code that does not parse.
    """
    tree = _parsed(source)
    functions = [] if tree is None else [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {
        ast.dump(_Anonymous().visit(function))
        for function in functions
        if sum(1 for _ in ast.walk(function)) >= SMALLEST_CODE
    }


class _Anonymous(ast.NodeTransformer):
    """Numbers names in the order in which they appear; drops docstrings and annotations."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}

    def _number(self, name: str) -> str:
        return self.names.setdefault(name, f"n{len(self.names)}")

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        if ast.get_docstring(node) is not None and len(node.body) > 1:
            del node.body[0]
        bound = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        bound |= {n.arg for n in ast.walk(node) if isinstance(n, ast.arg)} | {node.name}
        for name in [node.name, *(argument.arg for argument in node.args.args)]:
            self._number(name)
        for name in sorted(bound - self.names.keys(), key=_first_places(node).__getitem__):
            self._number(name)
        node.name, node.returns, node.type_comment = self._number(node.name), None, None
        self.generic_visit(node)
        return node

    def visit_Name(self, node: ast.Name) -> ast.AST:
        node.id = self.names.get(node.id, node.id)
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        return ast.arg(self._number(node.arg))


def _first_places(function: ast.FunctionDef) -> dict[str, tuple[int, int]]:
    places: dict[str, tuple[int, int]] = {function.name: (0, 0)}
    for node in ast.walk(function):
        if isinstance(node, (ast.Name, ast.arg)):
            name, place = node.id if isinstance(node, ast.Name) else node.arg, (node.lineno, node.col_offset)
            places[name] = min(place, places.get(name, place))
    return places


def _plain_id(problem_id: str) -> str:
    """ "mbpp_plus/2" and "mbpp_sanitized/2" are "mbpp/2"."""
    family, slash, number = problem_id.partition("/")
    return family.partition("_")[0] + slash + number if slash else problem_id


def _code_of(row: Row) -> str:
    """The code of a trace, the reference of a problem."""
    return row["code"] if "code" in row else row["reference"]


def _assertions(row: Row) -> set[str]:
    tests = row.get("tests")
    asserts = tests.get("asserts", ()) if isinstance(tests, dict) else ()
    return {re.sub(r"\s+", "", test).lower() for test in asserts}


def _ngrams(words: list[str]) -> set[tuple[str, ...]]:
    return {tuple(words[start : start + WORDS]) for start in range(len(words) - WORDS + 1)}


def _functions(source: str) -> set[str]:
    tree = _parsed(source)
    return set() if tree is None else {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def _parsed(source: str) -> ast.Module | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes in strings
        try:
            return ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None
