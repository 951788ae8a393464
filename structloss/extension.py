"""Whether the compiled extension is there. Without it everything works through torch, more slowly."""

from __future__ import annotations

import importlib


def has_extension() -> bool:
    """True when the C++ extension `structloss._C` was built and can be loaded."""
    try:
        importlib.import_module("structloss._C")
    except ImportError:
        return False
    return True
