"""Loads a benchmark by name: from files, or through the packages that fetch them where there is a network."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from training.benchmarks import humaneval, mbpp, plus
from training.jsonl import read_jsonl
from training.kata import make_kata

Row = dict[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """Problem rows of one set. Each row also carries "set", "version" and "task_id", the id at its source."""

    name: str
    version: str
    problems: list[Row]
    origin: str


@dataclass(frozen=True)
class _Source:
    """Where a set comes from: `file` in a data folder; `package` and `fetch`, the way over the network."""

    version: str
    size: int
    file: str
    row: Callable[[Row], Row]
    package: str
    fetch: Callable[[], Iterable[Row]]
    keep: Callable[[Row], bool] = lambda source: True


def load_benchmark(name: str, path: str | Path | None = None) -> Benchmark:
    """The problems of "mbpp" (test split), "mbpp_all", "mbpp_sanitized", "mbpp_plus", "humaneval",
    "humaneval_plus" or "kata".

    `path` is a folder laid out as mbpp/mbpp.jsonl, mbpp/sanitized-mbpp.json, mbppplus/MbppPlus.jsonl.gz,
    humaneval/HumanEval.jsonl.gz, humanevalplus/HumanEvalPlus.jsonl.gz, or one such file. Without it MBPP and
    HumanEval come through the package `datasets`, the plus sets through `evalplus`. Kata problems are made here.

    Raises ValueError for an unknown name and for a file with other rows, FileNotFoundError for a missing file,
    ModuleNotFoundError, with what to install, for a missing package.
    """
    if name == "kata":
        return _kata()
    if name not in _SOURCES:
        raise ValueError(f"name must be one of {', '.join([*_SOURCES, 'kata'])}, got {name!r}")
    source = _SOURCES[name]
    if path is None:
        rows, origin = _fetched(name, source), source.package
    else:
        file = file_of(name, path)
        rows, origin = _read(file), str(file)
    try:
        problems = [
            source.row(row) | {"set": name, "version": source.version, "task_id": row["task_id"]}
            for row in rows
            if source.keep(row)
        ]
    except KeyError as error:
        raise ValueError(f"{name}: a row of {origin} has no {error}; is this the right file?") from None
    if len(problems) != source.size:
        raise ValueError(f"{name} {source.version} has {source.size} problems, {origin} holds {len(problems)}")
    return Benchmark(name, source.version, problems, origin)


def file_of(name: str, path: str | Path) -> Path:
    """The file of a set: `path` itself, or its place in the folder `path`. Raises FileNotFoundError."""
    file = Path(path) / _SOURCES[name].file if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"path: {name} wants the file {file}, which is not there")
    return file


def _read(file: Path) -> Iterable[Row]:
    return json.loads(file.read_text()) if file.suffix == ".json" else read_jsonl(file)


def _fetched(name: str, source: _Source) -> Iterable[Row]:
    if importlib.util.find_spec(source.package) is None:
        raise ModuleNotFoundError(
            f"{name} without a path comes through the package {source.package!r}, which is not installed: "
            f"`pip install {source.package}`, or give path, a folder that holds {source.file}"
        )
    return source.fetch()


def _hub(repository: str, configuration: str, splits: str) -> Callable[[], Iterable[Row]]:
    def fetch() -> Iterable[Row]:
        import datasets

        for split in splits.split():
            yield from map(dict, datasets.load_dataset(repository, configuration, split=split))

    return fetch


def _fetch_humaneval_plus() -> Iterable[Row]:
    from evalplus.data import get_human_eval_plus

    return get_human_eval_plus().values()


def _fetch_mbpp_plus() -> Iterable[Row]:
    from evalplus.data import get_mbpp_plus  # its inputs are decoded already; doing so again changes nothing

    return get_mbpp_plus().values()


def _kata() -> Benchmark:
    """Both test splits of the default recipe: they depend on the seed alone."""
    problems = make_kata(300, 0, 300, seed=0).problems
    rows = [
        row | {"set": "kata", "version": "seed 0", "task_id": row["id"]}
        for row in problems["test_unseen"] + problems["test_composition"]
    ]
    return Benchmark("kata", "seed 0", rows, "training.kata")


_EVERY_SPLIT = "prompt test validation train"
_MBPP_ALL = _Source(
    "2021",
    974,
    "mbpp/mbpp.jsonl",
    mbpp.problem_row,
    "datasets",
    _hub("google-research-datasets/mbpp", "full", _EVERY_SPLIT),
)
_SOURCES = {
    "mbpp": replace(_MBPP_ALL, size=500, keep=lambda source: mbpp.split_of(source["task_id"]) == "test"),
    "mbpp_all": _MBPP_ALL,
    "mbpp_sanitized": _Source(
        "2021, sanitized",
        427,
        "mbpp/sanitized-mbpp.json",
        mbpp.sanitized_row,
        "datasets",
        _hub("google-research-datasets/mbpp", "sanitized", _EVERY_SPLIT),
    ),
    "mbpp_plus": _Source("v0.2.0", 378, "mbppplus/MbppPlus.jsonl.gz", plus.mbpp_plus_row, "evalplus", _fetch_mbpp_plus),
    "humaneval": _Source(
        "2021",
        164,
        "humaneval/HumanEval.jsonl.gz",
        humaneval.problem_row,
        "datasets",
        _hub("openai/openai_humaneval", "openai_humaneval", "test"),
    ),
    "humaneval_plus": _Source(
        "v0.1.10",
        164,
        "humanevalplus/HumanEvalPlus.jsonl.gz",
        plus.humaneval_plus_row,
        "evalplus",
        _fetch_humaneval_plus,
    ),
}
NAMES = (*_SOURCES, "kata")
