"""sdist and wheel hold what they need, and are built without torch, nvcc or a network."""

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BUILT_HERE = {
    ".git",
    ".venv",
    "build",
    "dist",
    "runs",
    ".pytest_cache",
    ".hypothesis",
    "__pycache__",
}
BUILD = """
import sys
sys.modules["torch"] = None  # importing it, or looking for it, now raises
from setuptools import build_meta
print(build_meta.build_{}(sys.argv[1]))
"""


def data_files(package):
    """Files of a package that are no Python, by their paths below the root."""
    kinds = {".yaml", ".json", ".html", ".css", ".js"}
    found = (p for p in (ROOT / package).rglob("*") if p.suffix in kinds)
    return {str(p.relative_to(ROOT)) for p in found}


def modules():
    found = (p for name in ("sslops", "sslzoo") for p in (ROOT / name).rglob("*.py"))
    return {str(p.relative_to(ROOT)) for p in found}


def without_nvcc():
    """The environment without the folders that hold nvcc; torch's and ours stay out, too."""
    kept = [d for d in os.environ["PATH"].split(os.pathsep) if not Path(d, "nvcc").exists()]
    environment = {k: v for k, v in os.environ.items() if k not in ("CUDA_HOME", "CUDA_PATH")}
    environment |= {"PATH": os.pathsep.join(kept), "PYTHONPATH": ""}
    if not shutil.which("g++", path=environment["PATH"]):
        pytest.skip("no compiler outside the folders that hold nvcc")
    return environment


def build(kind, source, out):
    """The path of what setuptools makes of a source tree."""
    done = subprocess.run([sys.executable, "-c", BUILD.format(kind), str(out)], cwd=source,
                          env=without_nvcc(), capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The unpacked sdist of this tree."""
    if not find_spec("pybind11") or not find_spec("setuptools"):
        pytest.skip("setuptools and pybind11 are not installed")
    folder = tmp_path_factory.mktemp("sdist")
    shutil.copytree(ROOT, folder / "tree", ignore=lambda _, names: BUILT_HERE & {*names})
    with tarfile.open(build("sdist", folder / "tree", folder)) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = folder.glob("sslops-*/")
    return unpacked


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """The wheel that is built from the sdist."""
    return zipfile.ZipFile(build("wheel", sdist, tmp_path_factory.mktemp("wheel")))


@pytest.mark.slow
def test_the_sdist_holds_the_repository(sdist):
    """What git keeps, so that kernels, tests and pages can be made from it."""
    kept = ("csrc", "sslops", "sslzoo", "tests", "benchmarks", "docs", "examples")
    wanted = {p.relative_to(ROOT) for name in kept for p in (ROOT / name).rglob("*") if p.is_file()}
    wanted |= {Path(p) for p in ("LICENSE", "CITATION.cff", "CHANGELOG.md", "Makefile", "setup.py",
                                 "README.md", "constraints.txt", "CONTRIBUTING.md")}  # fmt: skip
    generated = {".pyc", ".so", ".o", ".log", ".part"}
    missing = [p for p in wanted if p.suffix not in generated and not (sdist / p).exists()]
    assert missing == []
    assert not [p for p in sdist.rglob("*") if p.suffix in generated]


@pytest.mark.slow
def test_the_wheel_holds_code_data_licence_and_kernels(wheel):
    names = set(wheel.namelist())
    assert modules() | data_files("sslops") | data_files("sslzoo") <= names
    assert {name.split("/")[0] for name in names} == {"sslops", "sslzoo", "sslops-0.1.0.dist-info"}
    assert len([n for n in names if re.fullmatch(r"sslops/_C\.[\w.-]+\.(so|pyd)", n)]) == 1
    licence = wheel.read("sslops-0.1.0.dist-info/licenses/LICENSE")
    assert licence == (ROOT / "LICENSE").read_bytes()


@pytest.mark.slow
def test_the_ops_need_torch_triton_and_numpy_only(wheel):
    about = email.message_from_bytes(wheel.read("sslops-0.1.0.dist-info/METADATA"))
    needed = [line for line in about.get_all("Requires-Dist") if "extra ==" not in line]
    assert sorted(re.match(r"\w+", line)[0] for line in needed) == ["numpy", "torch", "triton"]
    assert about["License-Expression"] == "Apache-2.0"


@pytest.mark.slow
def test_what_was_installed_runs(wheel, tmp_path):
    """Unpacked outside the repository: the kernels of the CPU, recipes, the page of the report."""
    wheel.extractall(tmp_path)
    code = """
import torch, sslops
from sslops import _C
from sslzoo import registry
from sslzoo.report import page
z = torch.eye(8)
print(sslops.__file__, _C.has_cuda, f"{sslops.nt_xent(z, z, 1.0, backend='cpu'):.4f}")
print(*registry.recipes(), page.environment().get_template("page.html").name)
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment,
                          capture_output=True, text=True, check=True)  # fmt: skip
    first, second = done.stdout.splitlines()
    assert first == f"{tmp_path / 'sslops/__init__.py'} False 1.8165"  # log(e + 14) - 1
    assert "simclr_digits" in second.split() and second.endswith("page.html")
