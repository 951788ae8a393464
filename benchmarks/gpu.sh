#!/usr/bin/env bash
# Everything that needs a GPU, in one call: benchmarks/gpu.sh OUTDIR
# Builds the extensions in place, runs the tests on the device and under compute-sanitizer, writes benchmark files to OUTDIR.
# Wants nvcc, torch, and on PYTHONPATH or installed: pybind11, setuptools, pytest, hypothesis, numpy, tqdm, tree-sitter,
# tree-sitter-python, transformers, tokenizers; for peers also liger-kernel, cut-cross-entropy and quack-kernels (absent ones are listed). Copy
# OUTDIR/tree_alignment_cuda.json and OUTDIR/lm_head_device.json into benchmarks/results. The build takes about a minute,
# the parts at most eight.
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
# Limits in seconds, so that every part gets its turn within ten minutes.
part() {
  local name=$1 limit=$2
  shift 2
  timeout -k 10 "$limit" "$@" 2>&1 | tee "$out/$name.log" || { echo "$name failed or ran past $limit s"; status=1; }
}
# Only files with such tests: others import what the drop-ins want.
part tests 140 python3 -m pytest -m gpu $(grep -l "mark.gpu" tests/structloss/*.py)
part tree_alignment_cuda 100 python3 -m benchmarks.tree_alignment --device cuda --rounds 15 --out "$out/tree_alignment_cuda.json"
if command -v compute-sanitizer >/dev/null; then
  part sanitizer 100 compute-sanitizer --error-exitcode 1 python3 -m pytest -m gpu -k "not 500" \
    tests/structloss/test_tree_alignment_cuda.py
fi
part lm_head_device 150 python3 -m benchmarks.lm_head_device --out "$out/lm_head_device.json"
exit $status
