"""The kata data set: problems in four disjoint splits, and the scripted teacher's traces."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from functools import cache
from typing import Any

from training.kata.execution import load, passes
from training.kata.frames import FRAMES, HARD_FAMILIES
from training.kata.hidden_tests import Case, cases_from_pool, killing_tests, quick_tests
from training.kata.inputs import input_pool
from training.kata.mutants import STRUCTURAL, compiles, mutants
from training.kata.operations import LETTERS, LISTS, RANGES, STRINGS
from training.kata.problems import (
    ENTRY_POINT,
    Kata,
    Shape,
    build,
    choose_structure,
    draw_params,
    filters_and_maps,
    posts_of,
    reasoning,
    rebuild,
    reductions_of,
    sensible,
)

TEACHER = "kata"
FAMILY_SHARES = {LISTS: 0.28, STRINGS: 0.2, RANGES: 0.2, **dict.fromkeys(HARD_FAMILIES, 0.08)}
FILTER_SHARE, MAP_SHARE, POST_SHARE = 0.75, 0.7, 0.2
HELD_OUT_SHARE = 0.1  # of the pairs of operations
FEWEST_SETTINGS = 6  # parameter settings that a shape needs to give a problem to two splits

Row = dict[str, Any]


@dataclass(frozen=True)
class KataData:
    """`problems` by split; `traces` for the training and the validation problems."""

    problems: dict[str, list[Row]]
    traces: list[Row]


def is_held_out(shape: Shape, seed: int = 0) -> bool:
    """Whether the shape holds a pair of operations that training never combines."""
    return any(_pair_hash(seed, *pair) < HELD_OUT_SHARE for pair in shape.pairs())


@cache
def _pair_hash(seed: int, first: str, second: str) -> float:
    digest = hashlib.blake2b(f"{seed}:{first}:{second}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") / 2**32


def draw_shape(rng: random.Random) -> Shape:
    """A random shape: family, frame, then step by step."""
    families = list(FAMILY_SHARES)
    while True:
        family = rng.choices(families, weights=list(FAMILY_SHARES.values()))[0]
        frame = rng.choice([frame for frame in FRAMES.values() if frame.family == family])
        filters, maps = filters_and_maps(frame)
        filter_name = _draw_step(filters, FILTER_SHARE, rng)
        map_name = _draw_step(maps, MAP_SHARE, rng)
        reductions = reductions_of(frame, filter_name, map_name)
        if not reductions:
            continue
        reduce_name = rng.choice(reductions)
        post_name = _draw_step(posts_of(frame, reduce_name), POST_SHARE, rng)
        shape = Shape(frame.name, filter_name, map_name, reduce_name, post_name)
        if sensible(shape):
            return shape


def _draw_step(names: list[str], share: float, rng: random.Random) -> str:
    real = [name for name in names if name]
    if not real or ("" in names and rng.random() >= share):
        return ""
    return rng.choice(real)


@cache
def _probes(kinds: tuple[str, ...]) -> list[list[Any]]:
    constants = " ".join(map(str, range(10))) + "".join(f' "{letter}"' for letter in LETTERS)
    return input_pool(kinds, constants, random.Random("probes"), 40)


def fingerprint(kata: Kata) -> str:
    """What the program does on fixed inputs: equal for programs with the same meaning."""
    call = load(kata.code_prefix + kata.reference)
    results = repr([call(arguments) for arguments in _probes(kata.kinds)])
    return hashlib.blake2b(f"{kata.kinds}{results}".encode(), digest_size=16).hexdigest()


def _is_pointless(kata: Kata, cases: list[Case]) -> bool:
    """Whether the result hardly varies, or a step of the sentence changes nothing."""
    results = [repr(case["expected"]) for case in cases]
    if max(results.count(result) for result in set(results)) > 0.7 * len(results):
        return True
    shape = kata.shape
    for role in ("filter", "map", "post"):
        if not getattr(shape, role):
            continue
        steps = {name: getattr(shape, name) for name in ("filter", "map", "reduce", "post")}
        try:
            simpler = build(Shape(shape.frame, **{**steps, role: ""}), kata.params)
            call = load(simpler.code_prefix + simpler.reference)
        except SyntaxError:
            continue  # the frame cannot do without this step
        if all(repr(call(case["args"])) == result for case, result in zip(cases, results, strict=True)):
            return True
    return False


class _Maker:
    """Draws problems and remembers what has been used, so that no problem is in two splits."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.sentences: set[str] = set()
        self.codes: set[str] = set()
        self.meanings: set[str] = set()
        self.settings: dict[Shape, int] = {}

    def problem(self, shape: Shape, split: str, number: int, tries: int = 8) -> Row | None:
        """A new problem of the shape; None if none is found."""
        rng = random.Random(f"{self.seed}:{split}:{number}")
        for _ in range(tries):
            kata = build(shape, draw_params(shape, rng))
            if kata.prompt in self.sentences:
                continue
            code = kata.code_prefix + kata.reference
            meaning = fingerprint(kata)
            if code in self.codes or meaning in self.meanings:
                continue
            cases = cases_from_pool(kata, rng, 32)
            if _is_pointless(kata, cases):
                continue
            self.sentences.add(kata.prompt)
            self.codes.add(code)
            self.meanings.add(meaning)
            tests = quick_tests(cases) if split == "train" else killing_tests(kata, rng)
            return {
                "id": f"kata-{split}-{number:05d}",
                "prompt": kata.prompt,
                "code_prefix": kata.code_prefix,
                "entry_point": ENTRY_POINT,
                "tests": tests,
                "split": split,
                "family": shape.family,
                "shape": str(shape),
                "reference": kata.reference,
                "params": kata.params,
            }
        return None

    def twin_exists(self, shape: Shape) -> bool:
        return shape.count_problems() >= FEWEST_SETTINGS


def make_kata(
    num_train: int, num_validation: int, num_test: int, seed: int = 0, traces_per_problem: int = 1
) -> KataData:
    """Problems of the splits "train", "validation", "test_unseen" and "test_composition", and teacher traces.

    `seed` decides problems and splits; the same seed gives the same test problems whatever the other numbers are.
    Validation and "test_unseen" take problems that training does not have, of shapes that it has; the shapes of
    "test_composition" hold a pair of operations that training never combines. No two problems share their
    sentence, their reference or their results on a fixed set of inputs.

    Raises ValueError if `num_train` is less than `num_test + num_validation` (each of their shapes needs a training
    problem) or if `traces_per_problem` is less than 1.
    """
    if num_train < num_test + num_validation:
        raise ValueError(
            f"num_train: got {num_train}, want at least num_test + num_validation = {num_test + num_validation}"
        )
    if traces_per_problem < 1:
        raise ValueError(f"traces_per_problem: got {traces_per_problem}, want at least 1")
    maker = _Maker(seed)
    problems: dict[str, list[Row]] = {"train": [], "validation": [], "test_unseen": [], "test_composition": []}
    anchors: list[Row] = []  # training problems that give the unseen problems' shapes to training
    for split, held_out, wanted in (
        ("test_unseen", False, num_test),
        ("test_composition", True, num_test),
        ("validation", False, num_validation),
    ):
        rng, number = random.Random(f"{seed}:shapes:{split}"), 0
        while len(problems[split]) < wanted:
            shape = draw_shape(rng)
            number += 1
            if is_held_out(shape, seed) != held_out or (not held_out and not maker.twin_exists(shape)):
                continue
            row = maker.problem(shape, split, number)
            if row is None:
                continue
            if held_out:
                problems[split].append(row)
            elif (anchor := maker.problem(shape, "train", len(anchors), 20)) is not None:
                problems[split].append(row)
                anchors.append(anchor)
    rng, number = random.Random(f"{seed}:shapes:train"), len(anchors)
    problems["train"] = anchors
    while len(problems["train"]) < num_train:
        shape = draw_shape(rng)
        number += 1
        if not is_held_out(shape, seed) and (row := maker.problem(shape, "train", number)) is not None:
            problems["train"].append(row)
    traces = [
        teacher_trace(row, seed * 1000 + copy)
        for row in [*problems["train"], *problems["validation"]]
        for copy in range(traces_per_problem)
    ]
    return KataData(problems, traces)


def _trace(problem: Row, name: str, structure: str, code: str, teacher: str, passed: bool | None) -> Row:
    return {
        "id": f"{problem['id']}-{name}",
        "problem_id": problem["id"],
        "prompt": problem["prompt"],
        "code_prefix": problem["code_prefix"],
        "reasoning": reasoning(structure, code),
        "code": code,
        "teacher": teacher,
        "passed": passed,
    }


def teacher_trace(problem: Row, seed: int) -> Row:
    """The scripted teacher's trace, in a structure chosen by `seed`; `passed` comes from running the tests."""
    kata = rebuild(problem)
    structure = choose_structure(kata, random.Random(f"trace:{seed}:{problem['id']}"))
    code = kata.bodies[structure]
    passed = passes(kata.code_prefix + code, problem["tests"])
    return _trace(problem, f"t{seed}", structure, code, TEACHER, passed)


def wrong_candidates(problem: Row, rng: random.Random, count: int) -> list[tuple[str, str]]:
    """(structure, body) of up to `count` different mutants of teacher code: mostly changes of the tree, unlabelled.

    A few of them can be right all the same; running the tests decides.
    """
    kata = rebuild(problem)
    right = set(kata.bodies.values())
    found: dict[str, str] = {}
    for _ in range(8 * count):
        if len(found) == count:
            break
        structure = choose_structure(kata, rng)
        source = kata.code_prefix + kata.bodies[structure]
        for _ in range(1 if rng.random() < 0.7 else 2):
            options = mutants(source)
            if not options:
                break
            weights = [3 if mutant.kind in STRUCTURAL else 1 for mutant in options]
            source = rng.choices(options, weights)[0].source
            if not compiles(source):
                break
        code = source.removeprefix(kata.code_prefix)
        if code not in right and compiles(source):
            found.setdefault(code, structure)
    return [(structure, code) for code, structure in found.items()]


def candidates(problem: Row, seed: int, count: int) -> list[Row]:
    """`count` or fewer traces with `passed` unknown: the teacher's structures and, for the larger half, mutants."""
    rng = random.Random(f"candidates:{seed}:{problem['id']}")
    kata = rebuild(problem)
    names = list(kata.bodies)
    rng.shuffle(names)
    right = [(name, kata.bodies[name]) for name in names[: max(1, count // 2)]]
    mixed = right + wrong_candidates(problem, rng, count - len(right))
    rng.shuffle(mixed)
    return [
        _trace(problem, f"c{seed}-{number}", structure, code, f"{TEACHER}-candidate", None)
        for number, (structure, code) in enumerate(mixed)
    ]
