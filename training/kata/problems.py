"""Shapes (which operations), problems (shapes with parameter values) and what a teacher writes for them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from training.kata.frames import FRAMES, PLAIN_FAMILIES, Frame
from training.kata.operations import STEPS, Operation
from training.kata.render import Parts, Setting, explain, fill

OPERATIONS: dict[str, Operation] = {**FRAMES, **STEPS}
ENTRY_POINT = "f"

# How the teacher's structures are named in the first words of the reasoning, and how often each is chosen.
STRUCTURES: dict[str, tuple[str, int]] = {
    "loop": ("loop", 4),
    "line": ("one line", 3),
    "skip": ("loop with skip", 1),
    "while": ("while loop", 1),
    "steps": ("two steps", 1),
    "index": ("index loop", 1),
    "return": ("loop with return", 1),
    "compare": ("loop with compare", 1),
}


@dataclass(frozen=True)
class Shape:
    """Operation names by role; an empty name means that the step is absent."""

    frame: str
    filter: str = ""
    map: str = ""
    reduce: str = ""
    post: str = ""

    def __str__(self) -> str:
        steps = (self.filter, self.map, self.reduce, self.post)
        return "|".join([self.frame, *(step or "-" for step in steps)])

    @classmethod
    def parse(cls, text: str) -> Shape:
        """The inverse of `str`."""
        frame, *steps = text.split("|")
        return cls(frame, *("" if step == "-" else step for step in steps))

    @property
    def family(self) -> str:
        return FRAMES[self.frame].family

    @property
    def operations(self) -> list[Operation]:
        """The operations that are there, frame first."""
        names = (self.frame, self.filter, self.map, self.reduce, self.post)
        return [OPERATIONS[name] for name in names if name]

    def pairs(self) -> list[tuple[str, str]]:
        """Combinations that a split may hold out: neighbouring steps, in a harder family also frame and first step."""
        steps = [name for name in (self.filter, self.map, self.reduce) if name]
        found = list(itertools.pairwise(steps))
        if self.family not in PLAIN_FAMILIES and steps:
            found.append((self.frame, steps[0]))
        return found

    def count_problems(self) -> int:
        """Number of parameter settings."""
        total = 1
        for operation in self.operations:
            total *= operation.count_parameter_values()
        return total


def _steps(role: str, takes: str) -> list[str]:
    return [op.name for op in STEPS.values() if op.role == role and op.takes in (takes, "any")]


def filters_and_maps(frame: Frame) -> tuple[list[str], list[str]]:
    filters = [] if frame.filters == "never" else _steps("filter", frame.takes)
    maps = [] if frame.maps == "never" else list(frame.maps_named) or _steps("map", frame.takes)
    return filters + ([] if frame.filters == "must" else [""]), maps + ([] if frame.maps == "must" else [""])


def reductions_of(frame: Frame, filter_name: str, map_name: str) -> list[str]:
    if frame.reductions == ():
        return [""]
    if map_name:
        value = STEPS[map_name].gives
    else:
        value = {"char": "text", "word": "text"}.get(frame.takes, frame.takes)
    found = []
    for name in _steps("reduce", value):
        fold = STEPS[name].fold
        assert fold is not None
        if frame.reductions is not None and name not in frame.reductions:
            continue
        if frame.ordered_only and not fold.ordered:
            continue
        # Counting does not look at values, so a map in front of it would do nothing; without a filter
        # it would be the number of elements.
        if name in ("count", "exists") and (map_name or not (filter_name or frame.filters == "never")):
            continue
        if value == "pair" and name not in ("count", "exists"):
            continue
        found.append(name)
    return found


def posts_of(frame: Frame, reduce_name: str) -> list[str]:
    reduction = STEPS.get(reduce_name)
    if not frame.posts or reduction is None or reduction.fold is None or not reduction.fold.result:
        return [""]
    found = [""]
    for name in _steps("post", reduction.gives):
        domains = STEPS[name].domains
        if frame.domains[0] in domains:
            found.append(name)
    return found


def sensible(shape: Shape) -> bool:
    """Whether a shape is worth a problem: something is done, there is a parameter, the sentence is not too long."""
    frame = FRAMES[shape.frame]
    steps = [name for name in (shape.filter, shape.map) if name]
    if not steps and frame.reductions != ():
        return False
    # One finishing step and a source that is more than "all of it" together make long, tiring sentences.
    if shape.post and frame.parameters and shape.filter and shape.map:
        return False
    parameters = sum(len(operation.parameters) for operation in shape.operations)
    return 1 <= parameters <= 5


@lru_cache(maxsize=1)
def all_shapes() -> tuple[Shape, ...]:
    """Every shape of the grammar, in a fixed order."""
    return tuple(_enumerate())


def _enumerate() -> Iterator[Shape]:
    for frame in FRAMES.values():
        filters, maps = filters_and_maps(frame)
        for filter_name in filters:
            for map_name in maps:
                for reduce_name in reductions_of(frame, filter_name, map_name):
                    for post_name in posts_of(frame, reduce_name):
                        shape = Shape(frame.name, filter_name, map_name, reduce_name, post_name)
                        if sensible(shape):
                            yield shape


def count_shapes() -> int:
    """Number of distinct shapes."""
    return len(all_shapes())


@dataclass(frozen=True)
class Kata:
    """A problem before it has tests: a shape with parameter values, its sentence and its bodies."""

    shape: Shape
    params: dict[str, list[int | str]]
    sentence: str
    signature: str
    kinds: tuple[str, ...]
    bodies: dict[str, str]  # structure name -> body

    @property
    def prompt(self) -> str:
        return f"{self.sentence}\n{self.signature}"

    @property
    def code_prefix(self) -> str:
        return self.signature + "\n"

    @property
    def reference(self) -> str:
        return next(iter(self.bodies.values()))


def draw_params(shape: Shape, rng: random.Random) -> dict[str, list[int | str]]:
    """Parameter values for each operation of the shape, by role."""
    return {operation.role: operation.draw(rng) for operation in shape.operations}


def build(shape: Shape, params: dict[str, list[Any]]) -> Kata:
    """The problem of a shape with the given parameter values.

    Raises KeyError for an operation that does not exist.
    """
    frame = FRAMES[shape.frame]
    a, b = [*params["source"], 0, 0][:2]

    def setting(name: str, role: str) -> Setting | None:
        return (STEPS[name], tuple(params[role])) if name else None

    parts = Parts(
        a,
        b,
        setting(shape.filter, "filter"),
        setting(shape.map, "map"),
        setting(shape.reduce, "reduce"),
        setting(shape.post, "post"),
    )
    said = [fill(frame.phrase, params["source"])]
    for step in (parts.filter, parts.map, parts.reduce):
        if step is not None:
            words = fill(step[0].phrase, step[1], x="x", y="y")
            said.append(f"{frame.filter_words} {words}" if step[0].role == "filter" else words)
    if frame.ending:
        said.append(fill(frame.ending, params["source"]))
    sentence = ", ".join(said)
    if parts.post is not None:
        sentence += " " + fill(parts.post[0].phrase, parts.post[1])
    variants = frame.build(parts)
    bodies = {name: code for name in STRUCTURES if (code := variants.get(name)) is not None}
    names = ", ".join(name for name, _ in frame.arguments)
    kinds = tuple(kind for _, kind in frame.arguments)
    return Kata(shape, params, sentence + ".", f"def {ENTRY_POINT}({names}):", kinds, bodies)


def rebuild(row: dict[str, Any]) -> Kata:
    """The problem behind a row of `make_kata`, from its shape and parameters."""
    return build(Shape.parse(row["shape"]), row["params"])


def choose_structure(kata: Kata, rng: random.Random) -> str:
    names = list(kata.bodies)
    return rng.choices(names, weights=[STRUCTURES[name][1] for name in names])[0]


def reasoning(structure: str, code: str) -> str:
    """What the teacher thinks before it writes a body in a structure."""
    return explain(STRUCTURES[structure][0], code)
