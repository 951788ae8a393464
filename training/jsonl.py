"""JSON lines: read (gzip too), write whole files atomically, append rows that survive a kill."""

from __future__ import annotations

import gzip
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType
from typing import IO, Any


def read_jsonl(path: str | Path, *, tolerate_cut_end: bool = False) -> Iterator[dict[str, Any]]:
    """Yields the rows of a `.jsonl` or `.jsonl.gz` file; blank lines are skipped.

    `tolerate_cut_end` drops a last line without its line break, which is what a killed writer leaves. Raises
    ValueError, with the line's number, for a line that is not a JSON object.
    """
    path = Path(path)
    with _open_bytes(path) as file:
        for number, line in enumerate(file, 1):
            if tolerate_cut_end and not line.endswith(b"\n"):
                return
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}:{number} is not JSON: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{number} must be a JSON object, got {type(row).__name__}")
            yield row


def _open_bytes(path: Path) -> IO[bytes]:
    return io.BufferedReader(gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Writes `rows` to `path` and returns their number; the file appears whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    count = 0
    try:
        with part.open("wb") as file:
            zipped = path.suffix == ".gz"
            with gzip.GzipFile(fileobj=file, mode="wb", mtime=0) if zipped else nullcontext(file) as out:
                for row in rows:
                    out.write(_line(row))
                    count += 1
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return count


class JsonlAppender:
    """Appends rows to a plain `.jsonl` file, each in one write, so that a kill cuts at most the last line.

    Opening mends such a cut: bytes after the last line break are removed. One writer a file at a time.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.suffix == ".gz":
            raise ValueError(f"path: cannot append to a gzip file, got {self.path}")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        os.ftruncate(self._file, self._whole_lines())

    def _whole_lines(self) -> int:
        end = os.fstat(self._file).st_size
        while end:
            start = max(end - (1 << 16), 0)
            found = os.pread(self._file, end - start, start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
        return 0

    def append(self, row: Mapping[str, Any]) -> None:
        """Writes one row; raises OSError if the disk takes only a part of it."""
        line = _line(row)
        written = os.write(self._file, line)
        if written != len(line):
            raise OSError(f"{self.path}: wrote {written} of {len(line)} bytes")

    def sync(self) -> None:
        """Waits until every row is on the disk: a kill loses no written row, a power cut those since the last sync."""
        os.fsync(self._file)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> JsonlAppender:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row).encode() + b"\n"
