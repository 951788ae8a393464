"""Progress with an ETA: a bar on the terminal, or a small file that another process shows as a bar."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import TracebackType

from tqdm import tqdm

from training.runs import read_json, write_json


def _interval() -> float:
    """Seconds between redraws: a log file should not fill with bars."""
    return 0.2 if sys.stderr.isatty() else 15.0


class Progress:
    """Counts work done.

    Args:
        label: what is being done. total: how much. unit: of the count.
        file: when given, progress goes there (at most twice a second) and no bar is drawn.
    """

    def __init__(self, label: str, total: int, *, unit: str = "it", file: Path | None = None) -> None:
        self.label, self.total, self.file = label, total, file
        self.done = 0
        self._written = 0.0
        self._bar: tqdm | None = None
        if file is None:
            self._bar = tqdm(
                total=total, desc=label, unit=unit, unit_scale=True, smoothing=0.1, mininterval=_interval()
            )
        self._write(force=True)

    def update(self, amount: int) -> None:
        self.done += amount
        if self._bar is not None:
            self._bar.update(amount)
        self._write()

    def _write(self, force: bool = False) -> None:
        if self.file is not None and (force or time.monotonic() - self._written > 0.5):
            write_json(self.file, {"label": self.label, "done": self.done, "total": self.total})
            self._written = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        self._write(force=True)


class Watcher:
    """Shows the progress files of several processes as bars."""

    def __init__(self, files: dict[str, Path]) -> None:
        self._files = files
        self._bars = {
            name: tqdm(desc=name, position=row, smoothing=0.1, mininterval=_interval(), unit_scale=True)
            for row, name in enumerate(files)
        }
        self._labels: dict[str, str] = {}

    def refresh(self) -> None:
        for name, file in self._files.items():
            if not file.is_file():
                continue
            state, bar = read_json(file), self._bars[name]
            if self._labels.get(name) != state["label"]:
                self._labels[name] = state["label"]
                bar.reset(total=state["total"])
                bar.set_description(f"{name}: {state['label']}")
            bar.update(state["done"] - bar.n)

    def close(self) -> None:
        self.refresh()
        for bar in self._bars.values():
            bar.close()
