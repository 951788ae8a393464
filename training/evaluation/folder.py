"""A folder of one evaluation: held by one process at a time, refused where it was made under other settings."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from training.config import ConfigError
from training.runs import flat, read_json, write_json


@contextlib.contextmanager
def held_folder(out: Path, name: str, settings: dict[str, Any]) -> Iterator[None]:
    """Holds `out` for this process, with `settings` in its file `name`; released also when the process dies.

    Raises ConfigError if another process holds it, or if the file has other settings: it names them.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another process is working on {out}; wait for it, or use --out") from None
        path = out / name
        if path.is_file():
            before, now = flat(read_json(path)), flat(settings)
            if changed := sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key)):
                first = changed[0]
                raise ConfigError(
                    f"{out} was made with other values of {', '.join(changed)} ({first} was {before.get(first)!r}, "
                    f"now {now.get(first)!r}); give another folder with --out, or delete it"
                )
        else:
            write_json(path, settings)
        yield
