"""How the structural terms grow over training: tokens first, structure later."""

from __future__ import annotations

import math
from numbers import Real
from typing import Literal

Shape = Literal["constant", "linear", "cosine"]


def ramp(progress: float, *, shape: Shape = "linear", end: float = 0.5) -> float:
    """The factor a(progress) of the structural terms, growing from 0 to 1.

    ``linear``: ``min(1, progress / end)``; ``cosine``: ``(1 - cos(pi * min(1, progress / end))) / 2``;
    ``constant``: 1. The caller gives the progress, because a counter in the loss would count micro-batches
    under gradient accumulation and start again after a resume.

    Args:
        progress: share of training done, in [0, 1].
        shape: "constant", "linear" or "cosine".
        end: progress at which the factor reaches 1, in (0, 1].

    Raises:
        ValueError: progress or end out of range, or an unknown shape.

    >>> ramp(0.25), ramp(0.75), ramp(0.0, shape="constant")
    (0.5, 1.0, 1.0)
    """
    if not isinstance(progress, Real) or not 0.0 <= progress <= 1.0:
        raise ValueError(f"progress: wants the share of training done, in [0, 1], got {progress!r}")
    if not 0.0 < end <= 1.0:
        raise ValueError(f"end: wants a progress in (0, 1], got {end}")
    if shape == "constant":
        return 1.0
    fraction = min(1.0, float(progress) / end)
    if shape == "linear":
        return fraction
    if shape == "cosine":
        return (1.0 - math.cos(math.pi * fraction)) / 2.0
    raise ValueError(f"shape: wants 'constant', 'linear' or 'cosine', got {shape!r}")
