"""From rows with verdicts to numbers with intervals, and what must stand beside each of them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

import numpy as np

from structloss import metrics
from structloss.metrics.pass_at_k import estimates

Row = dict[str, Any]

KS = (1, 2, 5, 10, 25, 50, 100)
STRUCTURE = ("syntax_match", "dataflow_match", "tsed")
# A number without all of these cannot be compared with another one.
CONDITIONS = ("set", "version", "problems_sha256", "prompt", "extractor", "temperature", "max_new_tokens", "isolation")


class Tally:
    """Counts of one evaluation by problem. It grows with the problems, not with the samples.

    A row has "id" (or "task_id") of its problem and "status"; where the set has plus tests, "status" is the verdict on
    all tests and "base" that on the base tests alone. Structure metrics are there or None.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        self.samples: Counter[str] = Counter()
        self.passed: Counter[str] = Counter()
        self.base: Counter[str] = Counter()
        self.has_base = False
        self.statuses: Counter[str] = Counter()
        self._sums: dict[str, dict[str, tuple[float, int]]] = {name: {} for name in STRUCTURE}
        for row in rows:
            self.add(row)

    def add(self, row: Mapping[str, Any]) -> None:
        name = str(row["task_id"] if "task_id" in row else row["id"])
        self.samples[name] += 1
        self.passed[name] += row["status"] == "passed"
        if "base" in row:
            self.has_base = True
            self.base[name] += row["base"] == "passed"
        self.statuses[row["status"]] += 1
        for metric, sums in self._sums.items():
            if (value := row.get(metric)) is not None:
                total, count = sums.get(name, (0.0, 0))
                sums[name] = total + value, count + 1

    def structure(self, metric: str) -> dict[str, float]:
        """The mean of a structure metric over the samples of each problem where it is defined."""
        return {name: total / count for name, (total, count) in self._sums[metric].items()}

    def pass_at_k(self, k: int, *, base: bool = False) -> dict[str, float]:
        """Unbiased pass@k by problem."""
        passed = self.base if base else self.passed
        counts = np.array([[n, passed[name]] for name, n in self.samples.items()], dtype=np.int64)
        return dict(zip(self.samples, estimates(counts[:, 0], counts[:, 1], k).tolist(), strict=True))

    def ks(self) -> list[int]:
        """The k that every problem has enough samples for."""
        return [k for k in KS if k <= min(self.samples.values())]

    def summary(self) -> Row:
        """pass@k with intervals, structure metrics with the problems where they are defined, counts of statuses."""
        if not self.samples:
            raise ValueError("rows: got none, wants at least one sample with a verdict")
        n = sorted(set(self.samples.values()))
        first = self._rates(self.passed)
        return {
            "problems": len(self.samples),
            "samples": self.samples.total(),
            "n": n[0] if len(n) == 1 else [n[0], n[-1]],
            "pass@1": first["1"]["value"],
            "low": first["1"]["low"],
            "high": first["1"]["high"],
            "pass@k": first,
            **({"base pass@k": self._rates(self.base)} if self.has_base else {}),
            "statuses": dict(self.statuses.most_common()),
            **{metric: self._mean(metric) for metric in STRUCTURE},
        }

    def _rates(self, passed: Counter[str]) -> dict[str, Row]:
        samples, correct = list(self.samples.values()), [passed[name] for name in self.samples]
        rates = {k: metrics.pass_at_k(samples, correct, k) for k in self.ks()}
        return {str(k): {"value": rate.value, "low": rate.low, "high": rate.high} for k, rate in rates.items()}

    def _mean(self, metric: str) -> Row:
        values = list(self.structure(metric).values())
        if not values:
            return {"mean": None, "n": 0}
        low, high = metrics.bootstrap_interval(values)
        return {"mean": fmean(values), "low": low, "high": high, "n": len(values)}


def problems_hash(problems: Iterable[Mapping[str, Any]]) -> str:
    """What tells two sets of the same name apart: prompts and tests of all problems, in order (16 hexadecimals)."""
    total = hashlib.sha256()
    for problem in problems:
        total.update(json.dumps([problem["id"], problem["prompt"], problem["tests"]]).encode() + b"\n")
    return total.hexdigest()[:16]


def conditions_line(result: Mapping[str, Any]) -> str:
    """One line that says under which conditions the numbers of `result` hold."""
    isolation = result.get("isolation")
    if isinstance(isolation, Mapping):
        missing = [layer for layer, holds in isolation.items() if holds is False]
        isolation = f"without {', '.join(missing)}" if missing else f"{len(isolation)} walls hold"
    # The length limit of a generation that this program did not make is not known to it.
    shown: Row = {
        "set": f"{result.get('set')} {result.get('version')} ({result.get('problems_sha256')})",
        "problems": result.get("problems"),
        "n": result.get("n"),
        "temperature": result.get("temperature"),
        "max new tokens": result.get("max_new_tokens"),
        "prompt": result.get("prompt"),
        "extractor": result.get("extractor"),
        "isolation": isolation,
    }
    return ", ".join(f"{name} {'not known' if value is None else value}" for name, value in shown.items())
