"""Time, memory and error of the LM-head loss on a GPU, against Liger, Cut Cross-Entropy, quack and torch.

    python -m benchmarks.lm_head_device --out FILE.json        N=8192, D=4096, V=128256, bfloat16
    python -m benchmarks.lm_head_device --quick                small shapes
    python -m benchmarks.lm_head_device --device cpu --quick   the same code without a GPU, to try the script

Dense and half-masked, frozen and trained head. Every call is timed as a user makes it and on rows that the user
gathered by hand (x[keep]); beside them the bare GEMMs on the kept rows and, for the row pass alone, a copy of its
bytes. Calls run interleaved in rotating order between device events. A call whose loss or gradients are wrong in this
run gets no time and the script fails; a package that is not installed, or a call that fails or runs out of memory, is
listed with its reason. --out is written anew after every comparison, so that a limit on time loses only what was not
reached; after a fault that ends the device's context, name the calls to go on with (--only structloss eager).
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.lm_head_report import device_table
from benchmarks.lm_head_variants import (
    Loss,
    Problem,
    floor,
    is_wrong,
    limits,
    peak_bytes,
    relative_errors,
    variants,
    with_compaction,
)
from benchmarks.timing import environment, spread
from structloss.lm_head.row_pass import RowFormula, RowInputs, RowPass, RowResults, TorchRowPass

Row = dict[str, Any]
PEERS = {"liger_kernel": "liger-kernel", "cut_cross_entropy": "cut-cross-entropy", "quack": "quack-kernels"}
WRONG = "wrong result"
_ROW_PASS_ROWS = 768
_ROOM = "structloss.lm_head"


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    if options.device != "cpu" and not torch.cuda.is_available():
        print(f"--device {options.device}: torch sees no CUDA device (--device cpu tries the script)", file=sys.stderr)
        return 2
    name = "cpu" if options.device == "cpu" else torch.cuda.get_device_name(options.device)
    report: Row = {"environment": environment((*PEERS.values(), "triton")), "device": name, "rows": []}
    report["arguments"] = {key: value for key, value in vars(options).items() if key != "out"}
    report["row_pass"] = row_pass_alone(options)
    for masked in options.masked:
        for frozen in (True, False):
            report["rows"] += compare(options, masked, frozen=frozen)
            if options.out:
                options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(device_table(report))
    wrong = {row["variant"] for row in (*report["row_pass"], *report["rows"]) if row.get("refused") == WRONG}
    if wrong:
        print(f"{WRONG}: {', '.join(sorted(wrong))}", file=sys.stderr)
    return int(bool(wrong))


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.lm_head_device",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--vocab", type=int, default=128256)
    parser.add_argument("--masked", nargs="+", type=float, default=[0.0, 0.5], help="shares of ignored tokens")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each call, at least 3 rounds")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", default=[""], help="calls whose names begin so; eager is the yardstick"
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="128 tokens, width 64, 1,000 classes")
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    options = parser.parse_args(arguments)
    if options.quick:
        options.tokens, options.width, options.vocab, options.seconds = 128, 64, 1000, 0.01
    for name in ("tokens", "width", "vocab"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} wants a number >= 1, got {getattr(options, name)}")
    families = ("structloss", "eager", "F.linear_cross_entropy", *PEERS.values())
    for name in options.only:
        if not any(family.startswith(name) or name.startswith(family) for family in families):
            parser.error(f"--only wants the beginning of a name, of {', '.join(families)}; got {name!r}")
    if not all(0.0 <= share < 1.0 for share in options.masked):
        parser.error(f"--masked wants shares in [0, 1), got {options.masked}")
    return options


def peers(problem: Problem) -> tuple[dict[str, Loss], list[Row]]:
    """The calls of the installed packages, and a row for each that is absent."""
    found: dict[str, Loss] = {}
    absent: list[Row] = []
    for module, package in PEERS.items():
        if importlib.util.find_spec(module) is None:
            absent.append({"variant": package, "refused": f"not installed (pip install {package})"})
            continue
        try:
            for name, loss in _PEER_CALLS[module]().items():
                found |= with_compaction(f"{package}{name}", loss, problem.keep)
        except Exception as error:  # what a package does at import is its own
            absent.append({"variant": package, "refused": f"cannot be called: {reason(error)}"})
    return found, absent


def reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:160]


def _liger() -> dict[str, Loss]:
    loss = importlib.import_module("liger_kernel.transformers").LigerFusedLinearCrossEntropyLoss(ignore_index=-100)
    return {"": lambda x, weight, target: loss(weight, x, target)}


def _cut_cross_entropy() -> dict[str, Loss]:
    """Its default drops tiles of small gradients, which on a flat distribution is most of them: hence also without."""
    loss = importlib.import_module("cut_cross_entropy").linear_cross_entropy
    return {
        "": functools.partial(loss, ignore_index=-100),
        ", filter_eps=None": functools.partial(loss, ignore_index=-100, filter_eps=None),
    }


def _quack() -> dict[str, Loss]:
    loss = importlib.import_module("quack.linear_cross_entropy").chunked_linear_cross_entropy
    return {"": functools.partial(loss, ignore_index=-100)}


_PEER_CALLS = {"liger_kernel": _liger, "cut_cross_entropy": _cut_cross_entropy, "quack": _quack}


def compare(options: argparse.Namespace, masked: float, *, frozen: bool) -> list[Row]:
    problem = Problem.make(
        options.tokens, options.width, options.vocab, masked, getattr(torch, options.dtype), options.device,
        frozen=frozen,
    )  # fmt: skip
    where = {"masked": masked, "frozen": frozen}
    backends = ("", "torch", "triton") if options.device != "cpu" else ("", "torch")
    calls = variants(problem, backends)
    others, rows = peers(problem)
    calls |= others
    calls = {name: loss for name, loss in calls.items() if name.startswith(tuple(options.only))}
    truth = problem.truth()
    errors: dict[str, list[float]] = {}
    for name, loss in calls.items():
        try:
            errors[name] = relative_errors(problem.step(loss), truth)
        except torch.OutOfMemoryError:
            rows.append({"variant": name, "refused": "out of memory"})
        except Exception as error:  # a peer may fail in any way: it is listed, and the others are measured
            rows.append({"variant": name, "refused": reason(error)})
            check_device(name, options.device)
    del truth
    # Without eager torch's own error (out of memory) only the fixed tolerance is left.
    allowed = limits(problem.x.dtype, errors.get("eager", errors.get("eager, x[keep]", [0.0] * (2 + (not frozen)))))
    base = f"floor: {2 if frozen else 3} GEMMs"
    timed: dict[str, Callable[[], object]] = {base: floor(problem)}
    for name, error in errors.items():
        if is_wrong(error, allowed):
            rows.append({"variant": name, "refused": WRONG, "relative_errors": error})
        else:
            timed[name] = functools.partial(problem.step, calls[name])
    measured: list[Row] = []
    for name, times in zip(timed, rotate(list(timed.values()), options.seconds, options.device), strict=True):
        row: Row = {"variant": name} | spread(times, 1)
        row["times_the_floor"] = row["median_ms"] / (measured or [row])[0]["median_ms"]
        if name != base:
            row |= {"relative_errors": errors[name], "peak_mib": peak_bytes(timed[name], options.device) / 2**20}
        measured.append(row)
    return [where | row for row in (*measured, *rows)]


def check_device(name: str, device: str) -> None:
    """Ends the run where a call's failure has left a device that answers nothing."""
    try:
        if device != "cpu":
            torch.cuda.synchronize(device)
    except RuntimeError as error:
        raise SystemExit(f"{name} left the device unusable ({reason(error)}); leave it out with --only") from error


def rotate(
    calls: Sequence[Callable[[], object]], seconds: float, device: str, prepare: Callable[[], object] = lambda: None
) -> list[list[float]]:
    """Seconds of every call between two events of the device, the order rotating from round to round.

    `prepare` runs before every call and is not timed. All rounds together take about `seconds` times the calls.
    """
    times: list[list[float]] = [[] for _ in calls]

    def timed(call: Callable[[], object]) -> float:
        prepare()
        return _timed(call, device)

    warm = [[timed(call), timed(call)] for call in calls]  # the first one compiles and makes handles
    rounds = max(3, min(30, int(seconds * len(calls) / max(sum(pair[1] for pair in warm), 1e-9))))
    for turn in range(rounds):
        for k in range(len(calls)):
            index = (turn + k) % len(calls)
            times[index].append(timed(calls[index]))
    return times


def _timed(call: Callable[[], object], device: str) -> float:
    if device == "cpu":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def row_pass_alone(options: argparse.Namespace) -> list[Row]:
    """The row pass over one chunk of logits, and the copy that moves as many bytes (one read, one write).

    A pass whose gradient is wrong, or that does not run, gets no time.
    """
    rows, vocab, device = min(_ROW_PASS_ROWS, options.tokens), options.vocab, options.device
    drawn = torch.randn(rows, vocab, device=device).to(getattr(torch, options.dtype))
    target = torch.randint(0, vocab, (rows,), device=device)
    inputs = RowInputs(target, None, None, torch.full((rows,), 1e-3, device=device))
    logits, space = drawn.clone(), torch.empty_like(drawn)
    found = RowResults.empty(rows, logits, entropy=False, argmax=False)
    truth = _gradient_of_rows(drawn, inputs)
    refused: list[Row] = []
    calls: dict[str, Callable[[], object]] = {"floor: copy": lambda: space.copy_(logits)}
    for backend in ("torch",) if device == "cpu" else ("torch", "triton"):
        if not f"structloss, {backend}".startswith(tuple(options.only)):
            continue
        name = f"row pass, {backend}"
        try:
            kind = TorchRowPass if backend == "torch" else importlib.import_module(f"{_ROOM}.triton").RowPass
            made: RowPass = kind(logits, vocab, RowFormula(), max_rows=rows, entropy=False)
            made(logits, inputs, found)
            errors = relative_errors([logits], [truth])
        except Exception as error:  # as in `compare`
            refused.append({"variant": name, "refused": reason(error)})
            check_device(name, device)
            continue
        logits.copy_(drawn)
        if is_wrong(errors, limits(logits.dtype, [0.0])):
            refused.append({"variant": name, "refused": WRONG, "relative_errors": errors})
        else:
            calls[name] = functools.partial(made, logits, inputs, found)
    moved = 2 * logits.numel() * logits.element_size()
    # The pass leaves gradients, all of them nearly 0, where it found logits: every call gets logits again.
    times = rotate(list(calls.values()), options.seconds, device, prepare=lambda: logits.copy_(drawn))
    return [
        {"variant": name, "rows": rows} | spread(seconds, 1) | {"gb_per_s": moved / statistics.median(seconds) / 1e9}
        for name, seconds in zip(calls, times, strict=True)
    ] + refused


def _gradient_of_rows(logits: torch.Tensor, inputs: RowInputs) -> torch.Tensor:
    """upstream * (softmax - onehot) in float64."""
    gradient = logits.double().softmax(-1)
    gradient[torch.arange(len(logits), device=logits.device), inputs.target] -= 1.0
    return gradient if inputs.upstream is None else gradient * inputs.upstream[:, None]


if __name__ == "__main__":
    sys.exit(main())
