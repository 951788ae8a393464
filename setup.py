"""Builds csrc/: the CPU extension always, the CUDA one when nvcc is there.

STRUCTLOSS_CUDA=0       never build the CUDA part
STRUCTLOSS_CUDA=1       build it, and fail when nvcc is missing (default: build it when nvcc is found)
STRUCTLOSS_CUDA_ARCHS   comma separated, default "80,90a"; the newest one without a suffix is embedded as PTX too,
                        so that later cards can run it

torch is not needed to build: the extensions see raw pointers and streams only. A machine without a C++
compiler still gets a working package (`optional=True`): the library then runs through torch and says so.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
CSRC = "csrc"
DEFAULT_ARCHS = "80,90a"
# Sources that are compiled for newer x86 processors and chosen at run time.
VECTOR_FLAGS = {
    "_avx2.cpp": ["-mavx2"],
    "_avx512.cpp": ["-mavx512f", "-mavx512dq", "-mavx512vl"],
}


def find_nvcc() -> str | None:
    cuda_home = os.environ.get("CUDA_HOME")
    if cuda_home and (nvcc := Path(cuda_home) / "bin" / "nvcc").is_file():
        return str(nvcc)
    return shutil.which("nvcc")


def wanted_nvcc() -> str | None:
    """nvcc's path when the CUDA part is to be built, else None."""
    choice = os.environ.get("STRUCTLOSS_CUDA", "")
    if choice not in ("", "0", "1"):
        sys.exit(f"STRUCTLOSS_CUDA must be 0, 1 or unset, got {choice!r}")
    nvcc = None if choice == "0" else find_nvcc()
    if choice == "1" and nvcc is None:
        sys.exit("STRUCTLOSS_CUDA=1, but nvcc was found neither in CUDA_HOME/bin nor on PATH")
    return nvcc


def gencode_flags(archs: str) -> list[str]:
    names = [arch.strip() for arch in archs.split(",") if arch.strip()]
    if not names or not all(name.rstrip("af").isdigit() for name in names):
        sys.exit(f"STRUCTLOSS_CUDA_ARCHS wants compute capabilities such as '80,90a', got {archs!r}")
    flags = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in names]
    if plain := [name for name in names if name.isdigit()]:
        newest = max(plain, key=int)
        flags.append(f"-gencode=arch=compute_{newest},code=compute_{newest}")
    return flags


def cuda_library_dirs(nvcc: str) -> list[str]:
    toolkit = Path(os.path.realpath(nvcc)).parents[1]
    homes = [toolkit, Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))]
    candidates = [home / sub for home in homes for sub in ("lib64", "lib", "targets/x86_64-linux/lib")]
    return [str(path) for path in candidates if (path / "libcudart_static.a").is_file()]


class BuildExtensions(build_ext):
    """setuptools' own build; .cu files go to nvcc first and vector sources get their flags, linked in as objects."""

    def build_extension(self, ext: Pybind11Extension) -> None:
        compiled = {
            source: compile_one
            for source in ext.sources
            for suffix, compile_one in ((".cu", self.compile_cuda), *((s, self.compile_vectors) for s in VECTOR_FLAGS))
            if source.endswith(suffix)
        }
        objects = [compile_one(source, ext) for source, compile_one in compiled.items()]
        ext.sources = [source for source in ext.sources if source not in compiled]
        ext.extra_objects = [*ext.extra_objects, *objects]
        super().build_extension(ext)

    def compile_vectors(self, source: str, ext: Pybind11Extension) -> str:
        x86 = platform.machine().lower() in ("x86_64", "amd64")
        flags = next(flags for suffix, flags in VECTOR_FLAGS.items() if source.endswith(suffix)) if x86 else []
        (output,) = self.compiler.compile(
            [source],
            output_dir=self.build_temp,
            include_dirs=ext.include_dirs,
            extra_postargs=["-std=c++17", *ext.extra_compile_args, *flags],
        )
        return output

    def compile_cuda(self, source: str, ext: Pybind11Extension) -> str:
        nvcc = find_nvcc()
        assert nvcc is not None
        output = Path(self.build_temp) / Path(source).with_suffix(".o")
        output.parent.mkdir(parents=True, exist_ok=True)
        archs = gencode_flags(os.environ.get("STRUCTLOSS_CUDA_ARCHS", DEFAULT_ARCHS))
        command = [nvcc, "-O3", "-std=c++17", "--threads=0", "-Xcompiler=-fPIC", "-Xptxas=-v", f"-I{CSRC}", *archs]
        command += ["-c", source, "-o", str(output)]
        print(" ".join(command), flush=True)
        try:
            subprocess.run(command, check=True)
        except subprocess.CalledProcessError as error:
            sys.exit(f"nvcc failed on {source} (exit {error.returncode}); build without CUDA: STRUCTLOSS_CUDA=0")
        return str(output)


def extensions() -> list[Pybind11Extension]:
    cpu_sources = [
        f"{CSRC}/bindings.cpp",
        *(str(p.relative_to(ROOT)) for room in ("cpu", "trees") for p in ROOT.glob(f"{CSRC}/{room}/*.cpp")),
    ]
    headers = [str(p.relative_to(ROOT)) for ext in ("hpp", "cuh") for p in ROOT.glob(f"{CSRC}/**/*.{ext}")]
    built = [
        Pybind11Extension(
            "structloss._C",
            sorted(cpu_sources),
            depends=headers,
            include_dirs=[CSRC],
            cxx_std=17,
            extra_compile_args=["-O3", "-ffp-contract=off", "-pthread"],
            extra_link_args=["-pthread"],
            optional=True,
        )
    ]
    if nvcc := wanted_nvcc():
        cuda_sources = [
            f"{CSRC}/bindings_cuda.cpp",
            *(str(p.relative_to(ROOT)) for p in ROOT.glob(f"{CSRC}/cuda/*.cu")),
        ]
        built.append(
            Pybind11Extension(
                "structloss._C_cuda",
                sorted(cuda_sources),
                depends=headers,
                include_dirs=[CSRC],
                cxx_std=17,
                extra_compile_args=["-O3"],
                library_dirs=cuda_library_dirs(nvcc),
                libraries=["cudart_static", "rt", "dl", "pthread"],
            )
        )
    return built


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildExtensions})
