"""Samples files: EvalPlus's, human-eval's and our own JSON lines, read as a stream."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from training.completion import extract_program
from training.extraction import EXTRACTOR
from training.jsonl import read_jsonl

Row = dict[str, Any]
Kind = Literal["solution", "completion", "output"]

# Our own rows hold the raw answer and, for other tools, the program that was taken out of it: the answer counts.
KINDS: tuple[Kind, ...] = ("output", "solution", "completion")


@dataclass(frozen=True)
class Sample:
    """One answer to one problem.

    kind: "solution", a whole program; "completion", what follows the problem's prompt; "output", a raw answer that a
    program is yet to be taken from. index: counts the samples of a problem from 0. ended: false where the limit on
    new tokens cut it.
    """

    task_id: str
    index: int
    text: str
    kind: Kind
    ended: bool = True


@dataclass
class Survey:
    """What a samples file holds: samples by problem, kinds of text."""

    samples: Counter[str] = field(default_factory=Counter)
    kinds: set[Kind] = field(default_factory=set)


def read_samples(path: Path) -> Iterator[Sample]:
    """The samples of a `.jsonl` or `.jsonl.gz` file, in its order.

    A row has "task_id" and one of "solution", "completion", "output" (text). "sample" is its index among those of the
    problem; without it they are counted as they come. Only a count a problem is kept in memory.

    Raises ValueError for a row without these, or for an index that comes twice.
    """
    counts: Counter[str] = Counter()
    seen: dict[str, int] = {}
    for number, row in enumerate(read_jsonl(path), 1):
        kind = next((kind for kind in KINDS if kind in row), None)
        if "task_id" not in row or kind is None or not isinstance(row[kind], str):
            raise ValueError(
                f"{path}, row {number}: wants task_id and a text under solution, completion or output, "
                f"got {', '.join(f'{name} ({type(value).__name__})' for name, value in row.items())}"
            )
        name = str(row["task_id"])
        index = row.get("sample", counts[name])
        if type(index) is not int or index < 0:
            raise ValueError(f"{path}, row {number}: sample: got {index!r}, wants an integer >= 0")
        # Indices as the bits of an integer: a set of them would be the largest thing in memory.
        if seen.get(name, 0) >> index & 1:
            raise ValueError(f"{path}, row {number}: sample {index} of {name} is there twice")
        seen[name] = seen.get(name, 0) | 1 << index
        counts[name] += 1
        yield Sample(name, index, row[kind], kind, bool(row.get("ended", True)))


def survey(path: Path, problems: Mapping[str, Row]) -> Survey:
    """Reads the file once, so that what is wrong with it is known before anything runs.

    Raises ValueError for a sample of an unknown problem, and for what `read_samples` refuses.
    """
    found = Survey()
    for sample in read_samples(path):
        problem = find_problem(problems, sample.task_id)
        found.samples[problem["id"]] += 1
        found.kinds.add(sample.kind)
    if not found.samples:
        raise ValueError(f"{path} holds no sample")
    return found


def by_task_id(problems: Sequence[Row]) -> dict[str, Row]:
    """Problems by every name that samples files give them: "HumanEval/0", "Mbpp/2", 2."""
    names: dict[str, Row] = {}
    for problem in problems:
        source = str(problem.get("task_id", problem["id"])).lower()
        for name in (problem["id"].lower(), source, *([f"mbpp/{source}"] if source.isdigit() else [])):
            names[name] = problem
    return names


def find_problem(problems: Mapping[str, Row], task_id: str) -> Row:
    """The problem of a sample, from `by_task_id`; ValueError where the set has none of that name."""
    problem = problems.get(task_id.lower())
    if problem is None:
        known = next(iter(problems.values()))
        raise ValueError(f"task_id {task_id!r} is not in {known.get('set', 'this set')}; it has {known['id']!r}, ...")
    return problem


def program_of(sample: Sample, problem: Row, *, extract: bool) -> tuple[str, bool]:
    """The whole program of a sample, and whether the answer was cut before it was complete.

    A raw output always goes through the extractor, other kinds with `extract`; else a solution is the program as it
    is and a completion is put behind the prompt.
    """
    prefix = prefix_of(problem)
    if extract or sample.kind == "output":
        found = extract_program(sample.text, entry_point=problem["entry_point"], prefix=prefix)
        # A base model goes on after its program until the limit; that its last line is cut says nothing then.
        last = sample.text.rstrip().rpartition("\n")[2].strip()
        within = found.status == "no_code" or found.code.rstrip().endswith(last)
        return found.code, found.status == "truncated" or (not sample.ended and within)
    text = prefix + sample.text if sample.kind == "completion" and sample.text.strip() else sample.text
    return text, not sample.ended


def prefix_of(problem: Row) -> str:
    """The code that a bare completion continues: HumanEval's prompt, kata's signature, nothing on MBPP."""
    return problem.get("completion_prefix") or problem["code_prefix"]


def extractor_of(kinds: Iterable[Kind], *, extract: bool) -> str:
    """The extractor's id for a file; ValueError where some rows need one and others do not."""
    used = {EXTRACTOR if extract or kind == "output" else "none" for kind in kinds}
    if len(used) > 1:
        raise ValueError("samples: some rows are raw outputs and others whole programs; use --extract for all of them")
    return used.pop()
