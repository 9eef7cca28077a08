"""Builds sslops._C: the CPU kernels always, the CUDA kernels where nvcc is found."""

import os
import re
import shutil
import subprocess
from pathlib import Path

from setuptools import Extension, setup

try:
    from pybind11.setup_helpers import Pybind11Extension, build_ext
except ModuleNotFoundError:  # a machine without network: torch brings pybind11's headers
    from importlib.util import find_spec

    from setuptools.command.build_ext import build_ext

    def Pybind11Extension(name, sources, cxx_std, include_dirs, extra_compile_args, **options):
        headers = Path(find_spec("torch").origin).parent / "include"
        flags = [f"-std=c++{cxx_std}", "-fvisibility=hidden", "-g0", *extra_compile_args]
        return Extension(name, sources, include_dirs=[*include_dirs, str(headers)],
                         extra_compile_args=flags, language="c++", **options)  # fmt: skip


CPU_SOURCES = ["csrc/binding.cpp", *sorted(map(str, Path("csrc/cpu").glob("*.cpp")))]
CUDA_SOURCES = sorted(map(str, Path("csrc").glob("*.cu")))
CUDA_ARCHITECTURES = (80, 90, 100)


def find_nvcc():
    """The path of nvcc, or None: CUDA_HOME first (every CUDA build honours it), then PATH."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    inside_home = Path(home, "bin", "nvcc") if home else None
    if inside_home and inside_home.exists():
        return str(inside_home)
    return shutil.which("nvcc")


def find_cuda_root(nvcc):
    """Where nvcc's own toolkit lies; nvcc itself may be a link or a wrapper that lies elsewhere."""
    dry_run = subprocess.run([nvcc, "--dryrun", "-c", "x.cu"], capture_output=True, text=True)
    return Path(re.search(r"^#\$ TOP=(.+)$", dry_run.stderr, re.MULTILINE).group(1).strip())


class BuildExtension(build_ext):
    """Compiles csrc/*.cu with nvcc into objects and hands them to the linker of the extension."""

    def build_extension(self, ext):
        nvcc = find_nvcc()
        if CUDA_SOURCES and nvcc:
            ext.extra_objects += [self.compile_cuda(nvcc, source) for source in CUDA_SOURCES]
            ext.define_macros.append(("SSLOPS_CUDA", "1"))
            cuda_root = find_cuda_root(nvcc)
            ext.library_dirs += [str(cuda_root / "lib64"), str(cuda_root / "lib")]
            # The static runtime: one binary serves every torch, whichever libcudart torch brings.
            ext.libraries += ["cudart_static", "dl", "pthread", "rt"]
        elif CUDA_SOURCES:
            print("sslops: nvcc not found; building the CPU kernels only (a GPU runs Triton).")
        super().build_extension(ext)

    def compile_cuda(self, nvcc, source):
        target = Path(self.build_temp, source).with_suffix(".cu.o")
        target.parent.mkdir(parents=True, exist_ok=True)
        gencode = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in CUDA_ARCHITECTURES]
        newest = CUDA_ARCHITECTURES[-1]  # its PTX runs on what comes after it
        gencode.append(f"-gencode=arch=compute_{newest},code=compute_{newest}")
        flags = ["-O3", "-std=c++17", "-Werror=all-warnings", "-Xcompiler=-fPIC", "-Icsrc"]
        flags.append("--threads=0")  # the architectures side by side
        subprocess.check_call([nvcc, *flags, *gencode, "-c", source, "-o", str(target)])
        return str(target)


extension = Pybind11Extension(
    "sslops._C",
    CPU_SOURCES,
    cxx_std=17,
    include_dirs=["csrc"],
    depends=[str(p) for p in Path("csrc").rglob("*.*")],
    # No OpenMP flag: csrc/cpu/parallel.h borrows torch's own runtime.
    extra_compile_args=["-O3", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra"],
    # A machine without a compiler still gets the PyTorch and Triton backends.
    optional=True,
)
setup(ext_modules=[extension], cmdclass={"build_ext": BuildExtension})
