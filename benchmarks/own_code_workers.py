"""What reading the student's own code costs a training step, read by the step itself, by a thread, by a process.

    python -m benchmarks.own_code_workers                         both students
    python -m benchmarks.own_code_workers --out FILE.json
    python -m benchmarks.own_code_workers --write-docs docs/integrations.md     the tables from the file

steps  visits, forward and backward, in runs over several batches as in an epoch, interleaved: the code read and aligned
       by `attach` (workers=0), by a thread while the step goes on (workers=1), by a process. Own code: the share of a
       step that the training thread spends on it. Before anything is timed, the three are compared: they give the same
       losses, bit for bit.
lock   does the work hold the interpreter's lock? How much faster two threads do twice the work than one: 2 = it runs
       beside the interpreter, 1 = it holds the lock all the time.

The students are Llamas made from a configuration, on one thread. Their own code is the teacher's with every tenth token
replaced, which is what a student of 90 % token accuracy would show.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.loss_step import STUDENTS, Size, encoded, kata_segments, library_segments
from benchmarks.timing import WrongResult, environment, spread
from benchmarks.tree_report import conditions, fill, markdown, timed
from structloss import StructureAwareLoss, StructureCollator, VisitCache, parse
from structloss.integrations import model_loss
from structloss.losses import CODE, Example, structural_gap
from structloss.losses.own_code import OwnCode, OwnCodeReader
from structloss.losses.workers import OwnCodeWorkers
from structloss.trees import TreeBatch
from training.config import StudentConfig
from training.students import build_student

Row = dict[str, Any]
BATCHES = 4
LOCK_SECONDS = 0.15  # of work for each thread
SIZES = {
    "kata": STUDENTS["kata"],
    # Programs of about 400 nodes: the alignment grows with the square of the trees, the trunk does not.
    "long": Size(StudentConfig(hidden_size=256, intermediate_size=768), 4096, 4, 512, 6, True),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", choices=SIZES, action="append", help="this student (may be given twice)")
    parser.add_argument("--rounds", type=int, help="runs over the batches")
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/own_code_workers.json"))
    parser.add_argument("--write-docs", type=Path, metavar="PAGE", help="renew the tables between the page's markers")
    options = parser.parse_args(arguments)
    if options.write_docs:
        report = json.loads(options.results.read_text())
        options.write_docs.write_text(fill(options.write_docs.read_text(), tables(report)))
        return
    torch.set_num_threads(1)
    report = {"environment": environment(("transformers",)), "students": {}}
    for name in options.student or SIZES:
        report["students"][name] = study(SIZES[name], options.rounds or SIZES[name].rounds)
    for table in tables(report).values():
        print(f"\n{table}")
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


def tables(report: Row) -> dict[str, str]:
    made = {}
    for name, found in report["students"].items():
        nodes = f"{min(found['nodes'])} to {max(found['nodes'])} nodes a tree"
        about = f"{found['parameters'] / 1e6:.1f} M parameters, {found['rows']} rows a step, {nodes}."
        steps = [
            [
                row["variant"],
                timed(row["step"]),
                timed(row["own_code"]),
                f"{row['share']:.1%}",
                f"{row['over_plain']:.3f}",
            ]
            for row in found["steps"]
        ]
        header = ["read by", "step, ms", "own code on the training thread, ms", "share", "x step without structure"]
        made[f"workers-{name}"] = f"{markdown(header, steps)}\n\n{about} {conditions(report)}"
    lock = [
        [name, row["work"], timed(row), f"{row['speed_up']:.2f}"]
        for name, found in report["students"].items()
        for row in found["lock"]
    ]
    made["workers-lock"] = markdown(["student", "work on one batch", "ms", "two threads, times as fast"], lock)
    return made


def study(size: Size, rounds: int) -> Row:
    student, tokenizer, examples = set_up(size)
    collate = StructureCollator(tokenizer.pad_token_id)
    batches = [collate(examples[start : start + size.rows]) for start in range(0, len(examples), size.rows)]
    preferred = [wrong_tokens(batch["structure"], len(tokenizer)) for batch in batches]
    plain = StructureAwareLoss(alpha=0.0)
    loss = StructureAwareLoss(alpha=1.0, ramp_shape="constant")
    in_step, in_thread, in_process = (VisitCache.for_loss(loss, tokenizer, workers=workers) for workers in (0, 1, 0))
    in_process._workers = ProcessWorkers(in_process._reader)
    caches = {"the step": in_step, "a thread": in_thread, "a process": in_process}

    def run(visits: VisitCache | None) -> tuple[list[float], list[float], list[float]]:
        """Seconds of each step, of its part for the own code on this thread, and the losses."""
        steps, parts, values = [], [], []
        for batch, argmax in zip(batches, preferred, strict=True):
            began = time.perf_counter()
            inputs = dict(batch)
            if visits is not None:
                inputs["structure"] = visits.attach(batch["structure"], batch["examples"])
            attached = time.perf_counter()
            output = model_loss(student, plain if visits is None else loss, inputs, progress=1.0)
            computed = time.perf_counter()
            if visits is not None:
                visits.update(batch["examples"], argmax)
            updated = time.perf_counter()
            output.loss.backward()
            steps.append(time.perf_counter() - began)
            parts.append(updated - computed + attached - began)
            values.append(output.loss.item())
        if visits is not None:
            visits.drain()
        return steps, parts, values

    try:
        for visits in caches.values():
            run(visits)
        losses = {name: run(visits)[2] for name, visits in caches.items()}
        if len(set(map(tuple, losses.values()))) != 1:
            raise WrongResult(f"the losses differ: {losses}")
        variants: dict[str, VisitCache | None] = {"no structure (plain cross-entropy)": None, **caches}
        seconds: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in variants}
        names = list(variants)
        for turn in range(rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                steps, parts, _ = run(variants[name])
                seconds[name][0].extend(steps)
                seconds[name][1].extend(parts)
    finally:
        for visits in caches.values():
            visits.close()
    baseline = statistics.median(seconds[names[0]][0])
    return {
        "parameters": sum(parameter.numel() for parameter in student.parameters()),
        "rows": size.rows,
        "nodes": [example.tree.size for example in examples],
        "steps": [
            {
                "variant": name,
                "step": spread(steps, 1),
                "own_code": spread(parts, 1),
                "share": statistics.median(parts) / statistics.median(steps),
                "over_plain": statistics.median(steps) / baseline,
            }
            for name, (steps, parts) in seconds.items()
        ],
        "lock": lock(examples[: size.rows], preferred[0], in_step._reader),
    }


def set_up(size: Size) -> tuple[Any, Any, list[Example]]:
    """A student, its tokenizer, and as many examples as the batches hold."""
    needed = BATCHES * size.rows
    segments = kata_segments(needed) if size.tokens is None else library_segments(size._replace(rows=needed))[:needed]
    tokenizer, examples = encoded(segments, size.vocab)
    return build_student(size.config, tokenizer, seed=0, max_positions=2048), tokenizer, examples


def wrong_tokens(structure: Any, vocabulary: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    preferred = structure.labels.clone()
    wrong = (torch.rand(preferred.shape, generator=draw) < 0.1) & (structure.regions == CODE)
    preferred[wrong] = torch.randint(vocabulary, (int(wrong.sum()),), generator=draw)
    return preferred


def lock(examples: Sequence[Example], preferred: torch.Tensor, reader: OwnCodeReader) -> list[Row]:
    """Each part of the work on one batch, alone and by two threads at once."""
    ids = [preferred[row].numpy()[np.flatnonzero(example.regions == CODE)] for row, example in enumerate(examples)]
    sources = [
        reader.token_bytes.read(row, example.code_prefix.encode())[0]
        for row, example in zip(ids, examples, strict=True)
    ]
    student = TreeBatch.from_sources(sources)
    teacher = TreeBatch.from_trees([example.tree for example in examples])
    works: dict[str, Callable[[], object]] = {
        "parse": lambda: [parse(source) for source in sources],
        "align (the gap)": lambda: structural_gap(student, teacher),
        "all of it": lambda: reader(examples, ids),
    }
    rows = []
    for name, work in works.items():
        work()
        alone = [seconds_of(work) for _ in range(15)]
        repeats = max(1, round(LOCK_SECONDS / statistics.median(alone)))
        speed_ups = [2 * seconds_of(work, repeats) / seconds_of(work, repeats, threads=2) for _ in range(7)]
        rows.append({"work": name, **spread(alone, 1), "speed_up": statistics.median(speed_ups)})
    return rows


def seconds_of(work: Callable[[], object], repeats: int = 1, threads: int = 1) -> float:
    def repeat() -> None:
        for _ in range(repeats):
            work()

    others = [threading.Thread(target=repeat) for _ in range(threads - 1)]
    began = time.perf_counter()
    for other in others:
        other.start()
    repeat()
    for other in others:
        other.join()
    return time.perf_counter() - began


class ProcessWorkers(OwnCodeWorkers):
    """The same around a process, for the comparison: it gets the examples and gives the trees by pickling."""

    def __init__(self, read: OwnCodeReader) -> None:
        super().__init__(read)
        super().close()
        self._processes = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _start, (read,))

    def submit(self, examples: Sequence[Example], ids: Callable[[], Sequence[np.ndarray]]) -> Future[list[OwnCode]]:
        self._collect()
        future = self._processes.submit(_read_here, list(examples), ids())
        self._pending.append(future)
        return future

    def close(self) -> None:
        self._processes.shutdown()


def _start(read: OwnCodeReader) -> None:
    global _reader
    _reader = read
    torch.set_num_threads(1)


def _read_here(examples: Sequence[Example], ids: Sequence[np.ndarray]) -> list[OwnCode]:
    return _reader(examples, ids)


_reader: OwnCodeReader


if __name__ == "__main__":
    main()
