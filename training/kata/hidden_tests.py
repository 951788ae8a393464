"""Hidden tests: inputs chosen so that every wrong single edit of the program fails at least one of them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from training.kata.execution import FAILED, load, same
from training.kata.inputs import input_pool
from training.kata.mutants import mutants
from training.kata.problems import Kata, build, draw_params, rebuild

Call = Callable[[Sequence[Any]], Any]
Case = dict[str, Any]  # {"args": [...], "expected": ...}

FEWEST, MOST = 10, 20
SIBLINGS = 6


def cases_from_pool(kata: Kata, rng: random.Random, size: int) -> list[Case]:
    """The reference's results on a boundary-aware pool."""
    call = load(kata.code_prefix + kata.reference)
    pool = input_pool(kata.kinds, kata.reference, rng, size)
    cases = [{"args": arguments, "expected": call(arguments)} for arguments in pool]
    if any(case["expected"] is FAILED for case in cases):
        raise RuntimeError(f"the reference of {kata.shape} fails on its own inputs")
    return cases


def diverse(cases: Sequence[Case], count: int, chosen: Sequence[int] = ()) -> list[int]:
    """`chosen` and further indices up to `count`: each time the first case whose result was taken least often.

    So a yes-or-no problem gets as many tests that want yes as tests that want no.
    """
    picked = list(chosen)
    waiting: dict[str, list[int]] = {}
    for index, case in enumerate(cases):
        waiting.setdefault(repr(case["expected"]), []).append(index)
    taken = dict.fromkeys(waiting, 0)
    for index in picked:
        key = repr(cases[index]["expected"])
        waiting[key].remove(index)
        taken[key] += 1
    while len(picked) < count and (open_results := [key for key, indices in waiting.items() if indices]):
        key = min(open_results, key=lambda result: taken[result])
        picked.append(waiting[key].pop(0))
        taken[key] += 1
    return picked


def quick_tests(cases: Sequence[Case]) -> list[Case]:
    """Tests without a look at mutants: for training problems, whose programs are right by construction."""
    half = diverse(cases[: len(cases) // 2], FEWEST // 2)
    return [cases[index] for index in diverse(cases, FEWEST, half)]


def _runnable_mutants(source: str) -> Iterator[Call]:
    for mutant in mutants(source):
        try:
            yield load(mutant.source)
        except SyntaxError:
            continue


def _siblings(kata: Kata, rng: random.Random) -> Iterator[Call]:
    """Problems of the same shape in which one operation has other parameter values."""
    roles = [operation.role for operation in kata.shape.operations if operation.parameters]
    for _ in range(SIBLINGS):
        role = rng.choice(roles)
        sibling = build(kata.shape, {**kata.params, role: draw_params(kata.shape, rng)[role]})
        if sibling.reference != kata.reference:
            yield load(sibling.code_prefix + sibling.reference)


def _first_kill(call: Call, cases: Sequence[Case], order: Sequence[int]) -> int | None:
    for index in order:
        if not same(call(cases[index]["args"]), cases[index]["expected"]):
            return index
    return None


def killing_tests(kata: Kata, rng: random.Random, pool_size: int = 500) -> list[Case]:
    """10 to 20 tests that every mutant of the reference and some problems of the same shape with other parameters
    fail, if they differ from it anywhere on the pool.

    Needed inputs are found mutant by mutant; then a greedy set cover drops those that others make superfluous.
    """
    cases = cases_from_pool(kata, rng, pool_size)
    needed = diverse(cases, 5)
    rest = [index for index in range(len(cases)) if index not in needed]
    killed: list[Call] = []
    for call in itertools.chain(_runnable_mutants(kata.code_prefix + kata.reference), _siblings(kata, rng)):
        index = _first_kill(call, cases, needed)
        if index is None:
            index = _first_kill(call, cases, rest)
            if index is None:
                continue  # equivalent, as far as the pool can tell
            needed.append(index)
            rest.remove(index)
        killed.append(call)
    kills = {
        index: {
            number
            for number, call in enumerate(killed)
            if not same(call(cases[index]["args"]), cases[index]["expected"])
        }
        for index in needed
    }
    cover: list[int] = []
    open_mutants = set(range(len(killed)))
    while open_mutants:
        best = max(needed, key=lambda index: len(kills[index] & open_mutants))
        cover.append(best)
        open_mutants -= kills[best]
    # Where there are few different results, many wrong programs agree by chance: that takes more tests.
    few_results = len({repr(case["expected"]) for case in cases}) <= FEWEST
    count = MOST if few_results else min(MOST, max(FEWEST, len(cover) + 3))
    return [cases[index] for index in diverse(cases, count, cover)]


def kill_rate(
    problem: dict[str, Any], *, seed: int = 1, pool_size: int = 500, every_structure: bool = False
) -> tuple[int, int]:
    """(killed, non-equivalent) single-edit mutants of a problem, judged by a pool of its own.

    A mutant counts as non-equivalent if it differs from the reference on any input of a pool drawn with `seed`,
    which is independent of the one that the tests were chosen from. With `every_structure` the mutants of all the
    teacher's structures are judged, not only those of the reference.
    """
    kata = rebuild(problem)
    cases = cases_from_pool(kata, random.Random(f"judge:{seed}:{problem['id']}"), pool_size)
    tests = problem["tests"]
    killed = different = 0
    for code in kata.bodies.values() if every_structure else [kata.reference]:
        for call in _runnable_mutants(kata.code_prefix + code):
            dead = _first_kill(call, tests, range(len(tests))) is not None
            if dead or _first_kill(call, cases, range(len(cases))) is not None:
                different += 1
                killed += dead
    return killed, different
