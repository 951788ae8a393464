"""Triton kernels without a GPU: the interpreter in a process of its own, and compilation ahead of time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import triton
from triton.runtime import interpreter


def run_under_the_interpreter(file: str) -> None:
    """Starts pytest on `file` with TRITON_INTERPRET=1, which Triton reads when a kernel is defined."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", file],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert " passed" in run.stdout


def mend_indices(monkeypatch: Any) -> None:
    """Makes Triton up to 3.6 work with NumPy 2.4, which does not turn an array of one element into an int."""
    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, *scope: Any) -> None:
        patch(tensor, *scope)
        tensor.__index__ = lambda self: int(self.handle.data.item())

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patched)


def resources(
    kernel: Any,
    signature: dict[str, str],
    constants: dict[str, object],
    options: dict[str, Any],
    arch: int,
    folder: Path,
    aligned: tuple[str, ...] = (),
) -> dict[str, int]:
    """Registers, bytes of stack (spills) and of shared memory of a kernel that is compiled here for another machine.

    `aligned` arguments are multiples of 16, which decides how wide memory is read: name those that are so at run time.
    `wide` is the number of loads of 16 bytes.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(kernel, signature, constants, attributes or None)
    built = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    binary = folder / "kernel.cubin"
    binary.write_bytes(built.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    report = subprocess.run([tool, "--dump-resource-usage", binary], capture_output=True, text=True, check=True).stdout
    found = dict(word.split(":") for line in report.splitlines() if "REG:" in line for word in line.split())
    used = {name: int(found[name]) for name in ("REG", "STACK", "LOCAL")}
    wide = len(re.findall(r"ld\.global\S*\.v4\.b32", built.asm["ptx"]))
    return used | {"shared": built.metadata.shared, "wide": wide}
