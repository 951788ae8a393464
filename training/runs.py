"""The run folder: everything that a run was made from and made, under fixed names."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from training.config import ConfigError, RunConfig
from training.threads import usable_cores

PACKAGES = (
    "structloss",
    "torch",
    "transformers",
    "accelerate",
    "tokenizers",
    "tree-sitter",
    "tree-sitter-python",
    "numpy",
)


def write_json(path: Path, value: Any) -> None:
    """Write whole or not at all: a killed run leaves no half file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    temporary.replace(path)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def package_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def commit() -> str:
    """The repository's commit, with "+changes" when the tree differs from it; "unknown" outside a checkout."""

    def git(*arguments: str) -> str:
        run = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True)
        return run.stdout.strip() if run.returncode == 0 else ""

    try:
        head = git("rev-parse", "HEAD")
        return (head + ("+changes" if git("status", "--porcelain") else "")) if head else "unknown"
    except FileNotFoundError:
        return "unknown"


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted names."""
    names: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        # An empty mapping is a value: an arm without overrides must not vanish from the comparison.
        names.update(flat(value, f"{name}.") if isinstance(value, dict) and value else {name: value})
    return names


class RunFolder:
    """Paths of one run. Made by `create`, which refuses a folder that holds another configuration."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def create(cls, root: Path, config: RunConfig) -> RunFolder:
        """Open the folder for this configuration, making it when it is not there.

        Raises:
            ConfigError: the folder holds a run with another configuration.
        """
        run = cls(root)
        resolved = config.model_dump(mode="json")
        if run.config_path.is_file():
            before, now = flat(yaml.safe_load(run.config_path.read_text())), flat(resolved)
            changed = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
            if changed:
                name = changed[0]
                raise ConfigError(
                    f"{root} holds a run with other values of {', '.join(changed)} "
                    f"({name} was {before.get(name)!r}, now {now.get(name)!r}); "
                    "give another folder with --run, or delete it"
                )
            return run
        root.mkdir(parents=True, exist_ok=True)
        environment = {
            "command": ["python", "-m", "training", *sys.argv[1:]],
            "commit": commit(),
            "versions": package_versions(),
            "platform": platform.platform(),
            "cores": usable_cores(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        write_json(run.environment_path, environment)
        unfinished = root / ".config.yaml"
        unfinished.write_text(yaml.safe_dump(resolved, sort_keys=False))
        unfinished.replace(run.config_path)
        return run

    @classmethod
    def existing(cls, root: Path) -> tuple[RunFolder, RunConfig]:
        """Open a folder that holds a run, with its configuration."""
        run = cls(root)
        if not run.config_path.is_file():
            raise ConfigError(f"{root} is no run folder: it has no config.yaml")
        try:
            return run, RunConfig.model_validate(yaml.safe_load(run.config_path.read_text()))
        except ValidationError as error:
            raise ConfigError(f"{run.config_path} is not valid for this version: {error}") from None

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for this process; released also when the process dies.

        Raises:
            ConfigError: another process works on this run.
        """
        with (self.root / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(f"another process is working on {self.root}; wait for it, or use --run") from None
            yield

    @property
    def config_path(self) -> Path:
        return self.root / "config.yaml"

    @property
    def environment_path(self) -> Path:
        return self.root / "environment.json"

    @property
    def problems_path(self) -> Path:
        return self.root / "data" / "problems.jsonl"

    @property
    def traces_path(self) -> Path:
        return self.root / "data" / "traces.jsonl"

    @property
    def candidates_path(self) -> Path:
        return self.root / "data" / "candidates.jsonl"

    @property
    def data_summary_path(self) -> Path:
        return self.root / "data" / "summary.json"

    @property
    def verified_path(self) -> Path:
        return self.root / "verified" / "traces.jsonl"

    @property
    def verified_candidates_path(self) -> Path:
        return self.root / "verified" / "candidates.jsonl"

    @property
    def verified_summary_path(self) -> Path:
        return self.root / "verified" / "summary.json"

    @property
    def tokenizer_path(self) -> Path:
        return self.root / "tokenizer"

    @property
    def timings_path(self) -> Path:
        return self.root / "timings.json"

    @property
    def report_path(self) -> Path:
        return self.root / "report.html"

    def arm(self, name: str) -> Path:
        """Folder of a trained arm or of a baseline."""
        return self.root / "arms" / name

    def record_stage(self, stage: str, seconds: float) -> None:
        """Add a stage's wall time and the machine's load to the run's timings.

        Calls add up; a stage that was interrupted is not recorded.
        """
        timings = read_json(self.timings_path) if self.timings_path.is_file() else {}
        before = timings.get(stage, {"seconds": 0.0})
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        timings[stage] = {"seconds": round(before["seconds"] + seconds, 2), "load_1min": load}
        write_json(self.timings_path, timings)
