"""Runs functions of a test module in two gloo processes that start once for all of them."""

from __future__ import annotations

import importlib
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

NOT_RUN = "not run: an earlier check failed, or this process did not get here in time"
# A rank that waits for one that has failed gives up after the first, the test after the second.
_COLLECTIVE_SECONDS, _TOTAL_SECONDS = 20, 120


def run_in_two_processes(module: str, checks: list[str], folder: Path) -> dict[str, str]:
    """What went wrong in each check on either rank, "" where nothing did. The ranks stop at the first failure."""
    context = mp.get_context("spawn")
    processes = [context.Process(target=_work, args=(rank, module, checks, str(folder))) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(_TOTAL_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
    return {check: "".join(_report(folder, check, rank) for rank in range(2)) for check in checks}


def _report(folder: Path, check: str, rank: int) -> str:
    path = folder / f"{check}.{rank}"
    text = path.read_text() if path.exists() else NOT_RUN
    return f"\nrank {rank}: {text}" if text else ""


def _work(rank: int, module: str, checks: list[str], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(f"{folder}/store", 2),
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=_COLLECTIVE_SECONDS),
    )
    functions = importlib.import_module(module)
    for check in checks:
        torch.manual_seed(0)
        try:
            getattr(functions, check)()
        except BaseException:
            Path(folder, f"{check}.{rank}").write_text(traceback.format_exc())
            return
        Path(folder, f"{check}.{rank}").write_text("")
    dist.destroy_process_group()
