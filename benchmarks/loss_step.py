"""What one training step costs, by loss and by part.

    python -m benchmarks.loss_step                      the kata student: 1 M parameters, 16 short traces a batch
    python -m benchmarks.loss_step --student large      100 M parameters, 4 x 1,024 tokens of the standard library
    python -m benchmarks.loss_step --out FILE.json      --out keeps what the file holds of the other student
    python -m benchmarks.loss_step --write-docs docs/loss.md     the tables from the file, without a measurement

Tables for a student that is a Llama made from a configuration, on one thread:

losses  (kata) forward and backward, interleaved: the trunk alone (the floor), eager cross-entropy on full logits, the
        fused plain loss, the gap-weighted loss, the gap with the alignment term. Before anything is timed, the fused
        loss is compared with the eager one.
parts   one step of the last of them by part: reading the student's own code, trunk, gap, LM head, alignment, backward,
        remembering the argmax.

The student's own code is the teacher's with every tenth token replaced, which is what a student of 90 % token accuracy
would show.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from benchmarks.timing import Variant, environment, interleave, spread
from benchmarks.tree_report import conditions, fill, markdown, timed
from benchmarks.trees_to_batch import functions
from structloss import StructureAwareLoss, StructureCollator, VisitCache, encode_example, hidden_and_head
from structloss.losses import CODE, Example
from structloss.trees import num_kinds
from training import text
from training.config import StudentConfig
from training.kata import make_kata
from training.students import build_student, load_tokenizer, train_tokenizer

Row = dict[str, Any]
FUSED = "fused cross-entropy"


class Size(NamedTuple):
    config: StudentConfig
    vocab: int
    rows: int
    tokens: int | None  # None: the traces as they are
    rounds: int
    compare: bool  # the losses; where a step takes a minute, one differs from the next by more than the losses do


STUDENTS = {
    "kata": Size(StudentConfig(hidden_size=128, intermediate_size=384), 1024, 16, None, 15, True),
    "large": Size(
        StudentConfig(hidden_size=768, intermediate_size=2304, layers=12, heads=12), 16_384, 4, 1024, 3, False
    ),
}  # fmt: skip


class Setup(NamedTuple):
    student: Any
    examples: list[Example]
    inputs: dict[str, Any]
    visits: VisitCache


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", choices=STUDENTS, default="kata")
    parser.add_argument("--rounds", type=int, help="steps that everything is timed")
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="folder of loss_step.json")
    parser.add_argument("--write-docs", type=Path, metavar="PAGE", help="renew the tables between the page's markers")
    options = parser.parse_args(arguments)
    if options.write_docs:
        report = json.loads((options.results / "loss_step.json").read_text())
        options.write_docs.write_text(fill(options.write_docs.read_text(), tables(report)))
        return
    torch.set_num_threads(1)
    size = STUDENTS[options.student]
    rounds = options.rounds or size.rounds
    setup = set_up(size)
    report = {
        "environment": environment(("transformers",)),
        "parameters": sum(parameter.numel() for parameter in setup.student.parameters()),
        "rows": len(setup.examples),
        "tokens": sum(map(len, setup.examples)),
        "nodes": [example.tree.size for example in setup.examples],
        "losses": losses(setup, rounds) if size.compare else [],
        "parts": parts(setup, rounds),
    }
    print(f"{report['parameters'] / 1e6:.1f} M parameters, {report['rows']} rows, {report['tokens']} tokens")
    for table in tables({options.student: report}).values():
        print(f"\n{table}")
    if options.out:
        before = json.loads(options.out.read_text()) if options.out.is_file() else {}
        options.out.write_text(json.dumps(before | {options.student: report}, indent=1) + "\n")


def tables(report: Row) -> dict[str, str]:
    """The tables of every student in the file."""
    made = {}
    for student, found in report.items():
        nodes = f"{min(found['nodes'])} to {max(found['nodes'])} nodes a tree"
        size = (
            f"{found['parameters'] / 1e6:.0f} M parameters, {found['rows']} rows, {found['tokens']:,} tokens, {nodes}."
        )
        around = f"{size} One thread. {conditions(found)}"
        if found["losses"]:
            losses = [
                [row["variant"], timed(row), f"{row['over_trunk']:.3f}", f"{row['over_fused']:.3f}"]
                for row in found["losses"]
            ]
            made[f"losses-{student}"] = markdown(["forward and backward", "ms", "x trunk", "x fused"], losses)
        parts = [[row["part"], timed(row), f"{row['share']:.1%}"] for row in found["parts"]]
        made[f"parts-{student}"] = markdown(["part of a step", "ms", "share"], parts) + f"\n\n{around}"
    return made


def set_up(size: Size) -> Setup:
    segments = kata_segments(size.rows) if size.tokens is None else library_segments(size)
    tokenizer, examples = encoded(segments, size.vocab)
    if size.tokens is not None:
        examples = sorted(examples, key=lambda example: abs(len(example) - size.tokens))[: size.rows]
    inputs = StructureCollator(tokenizer.pad_token_id)(examples)
    student = build_student(size.config, tokenizer, seed=0, max_positions=2048)
    visits = VisitCache(tokenizer)
    preferred = inputs["structure"].labels.clone()
    draw = torch.Generator().manual_seed(0)
    wrong = (torch.rand(preferred.shape, generator=draw) < 0.1) & (inputs["structure"].regions == CODE)
    preferred[wrong] = torch.randint(len(tokenizer), (int(wrong.sum()),), generator=draw)
    visits.update(examples, preferred)
    return Setup(student, examples, inputs, visits)


def encoded(segments: Sequence[tuple[list[tuple[str, str]], str]], vocab: int) -> tuple[Any, list[Example]]:
    """A tokenizer trained on the segments, and the segments as examples."""
    with tempfile.TemporaryDirectory() as folder:
        train_tokenizer(("".join(part for _, part in row) for row, _ in segments), vocab).save_pretrained(folder)
        tokenizer = load_tokenizer(folder)
    return tokenizer, [
        encode_example(tokenizer, row, id=str(number), code_prefix=prefix)
        for number, (row, prefix) in enumerate(segments)
    ]


def kata_segments(rows: int) -> list[tuple[list[tuple[str, str]], str]]:
    traces = make_kata(max(rows, 40), 1, 1).traces[:rows]
    return [(text.segments(trace), trace["code_prefix"]) for trace in traces]


def library_segments(size: Size) -> list[tuple[list[tuple[str, str]], str]]:
    """Functions of the standard library put together until they are about as long as a row."""
    assert size.tokens is not None
    rest = functions(200)
    return [([("prompt", "Write them.\n"), ("code", joined(rest, 4 * size.tokens))], "") for _ in range(3 * size.rows)]


def joined(sources: Iterator[str], characters: int) -> str:
    made = ""
    while len(made) < characters and (source := next(sources, None)) is not None:
        made += source + "\n\n"
    return made


def structure_losses(hidden_size: int) -> dict[str, StructureAwareLoss]:
    head = {"hidden_size": hidden_size, "num_kinds": num_kinds("python")}
    return {
        FUSED: StructureAwareLoss(alpha=0.0),
        "structure-aware, gap": StructureAwareLoss(alpha=1.0, ramp_shape="constant"),
        "structure-aware, gap + alignment": StructureAwareLoss(
            alpha=1.0, lambda_align=0.1, ramp_shape="constant", **head
        ),
    }  # fmt: skip


def trunk(setup: Setup) -> Any:
    inputs = setup.inputs
    return hidden_and_head(setup.student, input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])


def losses(setup: Setup, rounds: int) -> list[Row]:
    batch = setup.inputs["structure"]

    def eager() -> torch.Tensor:
        made = trunk(setup)
        return F.cross_entropy((made.hidden[:, :-1] @ made.weight.T).flatten(0, 1), batch.labels[:, 1:].flatten())

    def with_loss(loss: StructureAwareLoss) -> torch.Tensor:
        made = trunk(setup)
        structure = batch if loss.alpha == 0.0 else setup.visits.attach(batch, setup.examples)
        return loss(made.hidden, made.weight, structure, progress=1.0).loss

    values: dict[str, Callable[[], torch.Tensor]] = {
        "trunk": lambda: trunk(setup).hidden.sum(),
        "eager cross-entropy": eager,
    }
    for name, loss in structure_losses(setup.student.config.hidden_size).items():
        values[name] = lambda loss=loss: with_loss(loss)
    torch.testing.assert_close(values["eager cross-entropy"](), values[FUSED]())
    variants = [Variant(name, lambda value=value: value().backward(), 1, 1, rounds) for name, value in values.items()]
    times = dict(zip(values, interleave(variants, rounds), strict=True))
    return [
        {"variant": name}
        | spread(seconds, 1)
        # The step of the same round: the clock drifts less within a round than between rounds.
        | {"over_trunk": ratio(seconds, times["trunk"]), "over_fused": ratio(seconds, times[FUSED])}
        for name, seconds in times.items()
    ]


def ratio(seconds: Sequence[float], others: Sequence[float]) -> float:
    return statistics.median(mine / other for mine, other in zip(seconds, others, strict=True))


def parts(setup: Setup, rounds: int) -> list[Row]:
    """Median of each part over the rounds, in the order of a step."""
    loss = structure_losses(setup.student.config.hidden_size)["structure-aware, gap + alignment"]
    seconds: dict[str, list[float]] = {}
    since = time.perf_counter()

    def part(name: str, already: float = 0.0) -> None:
        nonlocal since
        now = time.perf_counter()
        seconds.setdefault(name, []).append(now - since - already)
        since = now

    for _ in range(rounds):
        since = time.perf_counter()
        structure = setup.visits.attach(setup.inputs["structure"], setup.examples)
        part("read the student's own code")
        made = trunk(setup)
        part("trunk, forward")
        output = loss(made.hidden, made.weight, structure, progress=1.0, diagnostics=True)
        inside = {name: output.metrics[f"seconds_{name}"].item() for name in ("gap", "token", "align")}
        seconds.setdefault("gap: align the trees", []).append(inside["gap"])
        seconds.setdefault("LM head and cross-entropy", []).append(inside["token"])
        seconds.setdefault("L_align, forward", []).append(inside["align"])
        part("rest of the loss", already=sum(inside.values()))
        output.loss.backward()
        part("backward")
        setup.visits.update(setup.examples, setup.inputs["structure"].labels)
        part("remember the argmax")
    whole = sum(map(statistics.median, seconds.values()))
    return [
        {"part": name} | spread(times, 1) | {"share": statistics.median(times) / whole}
        for name, times in seconds.items()
    ]


if __name__ == "__main__":
    main()
