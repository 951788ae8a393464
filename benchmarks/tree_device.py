"""The GPU backends of tree alignment: forward, forward with backward, and replayed from a CUDA graph.

Times are those of the device, from events around each call. The truth is the CPU backend of the same run: float64 costs
to 1e-10, then the float32 costs that are timed to single precision. A backend that is wrong, or that does not run, gets
no time and a row that says why.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.timing import WrongResult, spread, worst
from benchmarks.tree_pairs import pair_sets
from structloss.tree_alignment import soft_tree_edit_distance
from structloss.trees import TreeBatch

TEMPERATURES = (1.0, 0.25)
_EXACT_LIMIT = 1e-10  # float64 costs, value relative to n + m
_ROUNDED_LIMIT = 1e-6  # float32 costs


@dataclass(frozen=True)
class Problem:
    """B pairs on the device, and the CPU's answer in float64."""

    a: TreeBatch
    b: TreeBatch
    relabel: Tensor  # (B, N, M) float64
    temperature: float
    value: Tensor
    posterior: Tensor

    def forward(self, backend: str, relabel: Tensor, posterior: bool) -> Any:
        return soft_tree_edit_distance(
            self.a, self.b, relabel=relabel, temperature=self.temperature, return_posterior=posterior, backend=backend
        )

    def both_ways(self, backend: str, relabel: Tensor) -> tuple[Tensor, Tensor]:
        """Value and gradient; the gradient of the summed value is the posterior."""
        leaf = relabel.detach().requires_grad_()
        value = self.forward(backend, leaf, posterior=False)
        return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


def study(options: argparse.Namespace) -> list[dict[str, Any]]:
    device = torch.device(options.device)
    rows: list[dict[str, Any]] = []
    pairs = pair_sets([options.size], max(options.batches), ["unrelated"])[0]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    plan = [(batch, t) for batch in options.batches for t in TEMPERATURES]
    for batch, temperature in tqdm(plan, unit="batch", disable=None):
        problem = make_problem(*(x.select(torch.arange(batch)) for x in pairs.batches()), temperature, device)
        where = {"device": name, "batch": batch, "size": options.size, "temperature": temperature}
        calls: dict[tuple[str, str], Callable[[], object]] = {}
        for backend in options.backends:
            for prepare in (checked_calls, checked_replay):
                try:
                    calls |= {(backend, what): call for what, call in prepare(problem, backend).items()}
                except (WrongResult, RuntimeError) as error:
                    rows.append({**where, "backend": backend, "refused": f"{error}"})
                    break
        mean_cells = sum(pairs.cells[:batch]) / batch
        for (backend, what), seconds in zip(calls, rotate(list(calls.values()), options.rounds, device), strict=True):
            row = {**where, "backend": backend, "call": what, "mean_cells": mean_cells}
            rows.append(row | spread(seconds, 1) | {"peak_bytes": peak_bytes(calls[backend, what], device)})
        rows.append({**where, **on_the_cpu(problem, options.rounds)})
    return rows


def make_problem(a: TreeBatch, b: TreeBatch, temperature: float, device: torch.device) -> Problem:
    relabel = (a.label[:, :, None] != b.label[:, None, :]).double()
    value, posterior = soft_tree_edit_distance(
        a, b, relabel=relabel, temperature=temperature, return_posterior=True, backend="cpu"
    )
    moved = (x.to(device) for x in (relabel, value, posterior))
    relabel, value, posterior = moved
    return Problem(a.to(device), b.to(device), relabel, temperature, value, posterior)


def checked_calls(problem: Problem, backend: str) -> dict[str, Callable[[], object]]:
    """What is timed, each of it checked. Raises WrongResult, or RuntimeError where the backend serves no such call."""
    single = problem.relabel.float()
    for relabel, limit in ((problem.relabel, _EXACT_LIMIT), (single, _ROUNDED_LIMIT)):
        check(problem, problem.forward(backend, relabel, posterior=True), limit, f"{backend} forward")
        check(problem, problem.both_ways(backend, relabel), limit, f"{backend} backward")
    return {
        "value": functools.partial(problem.forward, backend, single, False),
        "value and posterior": functools.partial(problem.forward, backend, single, True),
        "forward and backward": functools.partial(problem.both_ways, backend, single),
    }


def check(problem: Problem, found: tuple[Tensor, Tensor], limit: float, what: str) -> None:
    value, posterior = found
    nodes = problem.a.sizes + problem.b.sizes
    errors = [
        ((value.double() - problem.value) / nodes).abs().max().item(),
        (posterior.double() - problem.posterior).abs().max().item(),
    ]
    if not worst(errors) <= limit:
        raise WrongResult(f"{what}: errors of value and posterior {errors}, at most {limit} is right")


def checked_replay(problem: Problem, backend: str) -> dict[str, Callable[[], object]]:
    """Replay of a captured forward call. Raises RuntimeError where it cannot be captured: it waits for the device."""
    if not problem.relabel.is_cuda:
        return {}
    relabel = problem.relabel.float()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        problem.forward(backend, relabel, posterior=True)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = problem.forward(backend, relabel, posterior=True)
    for tensor in result:
        tensor.zero_()
    graph.replay()
    check(problem, result, _ROUNDED_LIMIT, f"{backend} CUDA graph")
    return {"value and posterior, CUDA graph": graph.replay}


def rotate(calls: list[Callable[[], object]], rounds: int, device: torch.device) -> list[list[float]]:
    """Seconds of every call in rotating order; every call has run before."""
    seconds: list[list[float]] = [[] for _ in calls]
    for turn in range(rounds):
        for k in range(len(calls)):
            index = (turn + k) % len(calls)
            seconds[index].append(clock(calls[index], device))
    return seconds


def clock(call: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    first.record()
    call()
    last.record()
    last.synchronize()
    return 1e-3 * first.elapsed_time(last)


def peak_bytes(call: Callable[[], object], device: torch.device) -> int | None:
    """Rise of the peak of device memory in one call: results and workspace."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def on_the_cpu(problem: Problem, rounds: int) -> dict[str, Any]:
    """The CPU backend with the threads that torch has, value and posterior: what a user has without a GPU backend."""
    a, b, relabel = problem.a.to("cpu"), problem.b.to("cpu"), problem.relabel.float().cpu()

    def call() -> object:
        return soft_tree_edit_distance(
            a, b, relabel=relabel, temperature=problem.temperature, return_posterior=True, backend="cpu"
        )

    call()
    seconds = [clock(call, torch.device("cpu")) for _ in range(min(rounds, 3))]
    return {"backend": "cpu", "threads": torch.get_num_threads(), "call": "value and posterior"} | spread(seconds, 1)
