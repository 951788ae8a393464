"""Time, memory and error of one forward and backward of the LM-head loss, against what else a user can call.

    python -m benchmarks.lm_head [--out FILE.json] [--tokens N] [--width D] [--vocab V] [--masked SHARE] ...

Variants run interleaved, the order rotating from round to round, so that a drifting clock hits all of them. The floor
is the bare GEMMs on the kept rows: two when the head is frozen, three when it is trained. A variant whose loss or
gradients are wrong in this run gets no time, and the script then fails.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from structloss.lm_head import linear_cross_entropy

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
# Relative norm error against float64 that is taken for right. A bfloat16 variant may also be as far off as 1.5x the
# eager computation of the same run, which is what a user has today.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-3}


def main() -> int:
    options = parse_arguments()
    device = torch.device(options.device)
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[options.dtype]
    report: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "arguments": vars(options) | {"out": None},
        "scenarios": [],
    }
    failed = False
    for head in ("frozen", "trainable") if options.head == "both" else (options.head,):
        rows, wrong = run_scenario(options, device, dtype, frozen=head == "frozen")
        failed |= wrong
        report["scenarios"].append({"head": head, "variants": rows})
        print_table(head, rows, options)
    if options.out:
        Path(options.out).write_text(json.dumps(report, indent=1) + "\n")
    return int(failed)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("--masked", type=float, default=0.5, help="share of ignored tokens, at the front")
    parser.add_argument("--head", choices=("frozen", "trainable", "both"), default="both")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--chunk-bytes", type=int, default=None)
    parser.add_argument("--torch-auto", action="store_true", help="also time torch's own choice of chunk")
    parser.add_argument("--out", default=None)
    return parser.parse_args()


def fused_peer(
    fused: Callable[..., Tensor], plan: Any, keep: Tensor | None, x: Tensor, weight: Tensor, target: Tensor
) -> Tensor:
    if keep is not None:
        x, target = x[keep], target[keep]
    return fused(x, weight, target, ignore_index=-100, options=plan)


def peers(chunk_bytes: int | None, keep: Tensor, *, torch_auto: bool) -> dict[str, Loss]:
    def eager(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(x, weight).float(), target)

    def eager_compacted(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(x[keep], weight).float(), target[keep])

    def structloss_call(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        return linear_cross_entropy(x, weight, target, chunk_bytes=chunk_bytes)

    found: dict[str, Loss] = {
        "structloss": structloss_call,
        "eager": eager,
        "eager on x[keep]": eager_compacted,
    }
    fused = getattr(F, "linear_cross_entropy", None)
    chunking = getattr(torch.nn, "LinearCrossEntropyOptions", None)
    if fused is not None and chunking is not None:
        # Its own choice of chunk is a few rows here, many times slower: measured only when asked for.
        plans = {"torch, 256-row chunks": chunking(batch_chunk_size=256)}
        if torch_auto:
            plans["torch, auto chunks"] = chunking()
        for name, plan in plans.items():
            found[name] = functools.partial(fused_peer, fused, plan, None)
            found[f"{name}, x[keep]"] = functools.partial(fused_peer, fused, plan, keep)
    return found


def run_scenario(
    options: argparse.Namespace, device: torch.device, dtype: torch.dtype, *, frozen: bool
) -> tuple[list[dict[str, Any]], bool]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(options.tokens, options.width, generator=generator).to(device, dtype)
    weight = torch.randn(options.vocab, options.width, generator=generator) / options.width**0.5
    weight = weight.to(device, dtype)
    target = torch.randint(0, options.vocab, (options.tokens,), generator=generator).to(device)
    target[: round(options.masked * options.tokens)] = -100
    keep = (target != -100).nonzero().squeeze(1)
    inputs = [x.requires_grad_(), weight.requires_grad_(not frozen)]
    leaves = [t for t in inputs if t.requires_grad]

    def step(loss: Loss) -> list[Tensor]:
        value = loss(x, weight, target)
        return [value.detach(), *torch.autograd.grad(value, leaves)]

    variants = peers(options.chunk_bytes, keep, torch_auto=options.torch_auto)
    wide = [t.detach().double().requires_grad_(t.requires_grad) for t in inputs]
    exact = F.cross_entropy(F.linear(wide[0][keep], wide[1]), target[keep])
    truth = [exact.detach(), *torch.autograd.grad(exact, [t for t in wide if t.requires_grad])]
    del exact, wide
    errors = {
        name: [relative_error(a, b) for a, b in zip(step(loss), truth, strict=True)] for name, loss in variants.items()
    }
    limits = [max(_TOLERANCE[dtype], 1.5 * e if dtype != torch.float32 else 0.0) for e in errors["eager"]]
    wrong = {n for n, e in errors.items() if any(not v <= limit for v, limit in zip(e, limits, strict=True))}

    calls: dict[str, Callable[[], object]] = {
        f"floor: {2 if frozen else 3} GEMMs": floor(x, weight, keep, frozen=frozen)
    }
    for name, loss in variants.items():
        if name not in wrong:
            calls[name] = functools.partial(step, loss)
    times = interleave(calls, options.rounds, device)
    peak = {name: peak_bytes(call, device) for name, call in calls.items() if not name.startswith("floor")}
    base = statistics.median(next(iter(times.values())))
    rows = [
        {
            "variant": name,
            "median_ms": 1e3 * statistics.median(seconds),
            "fastest_ms": 1e3 * min(seconds),
            "slowest_ms": 1e3 * max(seconds),
            "times_the_floor": statistics.median(seconds) / base,
            "peak_mib": peak[name] / 2**20 if name in peak else None,
            "relative_errors": errors.get(name),
        }
        for name, seconds in times.items()
    ]
    rows += [{"variant": name, "refused": "wrong result", "relative_errors": errors[name]} for name in sorted(wrong)]
    return rows, bool(wrong)


def floor(x: Tensor, weight: Tensor, keep: Tensor, *, frozen: bool) -> Callable[[], object]:
    """Only the GEMMs, on the kept rows, into buffers that exist already."""
    rows, head = x.detach()[keep], weight.detach()
    logits = rows @ head.t()
    back, total = torch.empty_like(rows), torch.empty_like(head)

    def run() -> None:
        torch.mm(rows, head.t(), out=logits)
        torch.mm(logits, head, out=back)
        if not frozen:
            torch.mm(logits.t(), rows, out=total)

    return run


def interleave(calls: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        calls[name]()
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            synchronize(device)
            start = time.perf_counter()
            calls[name]()
            synchronize(device)
            times[name].append(time.perf_counter() - start)
    return times


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Most bytes held during the call above what was held before it: results and workspace."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    events = recorded.profiler.kineto_results.events()
    held = peak = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def relative_error(value: Tensor, truth: Tensor) -> float:
    return float((value.double() - truth).norm() / truth.norm())


def print_table(head: str, rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    print(
        f"\n{head} head, N={options.tokens} D={options.width} V={options.vocab}, {options.masked:.0%} ignored, "
        f"{options.dtype} on {options.device}, forward + backward"
    )
    print(f"{'variant':28}{'median ms':>11}{'min-max':>17}{'x floor':>9}{'peak MiB':>10}  worst relative error")
    for row in rows:
        if "refused" in row:
            print(f"{row['variant']:28}  no time: {row['refused']}, errors {row['relative_errors']}")
            continue
        spread = f"{row['fastest_ms']:.0f}-{row['slowest_ms']:.0f}"
        memory = "" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}"
        error = "" if row["relative_errors"] is None else f"{max(row['relative_errors']):.1e}"
        print(
            f"{row['variant']:28}{row['median_ms']:11.1f}{spread:>17}{row['times_the_floor']:9.2f}{memory:>10}  {error}"
        )


if __name__ == "__main__":
    sys.exit(main())
