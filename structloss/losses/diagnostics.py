"""What each term of the loss does and costs: the gradient that it sends into the trunk, and its time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Diagnostics:
    """Measures the parts of one forward pass, and of its backward, into `metrics`; where `on` is false it does nothing.

    "seconds_gap", "seconds_token", "seconds_align", "seconds_path": time of a part of the forward. An accelerator is
        waited for before and after each part, so ask for it now and then rather than in every step.
    "gradient_norm_token" and so on: norm of the gradient of the hidden states that came through the term, weight and
        upstream factors included. There after the backward. L_kd, and L_path where it shares the pass, are in "token".

    Args:
        hidden: the hidden states.
    """

    def __init__(self, hidden: torch.Tensor, *, on: bool) -> None:
        self.hidden = hidden
        self.on = on
        self.metrics: dict[str, torch.Tensor] = {}

    def states(self, term: str) -> torch.Tensor:
        """The hidden states as `term` should read them."""
        if not self.on or not self.hidden.requires_grad:
            return self.hidden
        states = self.hidden.view_as(self.hidden)

        def store(gradient: torch.Tensor) -> None:
            self.metrics[f"gradient_norm_{term}"] = torch.linalg.vector_norm(gradient.detach(), dtype=torch.float32)

        states.register_hook(store)
        return states

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        if not self.on:
            yield
            return
        self._wait()
        started = time.perf_counter()
        yield
        self._wait()
        self.metrics[f"seconds_{part}"] = torch.tensor(time.perf_counter() - started)

    def _wait(self) -> None:
        if self.hidden.device.type != "cpu":
            torch.accelerator.synchronize(self.hidden.device)
