"""What a frame is: where the elements of a problem come from and how its program walks over them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from training.kata.operations import LISTS, RANGES, STRINGS, Operation
from training.kata.render import Parts, loops, one_liner, skipping_loops

NESTED, EARLY_EXIT, TWO_INPUTS, STATE = "nested", "early_exit", "two_inputs", "state"
PLAIN_FAMILIES = (LISTS, STRINGS, RANGES)
HARD_FAMILIES = (NESTED, EARLY_EXIT, TWO_INPUTS, STATE)

Variants = dict[str, "str | None"]
MAYBE, MUST, NEVER = "maybe", "must", "never"


@dataclass(frozen=True)
class Frame(Operation):
    """An operation of role "source" that also holds the signature and the builder.

    `arguments` are (name, input kind) pairs, see `inputs.py`. `filters` and `maps` say whether such a step may,
    must or must never be there; `reductions` names the allowed ones (None: all that fit, empty: the frame has its
    own ending). `maps_named`, if not empty, restricts the maps. `filter_words` leads in the filter's noun phrase.
    """

    family: str = ""
    arguments: tuple[tuple[str, str], ...] = (("xs", "ints"),)
    filters: str = MAYBE
    maps: str = MAYBE
    reductions: tuple[str, ...] | None = None
    maps_named: tuple[str, ...] = ()
    posts: bool = True
    ordered_only: bool = False
    filter_words: str = "keep"
    ending: str = ""
    build: Callable[[Parts], Variants] = lambda parts: {}


UNORDERED = ("sum", "product", "largest", "smallest", "count", "count_above", "subtract_from", "exists")
SIMPLE = ("sum", "product", "list", "largest", "smallest", "count", "fold")

TWO_LISTS = (("xs", "ints"), ("ys", "ints"))


def hard_frame(name: str, family: str, phrase: str, build: Callable[[Parts], Variants], **fields: object) -> Frame:
    element = str(fields.pop("element", "int"))
    domain = fields.pop("domain", LISTS)
    return Frame(
        name,
        "source",
        (str(domain),),
        phrase,
        takes=element,
        gives=element,
        family=family,
        build=build,
        **fields,  # type: ignore[arg-type]
    )


def pair_walk(header: str, x: str, y: str, index: tuple[str, str, str] | None = None) -> Callable[[Parts], Variants]:
    """One loop that gives pairs; `index` spells it with positions."""

    def build(parts: Parts) -> Variants:
        variants: Variants = {
            "loop": loops(parts, [header], x, y),
            "line": one_liner(parts, [header], x, y),
            "skip": skipping_loops(parts, [header], x, y),
        }
        if index is not None:
            variants["index"] = loops(parts, [index[0]], index[1], index[2])
        return variants

    return build
