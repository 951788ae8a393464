"""HumanEval+ and MBPP+ as problem rows: the inputs of both test lists, as the calls that a program is given.

The files hold JSON, so tuples, sets and complex numbers of MBPP+ must be made again, task by task. Expected
outputs are not in the files: `expected.py` gets them from the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from training import plain_data

Row = dict[str, Any]
Decode = Callable[[list[Any]], list[Any]]


def humaneval_plus_row(source: Row) -> Row:
    """A row of HumanEvalPlus.jsonl as a Problem; `tests` are {"base": calls, "plus": calls, "atol"}."""
    reference = source["prompt"] + source["canonical_solution"]
    return _row(source, "humaneval_plus", list) | {"completion_prefix": source["prompt"], "reference": reference}


def mbpp_plus_row(source: Row) -> Row:
    """A row of MbppPlus.jsonl as a Problem; its prompt is a docstring that ends with one assertion."""
    number = int(source["task_id"].rpartition("/")[2])
    return _row(source, "mbpp_plus", _DECODERS.get(number, list))


def _row(source: Row, name: str, decode: Decode) -> Row:
    return {
        "id": f"{name}/{source['task_id'].rpartition('/')[2]}",
        "prompt": source["prompt"],
        "code_prefix": "",
        "entry_point": source["entry_point"],
        "tests": {
            "base": _calls(source["base_input"], decode),
            "plus": _calls(source["plus_input"], decode),
            "atol": source["atol"],
        },
        "split": "test",
        "family": name,
        "shape": "",
        "reference": source["canonical_solution"].strip("\n") + "\n",
    }


def _calls(inputs: list[list[Any]], decode: Decode) -> list[list[Any]]:
    return [[plain_data.encode(argument) for argument in decode(arguments)] for arguments in inputs]


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _tuples_in(value: Any) -> Any:
    return type(value)(map(_tuple, value)) if isinstance(value, (list, tuple)) else value


def _deep_tuple(value: Any) -> Any:
    return tuple(map(_deep_tuple, value)) if isinstance(value, (list, tuple)) else value


def _every(convert: Callable[[Any], Any]) -> Decode:
    return lambda arguments: [convert(argument) for argument in arguments]


def _at(place: int, convert: Callable[[Any], Any]) -> Decode:
    return lambda arguments: [convert(a) if i == place else a for i, a in enumerate(arguments)]


def _sets_or_dicts(items: list[Any]) -> list[Any]:
    """Mbpp/115: JSON has lists for sets, and an empty one stands for an empty dict."""
    return [(set(item) if item else {}) if isinstance(item, list) else item for item in items]


def _decoders(table: Iterable[tuple[Decode, str]]) -> dict[int, Decode]:
    return {int(number): decode for decode, numbers in table for number in numbers.split()}


_DECODERS = _decoders(
    [
        (_every(_tuple), "2 116 132 143 222 261 273 394 399 421 424 429 470 560 579 596 616 630 726 740 744 809"),
        (_every(_tuples_in), "63 64 70 94 120 237 272 299 400 409 417 438 473 614 780"),
        (_at(0, _tuples_in), "75 413 444 753"),
        (_at(0, _tuple), "250 307 405 446 617 720 763 808"),
        (_at(1, _tuple), "106 750"),
        (_every(lambda argument: _tuple(_tuples_in(argument))), "259 278 401 445"),
        (_every(_deep_tuple), "580 615 791"),
        (_at(0, lambda table: {key: _tuple(value) for key, value in table.items()}), "722"),
        (_every(_sets_or_dicts), "115"),
        (lambda arguments: [float(arguments[0]), complex(arguments[1])], "124"),
        (_every(complex), "252"),
    ]
)
