"""Time, memory and error of the LM-head loss on a CPU, against what else a user can call.

    python -m benchmarks.lm_head --quick              a look, in seconds
    python -m benchmarks.lm_head --out FILE.json      every study, in about eight minutes on one core
    python -m benchmarks.lm_head --study sweep        one of them; --out keeps what the file holds of the others
    python -m benchmarks.lm_head --study shapes --scenario 0 2       single scenarios, by their place in the table
    python -m benchmarks.lm_head --plot docs/images --write-docs docs/lm_head.md     figures and tables from the file

shapes    half of the tokens ignored, frozen head, at three shapes; one of them with a trained head and in bfloat16
sweep     time and memory by the share of ignored tokens, frozen and trained
options   what each option costs beside the plain call
accuracy  errors of loss and gradients against float64, beside those of eager torch
topk      linear_topk_kl: time beside the cross-entropy, and what logits rounded to bfloat16 would do to its gradient

Variants run interleaved, the order rotating from round to round, so that a drifting clock hits all of them. The floor
is the bare GEMMs on the kept rows: two when the head is frozen, three when it is trained. A variant whose loss or
gradients are wrong in this run gets no time, and the script then fails.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from benchmarks import lm_head_report
from benchmarks.lm_head_variants import (
    Loss,
    Problem,
    floor,
    is_wrong,
    limits,
    peak_bytes,
    relative_errors,
    variants,
)
from benchmarks.timing import Variant, environment, interleave, spread
from structloss.lm_head import linear_cross_entropy, linear_topk_kl
from structloss.lm_head.topk_formula import TopkFormula
from structloss.lm_head.topk_reference import divergence_from_topk

Row = dict[str, Any]
STUDIES = ("shapes", "sweep", "options", "accuracy", "topk")
SHAPES = [  # tokens, width, vocabulary, dtype, frozen
    (2048, 512, 32000, "float32", True),
    (2048, 1024, 32000, "float32", True),
    (1024, 512, 128000, "float32", True),
    (2048, 512, 32000, "float32", False),
    (512, 512, 32000, "bfloat16", True),
]
QUICK_SHAPES = [(128, 32, 2000, dtype, frozen) for dtype in ("float32", "bfloat16") for frozen in (True, False)]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    if options.plot or options.write_docs:
        lm_head_report.publish(options.results, options.plot, options.write_docs)
        return 0
    torch.set_num_threads(options.threads)
    report: Row = {"arguments": {"rounds": options.rounds, "threads": options.threads, "quick": options.quick}}
    if options.out and options.out.is_file():
        report = json.loads(options.out.read_text()) | report
    failed = False
    for study in options.study:
        if study in SCENARIOS:
            rows = compare_all(study, options, report.get(study, {}).get("rows", []))
        else:
            rows = {"options": costs, "accuracy": accuracy, "topk": topk}[study](options)
        failed |= any("refused" in row for row in rows)
        report[study] = {"environment": environment(()), "rows": rows}
        print(f"\n{lm_head_report.tables(report)[study]}")
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    return int(failed)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.lm_head",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--study", nargs="+", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--quick", action="store_true", help="tiny shapes, two rounds")
    parser.add_argument("--scenario", nargs="+", type=int, help="of shapes and sweep; the file keeps the others")
    parser.add_argument("--rounds", type=int, default=5, help="times that everything is timed")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    figures = parser.add_argument_group("figures from a file, without a measurement")
    figures.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="folder of lm_head.json")
    figures.add_argument("--plot", type=Path, metavar="FOLDER", help="write the SVG file there")
    figures.add_argument("--write-docs", type=Path, metavar="PAGE", help="renew the tables between the page's markers")
    options = parser.parse_args(arguments)
    for name in ("rounds", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} wants a number >= 1, got {getattr(options, name)}")
    if options.quick:
        options.rounds = 2
    for study in set(options.study) & set(SCENARIOS):
        count = len(SCENARIOS[study](options.quick))
        if any(not 0 <= number < count for number in options.scenario or ()):
            parser.error(f"--scenario wants numbers from 0 to {count - 1} with {study}, got {options.scenario}")
    return options


def shapes(quick: bool) -> list[Row]:
    keys = ("tokens", "width", "vocab", "dtype", "frozen")
    return [dict(zip(keys, shape, strict=True)) | {"masked": 0.5} for shape in (QUICK_SHAPES if quick else SHAPES)]


def sweep(quick: bool) -> list[Row]:
    tokens, width, vocab = (128, 32, 2000) if quick else (768, 512, 32000)
    shape = {"tokens": tokens, "width": width, "vocab": vocab, "dtype": "float32"}
    masks = (0.0, 0.5) if quick else (0.0, 0.25, 0.5, 0.75, 0.9)
    return [shape | {"frozen": frozen, "masked": masked} for frozen in (True, False) for masked in masks]


SCENARIOS = {"shapes": shapes, "sweep": sweep}
# Left out of the sweep: without options torch's loss is eager torch.
_NOT_SWEPT = ("structloss, torch", "F.linear_cross_entropy", "F.linear_cross_entropy, x[keep]")


def compare_all(study: str, options: argparse.Namespace, before: Sequence[Row]) -> list[Row]:
    """Every scenario that was asked for, in the table's order; of the others the rows from `before`."""
    rows = []
    for number, scenario in enumerate(tqdm(SCENARIOS[study](options.quick), study, disable=None)):
        if options.scenario and number not in options.scenario:
            rows += [row for row in before if row.items() >= scenario.items()]
            continue
        shape = [scenario[key] for key in ("tokens", "width", "vocab", "masked")]
        problem = Problem.make(*shape, getattr(torch, scenario["dtype"]), "cpu", frozen=scenario["frozen"])
        calls = variants(problem, ("", "torch"))
        swept = {name: loss for name, loss in calls.items() if name not in _NOT_SWEPT}
        rows += [scenario | row for row in compare(problem, swept if study == "sweep" else calls, options.rounds)]
    return rows


def compare(problem: Problem, calls: dict[str, Loss], rounds: int) -> list[Row]:
    """Checks every variant, times those that are right, and measures their memory."""
    truth = problem.truth()
    errors = {name: relative_errors(problem.step(loss), truth) for name, loss in calls.items()}
    del truth
    allowed = limits(problem.x.dtype, errors["eager"])
    wrong = [name for name, error in errors.items() if is_wrong(error, allowed)]
    base = f"floor: {2 if problem.frozen else 3} GEMMs"
    timed: dict[str, Callable[[], object]] = {base: floor(problem)}
    timed |= {name: functools.partial(problem.step, loss) for name, loss in calls.items() if name not in wrong}
    timed[base]()
    seconds = interleave(
        [Variant(name, call, 1, torch.get_num_threads(), rounds) for name, call in timed.items()], rounds
    )
    rows: list[Row] = []
    for (name, call), times in zip(timed.items(), seconds, strict=True):
        row: Row = {"variant": name} | spread(times, 1)
        row["times_the_floor"] = row["median_ms"] / (rows[0]["median_ms"] if rows else row["median_ms"])
        if rows:
            row |= {"peak_mib": peak_bytes(call, "cpu") / 2**20, "relative_errors": errors[name]}
        rows.append(row)
    return rows + [{"variant": n, "refused": "wrong result", "relative_errors": errors[n]} for n in wrong]


def costs(options: argparse.Namespace) -> list[Row]:
    """Every option beside the plain call; nothing ignored, frozen head where not said. The reference checks each."""
    tokens, width, vocab = (64, 32, 2000) if options.quick else (384, 512, 32000)
    problem = Problem.make(tokens, width, vocab, 0.0, torch.float32, "cpu", frozen=True)
    classes, weights = torch.rand(vocab) + 0.1, torch.rand(tokens) + 0.1
    down, up = torch.randn(8, width) / width**0.5, torch.randn(vocab, 8) / 8**0.5
    changes: dict[str, Row] = {
        "plain": {},
        "token_weight": {"token_weight": weights},
        "negative weights (unlikelihood)": {"token_weight": weights - 0.4, "denominator": 10.0},
        "class weight": {"weight": classes},
        "label_smoothing": {"label_smoothing": 0.1},
        "z_loss": {"z_loss": 1e-4},
        "softcap": {"softcap": 30.0},
        "logit_scale": {"logit_scale": 0.5},
        "linear_bias": {"linear_bias": torch.randn(vocab)},
        "LoRA on the head, rank 8": {"lora_a": down, "lora_b": up},
        'outputs=("logprob", "lse")': {"outputs": ("logprob", "lse")},
        'outputs=("argmax",)': {"outputs": ("argmax",)},
        'outputs=("entropy",)': {"outputs": ("entropy",)},
        'reduction="none"': {"reduction": "none"},
        'mode="min_memory"': {"mode": "min_memory"},
        "upstream gradient of 3": {"upstream": 3.0},
        "trained head": {"trained": True},
        "trained head, upstream gradient of 3": {"trained": True, "upstream": 3.0},
    }
    trained = problem.weight.clone().requires_grad_()

    def step(change: Row, backend: str = "auto") -> list[Tensor]:
        call = {name: value for name, value in change.items() if name not in ("trained", "upstream")}
        inputs = [problem.x, trained if "trained" in change else problem.weight]
        made = linear_cross_entropy(*inputs, problem.target, backend=backend, **call)
        loss = made if isinstance(made, Tensor) else made.loss
        wanted = [tensor for tensor in inputs if tensor.requires_grad]
        return [loss.detach(), *torch.autograd.grad(loss.sum() * change.get("upstream", 1.0), wanted)]

    rows: list[Row] = []
    names = [name for name, change in changes.items() if _agrees(step(change), step(change, "reference"))]
    calls = [Variant(n, functools.partial(step, changes[n]), 1, torch.get_num_threads(), options.rounds) for n in names]
    for name, times in zip(names, interleave(calls, options.rounds), strict=True):
        row = {"variant": name} | spread(times, 1)
        rows.append(row | {"times_plain": row["median_ms"] / (rows or [row])[0]["median_ms"]})
    return rows + [{"variant": name, "refused": "wrong result"} for name in changes if name not in names]


def _agrees(made: list[Tensor], truth: list[Tensor]) -> bool:
    return all(error < 1e-4 for error in relative_errors(made, [t.double() for t in truth]))


def accuracy(options: argparse.Namespace) -> list[Row]:
    """Relative norm errors against float64, on inputs that both types can hold exactly: with all three gradients, and
    with a frozen head, which takes another way to dX.
    """
    tokens, width, vocab = (64, 32, 2000) if options.quick else (256, 512, 32000)
    problem = Problem.make(tokens, width, vocab, 0.25, torch.bfloat16, "cpu", frozen=False)
    bias = torch.randn(vocab, generator=torch.Generator().manual_seed(1)).bfloat16()

    def step(loss: Callable[..., Tensor], dtype: torch.dtype, *, frozen: bool = False) -> list[Tensor]:
        tensors = [t.detach().to(dtype) for t in (problem.x, problem.weight, bias)]
        leaves = [t.requires_grad_() for t in tensors[: 1 if frozen else 3]]
        value = loss(*tensors, problem.target)
        return [value.detach(), *torch.autograd.grad(value, leaves)]

    def eager(x: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(x, weight, bias).to(torch.promote_types(x.dtype, torch.float32)), target)

    def ours(x: Tensor, weight: Tensor, bias: Tensor, target: Tensor, *, backend: str) -> Tensor:
        return linear_cross_entropy(x, weight, target, linear_bias=bias, backend=backend)

    truth = step(eager, torch.float64)
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        calls: dict[str, Callable[..., Tensor]] = {"eager torch": eager}
        calls |= {f"structloss, {name}": functools.partial(ours, backend=name) for name in ("auto", "torch")}
        allowed = None
        for name, loss in calls.items():
            errors = relative_errors(step(loss, dtype), truth)
            allowed = allowed or [max(1.5 * error, 1e-6) for error in errors]
            rows.append(_accuracy_row(name, dtype, errors, allowed))
            if name == "structloss, auto":
                errors = relative_errors(step(loss, dtype, frozen=True), truth[:2])
                rows.append(_accuracy_row(f"{name}, frozen head", dtype, errors, allowed[:2]))
    return rows


def _accuracy_row(variant: str, dtype: torch.dtype, errors: list[float], allowed: list[float]) -> Row:
    row = {"variant": variant, "dtype": str(dtype).removeprefix("torch.")}
    row |= dict(zip(("loss", "d_input", "d_weight", "d_bias"), errors, strict=False))
    return row | ({"refused": "wrong result"} if is_wrong(errors, allowed) else {})


def _gradient_of_logits(logits: Tensor, ids: Tensor, logprobs: Tensor, kind: str) -> Tensor:
    """By the float64 reference, as a head of one class a column of the identity would be too large."""
    leaf = logits.requires_grad_()
    formula = TopkFormula(kind, "bucket", 1.0, 0.5, 1e-6, logits.shape[1], 1.0, 0.0, None, 1.0)
    loss = divergence_from_topk(leaf, ids, logprobs, formula).mean()
    return torch.autograd.grad(loss, leaf)[0]


def topk(options: argparse.Namespace) -> list[Row]:
    """A teacher's 64 best classes: forward and backward with a frozen head, and errors of dX for bfloat16 inputs."""
    tokens, width, vocab, k = (64, 32, 2000, 8) if options.quick else (384, 512, 32000, 64)
    problem = Problem.make(tokens, width, vocab, 0.0, torch.bfloat16, "cpu", frozen=True)
    draw = torch.Generator().manual_seed(2)
    logits = problem.x.detach().float() @ problem.weight.float().t()
    teacher = (logits + 0.3 * torch.randn(logits.shape, generator=draw)).log_softmax(-1)
    logprobs, ids = teacher.topk(k, -1)
    wide_weight, wide_x = problem.weight.float(), problem.x.detach().float().requires_grad_()

    def gradient(x: Tensor, weight: Tensor, **change: Any) -> Tensor:
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(linear_topk_kl(leaf, weight, ids, logprobs, **change), leaf)[0].double()

    def time_of(**change: Any) -> Callable[[], object]:
        return lambda: torch.autograd.grad(linear_topk_kl(wide_x, wide_weight, ids, logprobs, **change), wide_x)

    def cross_entropy() -> object:
        return torch.autograd.grad(linear_cross_entropy(wide_x, wide_weight, problem.target, backend="torch"), wide_x)

    changes: dict[str, Row] = {kind: {"kind": kind} for kind in ("forward", "reverse", "jsd")}
    calls = {"linear_cross_entropy, torch": cross_entropy} | {
        name: time_of(**change) for name, change in changes.items()
    }
    mixed = {"target": problem.target, "cross_entropy_weight": 0.5}
    calls["forward with cross-entropy"] = time_of(**mixed)
    for call in calls.values():
        call()
    threads = torch.get_num_threads()
    seconds = interleave([Variant(n, c, 1, threads, options.rounds) for n, c in calls.items()], options.rounds)
    rows: list[Row] = []
    for name, times in zip(calls, seconds, strict=True):
        row = {"variant": name} | spread(times, 1)
        row["times_cross_entropy"] = row["median_ms"] / (rows or [row])[0]["median_ms"]
        rows.append(row)
        if name not in changes:
            continue
        truth = gradient(problem.x.double(), problem.weight.double(), backend="reference", **changes[name])
        rounded = logits.bfloat16().double()  # what a bfloat16 GEMM leaves of the logits
        of_rounded = _gradient_of_logits(rounded, ids, logprobs, name)
        (ours,) = relative_errors([gradient(problem.x, problem.weight, **changes[name])], [truth])
        (theirs,) = relative_errors([of_rounded @ problem.weight.double()], [truth])
        row |= {"error": ours, "error_of_rounded_logits": theirs}
        if not ours < 0.01:
            row["refused"] = "wrong result"
    return rows


if __name__ == "__main__":
    sys.exit(main())
