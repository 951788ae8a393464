"""The CUDA kernels of tree alignment, built for the host: the sources of csrc/cuda as they are, with a header in the
place of CUDA's that runs every thread of a block as a fiber (cuda_runtime.h). For tests."""

from __future__ import annotations

import ctypes
import subprocess
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

HERE = Path(__file__).parent
CSRC = HERE.parents[2] / "csrc"
STATUS = (
    "BAD_SIZES",
    "BAD_LEFTMOST_A",
    "BAD_LEFTMOST_B",
    "BAD_TEMPERATURE",
    "BAD_DELETE",
    "BAD_INSERT",
    "BAD_RELABEL",
    "COSTS_TOO_LARGE",
    "TOO_MANY_CELLS",
    "TOO_MANY_COLUMNS",
)


class TreePairs(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "width_a", "width_b")),
        *((name, ctypes.c_void_p) for name in ("leftmost_a", "leftmost_b", "sizes_a", "sizes_b")),
        *((name, ctypes.c_void_p) for name in ("relabel", "delete", "insert")),
        *((name, ctypes.c_int32) for name in ("double_costs", "method")),
        *((name, ctypes.c_int64) for name in ("max_cells", "table_columns")),
    ]


class Launch(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("blocks", "threads", "shared_bytes")),
        ("workspace_bytes", ctypes.c_int64),
    ]


class HostDevice:
    """In the place of structloss.tree_alignment.cuda._Device."""

    type = "cpu"
    is_capturing = False

    @staticmethod
    def guard(device: torch.device) -> AbstractContextManager[None]:
        return nullcontext()

    @staticmethod
    def stream() -> int:
        return 0

    @classmethod
    def capturing(cls) -> bool:
        return cls.is_capturing


class HostKernels:
    """In the place of structloss._C_cuda. `threads` a block, 0 for the kernels' own choice."""

    TreePairs = TreePairs

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))
        self.threads = 0
        for code, name in enumerate(STATUS, start=1):
            setattr(self, name, code)
        self.reset()

    def reset(self, seed: int = 0, threads: int = 0, shared_bytes: int = 64 << 10, processors: int = 2) -> None:
        """Another order of threads, and another device."""
        self.threads = threads
        self.library.reset_device(seed, shared_bytes, processors)

    def choose_launch(self, pairs: TreePairs, arithmetic: int, detail: bool, memory_budget: int) -> Launch:
        launch = Launch()
        args = (arithmetic, int(detail), ctypes.c_int64(memory_budget), self.threads, ctypes.byref(launch))
        _check(self.library.host_choose_launch(ctypes.byref(pairs), *args))
        return launch

    def plan_tree_alignment(
        self, pairs: TreePairs, cells: int, columns: int, used: int, status: int, stream: int
    ) -> None:
        _check(self.library.host_plan(ctypes.byref(pairs), *map(ctypes.c_void_p, (cells, columns, used, status))))

    def soft_tree_alignment(
        self,
        pairs: TreePairs,
        temperature: int,
        value: int,
        posterior: int,
        entropy: int,
        used: int,
        status: int,
        arithmetic: int,
        launch: Launch,
        workspace: int,
        stream: int,
    ) -> None:
        addresses = map(ctypes.c_void_p, (temperature, value, posterior, entropy, used, status))
        _check(self.library.host_soft(ctypes.byref(pairs), *addresses, arithmetic, ctypes.byref(launch)))

    def hard_tree_alignment(
        self,
        pairs: TreePairs,
        distance: int,
        match_a: int,
        match_b: int,
        used: int,
        status: int,
        launch: Launch,
        workspace: int,
        stream: int,
    ) -> None:
        addresses = map(ctypes.c_void_p, (distance, match_a, match_b, used, status))
        _check(self.library.host_hard(ctypes.byref(pairs), *addresses, ctypes.byref(launch)))

    def pairs_again(self) -> int:
        """Pairs of the last soft alignment that plain doubles could not hold."""
        return self.library.host_pairs_again()

    @staticmethod
    def float64_slowdown() -> int:
        return 2


def _check(code: int) -> None:
    reason = {702: "a barrier that some threads never reach", 1000: "a write behind the workspace"}
    if code != 0:
        raise RuntimeError(reason.get(code, f"error {code}"))


def build(compiler: str, folder: Path) -> HostKernels:
    library = folder / "cuda_on_host.so"
    flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", f"-I{HERE}", f"-I{CSRC}"]
    subprocess.run([compiler, *flags, str(HERE / "kernels.cpp"), "-o", str(library)], check=True)
    return HostKernels(library)
