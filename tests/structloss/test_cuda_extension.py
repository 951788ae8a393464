"""The CUDA build: the extension loads without a GPU, and its kernel is right where there is one."""

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
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("rows", "columns"), [(0, 5), (1, 1), (3, 1), (31, 33), (257, 1009), (70_001, 67)])
def test_scale_rows(rows: int, columns: int) -> None:
    matrix = torch.randn(rows, columns, device="cuda")
    scale = torch.randn(rows, device="cuda")
    expected = matrix.double() * scale.double().unsqueeze(1)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    cuda.scale_rows(matrix.data_ptr(), scale.data_ptr(), rows, columns, stream.cuda_stream)
    stream.synchronize()
    torch.testing.assert_close(matrix.double(), expected, rtol=1e-6, atol=1e-7)
