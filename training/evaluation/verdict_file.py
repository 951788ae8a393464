"""Grades a samples file into a verdict file that can be killed at any moment and goes on where it was.

Verdicts are appended in the order of the samples, so the verdict file is always a beginning of the samples file: what
is done is known by its length alone, and memory does not grow with the samples. Every row is one write; a last line
that was cut is dropped. Rows are synced to the disk every `SYNC_EVERY` rows and at the end: a kill loses none that was
written, a power cut at most those since the last sync, which are graded again.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from structloss import metrics
from training.benchmarks import Benchmark, Grade, Grader
from training.config import ConfigError
from training.evaluation.folder import held_folder
from training.evaluation.samples import (
    Sample,
    by_task_id,
    extractor_of,
    find_problem,
    program_of,
    read_samples,
    survey,
)
from training.evaluation.summary import STRUCTURE, Tally, problems_hash
from training.jsonl import JsonlAppender, read_jsonl
from training.progress import Progress
from training.runs import read_json, write_json
from training.sandbox import Sandbox

Row = dict[str, Any]

SYNC_EVERY = 256
# Longer programs have no structure metrics: the time of an exact tree edit distance grows faster than its trees.
LONGEST_COMPARED = 10_000
# So many faults of the sandbox in a row are the machine's, not the programs'.
FAULTS_IN_A_ROW = 8


@dataclass(frozen=True)
class Limits:
    """How programs run. Times as in `Grader`; everything here stands beside the numbers."""

    workers: int = 2
    memory_mb: int = 4096
    time_limit_s: float = 4.0
    unsafe: bool = False
    bubblewrap: bool = False


def grade_file(
    path: Path,
    benchmark: Benchmark,
    out: Path,
    *,
    extract: bool = False,
    partial: bool = False,
    structure: bool = True,
    limits: Limits | None = None,
    cache: Path | None = None,
    generation: Row | None = None,
) -> Row:
    """Grade the samples at `path` into the folder `out` and return the results, which land in `results.json` there.

    extract: take programs out of solutions and completions too (raw outputs always go through the extractor).
    partial: allow problems without a sample; they are left out of the numbers. structure: syntax match, data-flow
    match and TSED against the reference. generation: prompt, temperature and what else is known of the samples.

    Raises ConfigError where `out` holds verdicts on other samples or under other settings, or where problems have no
    sample; ValueError for a samples file with wrong rows; RuntimeError if the sandbox fails again and again.
    """
    limits = limits or Limits()
    problems = by_task_id(benchmark.problems)
    found = survey(path, problems)
    missing = [problem["id"] for problem in benchmark.problems if problem["id"] not in found.samples]
    if missing and not partial:
        raise ConfigError(
            f"{path}: {len(missing)} of {len(benchmark.problems)} problems have no sample ({', '.join(missing[:3])}, "
            "...); --partial grades what is there"
        )
    settings: Row = {
        "set": benchmark.name,
        "version": benchmark.version,
        "problems_sha256": problems_hash(benchmark.problems),
        "prompt": None,
        "temperature": None,
        "max_new_tokens": None,
        **(generation or {}),
        "extractor": extractor_of(found.kinds, extract=extract),
        "structure": structure,
        "time_limit_s": limits.time_limit_s,
        "memory_mb": limits.memory_mb,
        "unsafe": limits.unsafe,
        "bubblewrap": limits.bubblewrap,
    }
    with held_folder(out, "settings.json", settings), JsonlAppender(out / "verdicts.jsonl") as appender:
        done = _check_beginning(path, out / "verdicts.jsonl", problems)
        total = found.samples.total()
        if done < total:
            with Sandbox(
                workers=limits.workers,
                memory_mb=limits.memory_mb,
                packages=("numpy",),
                bubblewrap=limits.bubblewrap,
                unsafe=limits.unsafe,
            ) as sandbox:
                _same_isolation(out / "isolation.json", sandbox.isolation)
                grader = Grader(sandbox, cache=cache, time_limit_s=limits.time_limit_s)
                rest = islice(read_samples(path), done, None)
                with Progress(f"grade {benchmark.name}", total - done, unit="sample") as progress:
                    for row in _held_faults(_rows(rest, problems, grader, extract=extract, structure=structure)):
                        appender.append(row)
                        done += 1
                        if done % SYNC_EVERY == 0:
                            appender.sync()
                        progress.update(1)
        appender.sync()
        tally = Tally(read_jsonl(out / "verdicts.jsonl"))
        results = settings | {"isolation": read_json(out / "isolation.json")} | tally.summary()
        results |= {"problems_without_samples": len(missing), "samples_file": str(path)}
        write_json(out / "results.json", results)
    return results


def _same_isolation(path: Path, isolation: Row) -> None:
    """All verdicts of a file come from behind the same walls."""
    if path.is_file() and read_json(path) != isolation:
        raise ConfigError(
            f"{path.parent} was graded behind other walls ({read_json(path)}) than hold now ({isolation})"
        )
    write_json(path, isolation)


def _check_beginning(path: Path, verdicts: Path, problems: dict[str, Row]) -> int:
    """How many samples have a verdict; ConfigError where a verdict is not on the sample in its place."""
    done = 0
    samples = read_samples(path)
    for row in read_jsonl(verdicts):
        sample = next(samples, None)
        if sample is None or key_of(sample, problems) != [row["task_id"], row["sample"], row["digest"]]:
            raise ConfigError(
                f"{verdicts}, row {done + 1}: the verdict on sample {row['sample']} of {row['task_id']} is not on what "
                f"{path} holds there; the file has changed: give another folder with --out"
            )
        done += 1
    return done


def key_of(sample: Sample, problems: dict[str, Row]) -> list[Any]:
    """What tells a sample from every other: its problem, its index, a digest of its text."""
    digest = hashlib.sha256(f"{sample.kind}{sample.ended}{sample.text}".encode(errors="surrogatepass")).hexdigest()
    return [find_problem(problems, sample.task_id)["id"], sample.index, digest[:16]]


def _rows(
    samples: Iterator[Sample], problems: dict[str, Row], grader: Grader, *, extract: bool, structure: bool
) -> Iterator[Row]:
    """A row with its verdict for each sample, in order."""
    waiting: deque[tuple[list[Any], Row, str, bool]] = deque()

    def programs() -> Iterator[tuple[Row, str]]:
        for sample in samples:
            problem = find_problem(problems, sample.task_id)
            code, cut = program_of(sample, problem, extract=extract)
            waiting.append((key_of(sample, problems), problem, code, cut))
            # The program is whole: what a problem would put in front of it is in it.
            yield problem | {"code_prefix": ""}, code

    for grade in grader.grade(programs()):
        key, problem, code, cut = waiting.popleft()
        row = dict(zip(("task_id", "sample", "digest"), key, strict=True)) | _verdict(grade, cut=cut)
        if structure:
            row |= _structure(code, problem)
        yield row


def _verdict(grade: Grade, *, cut: bool) -> Row:
    def told(status: str) -> str:
        return "truncated" if cut and status not in ("passed", "sandbox_error") else status

    verdict = grade.verdict
    row: Row = {"status": told(verdict.status if grade.plus is None else grade.plus)}
    if grade.plus is not None:
        row["base"] = told(grade.base)
    return row | {"detail": verdict.detail, "seconds": round(verdict.seconds, 4)}


def _structure(code: str, problem: Row) -> Row:
    if len(code) > LONGEST_COMPARED:
        return dict.fromkeys(STRUCTURE)
    reference = problem["code_prefix"] + problem["reference"]
    return {name: getattr(metrics, name)(code, reference) for name in STRUCTURE}


def _held_faults(rows: Iterator[Row]) -> Iterator[Row]:
    """Holds rows with a fault of the sandbox until another row shows that the sandbox works."""
    held: list[Row] = []
    for row in rows:
        if row["status"] == "sandbox_error":
            held.append(row)
            if len(held) == FAULTS_IN_A_ROW:
                raise RuntimeError(
                    f"the sandbox failed on {FAULTS_IN_A_ROW} samples in a row, which says nothing about them: "
                    f"{row['task_id']}: {row['detail']}"
                )
            continue
        yield from held
        held.clear()
        yield row
    yield from held
