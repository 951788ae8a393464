"""The CUDA build: the extension loads without a GPU and says what it finds."""

from __future__ import annotations

import importlib

import pytest
import torch

try:
    cuda = importlib.import_module("structloss._C_cuda")
except ImportError:
    cuda = None

needs_extension = pytest.mark.skipif(cuda is None, reason="structloss._C_cuda was not built (no nvcc)")


@needs_extension
def test_it_loads_and_counts_devices() -> None:
    count = cuda.device_count()
    assert count >= -1
    assert (count > 0) == torch.cuda.is_available() or torch.version.cuda is None


@needs_extension
def test_a_cuda_error_is_an_exception_with_its_text() -> None:
    pairs = cuda.TreePairs(
        **dict.fromkeys(("leftmost_a", "leftmost_b", "sizes_a", "sizes_b", "relabel", "delete", "insert"), 0),
        batch=1,
        width_a=1,
        width_b=1,
        double_costs=False,
        method=0,
        max_cells=1,
        table_columns=2,
    )
    with pytest.raises(RuntimeError, match=r"^choose_launch: \w+"):
        cuda.choose_launch(pairs, 0, False, 1 << 20, 33)  # threads come in warps of 32
