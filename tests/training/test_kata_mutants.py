"""Mutants, and hidden tests that kill them."""

from __future__ import annotations

import random
import time

import pytest

from training.kata import candidates, kill_rate, make_kata, wrong_candidates
from training.kata.dataset import KataData
from training.kata.execution import FAILED, load, passes
from training.kata.mutants import compiles, mutants
from training.kata.problems import rebuild

SAMPLE = """\
def f(xs):
    total = 0
    for x in xs:
        if x > 3 and x != 5:
            total += x * 2
    return min(total, 9)"""


@pytest.fixture(scope="module")
def data() -> KataData:
    return make_kata(80, 10, 40, seed=3)


def test_mutants_hold_the_known_kinds_of_mistakes() -> None:
    sources = {mutant.source for mutant in mutants(SAMPLE)}
    assert SAMPLE not in sources
    for old, new in [
        ("x > 3", "x >= 3"),
        ("x > 3", "x > 4"),
        ("and", "or"),
        ("x * 2", "x + 2"),
        ("x * 2", "x"),
        ("+=", "-="),
        ("total = 0", "total = 1"),
        ("min(", "max("),
        ("min(total, 9)", "total"),
        ("        if x > 3 and x != 5:\n            total += x * 2", "        total += x * 2"),
        ("            total += x * 2", "            pass"),
        ("\n    return", "\n        return"),
        ("    total = 0\n    for x in xs:\n", "    for x in xs:\n        total = 0\n"),
    ]:
        assert SAMPLE.replace(old, new, 1) in sources, (old, new)


def test_mutants_of_breaks_and_branches() -> None:
    source = (
        "def f(xs):\n    run = 0\n    for x in xs:\n        if x > 2:\n            run += 1\n"
        "        else:\n            run = 0\n        if run == 3:\n            break\n    return run"
    )
    sources = {mutant.source for mutant in mutants(source)}
    assert source.replace("break", "continue") in sources
    swapped = "        if x > 2:\n            run = 0\n        else:\n            run += 1\n"
    assert any(swapped in mutant for mutant in sources)
    assert any("else" not in mutant for mutant in sources)
    assert not compiles("def f(xs):\n    break")


def test_each_mutant_is_one_edit_of_few_lines() -> None:
    original = SAMPLE.split("\n")
    for mutant in mutants(SAMPLE):
        lines = mutant.source.split("\n")
        common = sum(line in lines for line in original)
        assert common >= len(original) - 3, mutant


def test_endless_loops_and_errors_end_as_failures() -> None:
    started = time.perf_counter()
    assert load("def f(n):\n    while n < 5:\n        n -= 1\n    return n")([1]) == FAILED
    assert load("def f(xs):\n    for x in xs:\n        xs.append(x)\n    return xs")([[1]]) == FAILED
    assert load("def f(xs):\n    return xs[7]")([[1]]) == FAILED
    assert time.perf_counter() - started < 5
    call = load("def f(xs):\n    xs.append(1)\n    return len(xs)")
    argument = [[4]]
    assert [call(argument), call(argument)] == [2, 2]
    assert argument == [[4]]


def test_hidden_tests_kill_mutants(data: KataData) -> None:
    """At least 99 % of the mutants that differ anywhere on a pool drawn with another seed."""
    rows = data.problems["test_unseen"] + data.problems["test_composition"]
    assert len(rows) >= 60
    assert len({row["family"] for row in rows}) == 7
    counts = [kill_rate(row, seed=9, pool_size=300) for row in rows]
    killed, different = (sum(column) for column in zip(*counts, strict=True))
    assert different > 1500
    assert killed / different >= 0.99
    assert all(10 <= len(row["tests"]) <= 20 for row in rows)


def test_kill_rate_sees_weak_tests(data: KataData) -> None:
    """The measure itself bites: with two tests that were not chosen for their kills, many mutants live."""
    rows = [{**row, "tests": row["tests"][-2:]} for row in data.problems["test_unseen"][:15]]
    counts = [kill_rate(row, pool_size=150) for row in rows]
    killed, different = (sum(column) for column in zip(*counts, strict=True))
    assert killed / different < 0.97


def test_wrong_candidates_are_new_and_mostly_wrong(data: KataData) -> None:
    rng = random.Random(2)
    wrong = total = 0
    for row in data.problems["test_unseen"]:
        right = set(rebuild(row).bodies.values())
        found = wrong_candidates(row, rng, 4)
        assert len({code for _, code in found}) == len(found) == 4
        assert not right & {code for _, code in found}
        for _, code in found:
            total += 1
            wrong += not passes(row["code_prefix"] + code, row["tests"])
    assert wrong / total > 0.85


def test_candidates_mix_right_and_wrong_without_a_label(data: KataData) -> None:
    mixed = 0
    rows = data.problems["train"][:30]
    for row in rows:
        found = candidates(row, seed=1, count=6)
        assert found == candidates(row, seed=1, count=6)
        assert len(found) == len({trace["id"] for trace in found}) == 6
        assert {trace["passed"] for trace in found} == {None}
        outcomes = {passes(row["code_prefix"] + trace["code"], row["tests"]) for trace in found}
        assert True in outcomes
        mixed += outcomes == {True, False}
    assert mixed >= 0.9 * len(rows)
