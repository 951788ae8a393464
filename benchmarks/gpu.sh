#!/usr/bin/env bash
# Everything that needs a GPU, in one call: benchmarks/gpu.sh OUTDIR
# Builds the extensions in place, runs the tests on the device and under compute-sanitizer, writes benchmark files to OUTDIR.
# Wants nvcc, torch, and on PYTHONPATH or installed: pybind11, setuptools, pytest, hypothesis, tree-sitter, tree-sitter-python.
set -euo pipefail
out=$(realpath -m "${1:?usage: benchmarks/gpu.sh OUTDIR}")
cd "$(dirname "$0")/.."
mkdir -p "$out"
{
  date -u +%FT%TZ
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
  nvcc --version | tail -1
  python3 -c "import torch, sys; print('torch', torch.__version__, 'python', sys.version.split()[0])"
} | tee "$out/environment.txt"
STRUCTLOSS_CUDA=1 python3 setup.py build_ext --inplace >"$out/build.log" 2>&1
status=0
python3 -m pytest -m gpu tests/structloss 2>&1 | tee "$out/tests.log" || status=1
if command -v compute-sanitizer >/dev/null; then
  compute-sanitizer --error-exitcode 1 python3 -m pytest tests/structloss/test_cuda_extension.py 2>&1 | tee "$out/sanitizer.log" || status=1
fi
python3 -m benchmarks.lm_head --device cuda --dtype bfloat16 --tokens 8192 --width 4096 --vocab 128256 --head both \
  --out "$out/lm_head.json" 2>&1 | tee "$out/lm_head.log" || status=1
exit $status
