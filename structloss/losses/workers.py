"""Reads the student's own code in the background, while the device computes.

Threads, not processes: the alignment is most of the work and runs without the interpreter's lock, trees need not be
pickled, and nothing is started or forked. `python -m benchmarks.own_code_workers` measures both.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

import numpy as np

from structloss.losses.collator import Example
from structloss.losses.own_code import OwnCode, OwnCodeReader

_LIVE: weakref.WeakSet[OwnCodeWorkers] = weakref.WeakSet()


class OwnCodeWorkers:
    """A bounded pool of threads around an `OwnCodeReader`. One thread of the caller uses it.

    Args:
        read: what the threads call.
        threads: how many.
        max_pending: batches that may wait or be in work; `submit` waits where there are more, so that memory stays
            bounded when reading is slower than training.

    An error of a thread is raised once by the next call of any method but `close`, and whenever its batch is asked for.
    As a context manager it closes itself. At the interpreter's exit the batches that are pending are finished. A fork
    waits until the threads are idle; a forked process may take what was submitted before, but submits nothing.
    """

    def __init__(self, read: OwnCodeReader, threads: int = 1, max_pending: int = 4) -> None:
        for name, value in (("threads", threads), ("max_pending", max_pending)):
            if value < 1:
                raise ValueError(f"{name}: wants at least 1, got {value}")
        self.max_pending = max_pending
        self._read = read
        self._pending: list[Future[list[OwnCode]]] = []
        self._process = os.getpid()
        self._pool: ThreadPoolExecutor | None = ThreadPoolExecutor(threads, thread_name_prefix="structloss-own-code")
        _LIVE.add(self)

    def submit(self, examples: Sequence[Example], ids: Callable[[], Sequence[np.ndarray]]) -> Future[list[OwnCode]]:
        """Hand over a batch; `ids` gives the code tokens of each example and is called by the thread.

        Raises:
            OwnCodeError: an earlier batch failed. RuntimeError: closed, or in a forked process.
        """
        if os.getpid() != self._process:
            raise RuntimeError(
                "workers: this is a forked process (a DataLoader worker?), which has no threads; "
                "update the cache in the training process"
            )
        self._collect()
        while len(self._pending) >= self.max_pending:
            wait(self._pending, return_when=FIRST_COMPLETED)
            self._collect()
        if self._pool is None:
            raise RuntimeError("workers: closed; make a new cache to go on")
        future = self._pool.submit(lambda: self._read(examples, ids()))
        self._pending.append(future)
        return future

    def result(self, future: Future[list[OwnCode]]) -> list[OwnCode]:
        """What a batch gave; waits for it."""
        wait([future])
        self._collect()
        return future.result()

    def drain(self) -> None:
        """Wait until nothing is pending."""
        wait(self._pending)
        self._collect()

    def close(self) -> None:
        """Finish what is pending and end the threads. Closing twice is no error."""
        if self._pool is not None and os.getpid() == self._process:
            self._pool.shutdown()
        self._pool = None

    def _collect(self) -> None:
        for future in list(self._pending):
            if future.done():
                self._pending.remove(future)
                future.result()  # raises the first error; those behind it stay for the next call

    def __enter__(self) -> OwnCodeWorkers:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _idle_before_fork() -> None:
    """A child would inherit locks that a thread holds, and never see them released."""
    for workers in list(_LIVE):
        wait(list(workers._pending))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_idle_before_fork)
