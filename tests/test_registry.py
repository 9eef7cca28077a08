"""How backends are found, chosen, forced and reported."""

import copy
import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sslops
from sslops import registry

ROOT = Path(__file__).parent.parent
z = torch.randn(4, 8)


@pytest.fixture
def op(monkeypatch):
    """An op with one backend that runs nothing, one that is not installed and two that run."""
    op = copy.copy(registry.OPS["info_nce"])
    op.order = ["triton", "cpu", "chunked", "reference"]
    op.missing = {"triton": "triton is not installed"}
    op.backends = {
        "cpu": (None, lambda *args, **options: "the tensors are on a GPU"),
        "chunked": (lambda *args, **options: "chunked", lambda *args, **options: None),
        "reference": (lambda *args, **options: "reference", lambda *args, **options: None),
    }
    return op


def test_the_first_backend_that_can_run_is_taken(op):
    assert op(None, z) == "chunked"


def test_a_forced_backend_runs(op):
    assert op("reference", z) == "reference"


def test_a_forced_backend_that_cannot_run_raises_with_its_reason(op):
    with pytest.raises(RuntimeError, match="'cpu' cannot run here: the tensors are on a GPU"):
        op("cpu", z)


def test_a_forced_backend_that_is_not_installed_raises_with_the_reason(op):
    with pytest.raises(RuntimeError, match="'triton' cannot run here: triton is not installed"):
        op("triton", z)


def test_an_unknown_backend_lists_the_known_ones(op):
    with pytest.raises(ValueError, match=r"backend must be one of .*; got 'cuda'") as error:
        op("cuda", z)
    assert all(name in str(error.value) for name in op.order)


def test_no_backend_at_all_is_an_error(op):
    del op.backends["chunked"], op.backends["reference"]
    with pytest.raises(RuntimeError, match="no backend supports these arguments"):
        op(None, z)


def test_arguments_reach_the_backend_and_its_unsupported(op):
    seen = []
    op.backends = {"cpu": (lambda *a, **k: (a, k), lambda *a, **k: seen.append((a, k)))}
    assert op(None, z, 3, option=4) == ((z, 3), {"option": 4})
    assert seen == [((z, 3), {"option": 4})]


@pytest.mark.parametrize("value, forced", [("cpu", "cpu"), ("", None), (None, None)])
def test_the_environment_names_the_forced_backend(value, forced, monkeypatch):
    monkeypatch.delenv("SSLOPS_BACKEND", raising=False)
    if value is not None:
        monkeypatch.setenv("SSLOPS_BACKEND", value)
    spec = importlib.util.spec_from_file_location("registry_read_again", registry.__file__)
    again = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(again)
    assert forced == again.FORCED_BACKEND


def test_the_environment_is_read_once_at_import_and_gives_way_to_the_argument():
    """A value that changed during a run would make a compiled graph and eager code disagree."""
    code = """
import os, torch, sslops
os.environ["SSLOPS_BACKEND"] = "reference"
z = torch.eye(4)
print(sslops.info_nce(z, z, temperature=1.0, backend="reference").item())
sslops.info_nce(z, z)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), "SSLOPS_BACKEND": "nonsense"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("0.743")
    assert "backend must be one of" in done.stderr and "'nonsense'" in done.stderr


BACKEND = "def unsupported(*a, **k): return None\ndef op_of_a_test(*a, **k): return 1\n"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package sslops.ops.op_of_a_test, beside the real ones."""
    folder = tmp_path / "op_of_a_test"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "reference.py").write_text(BACKEND)
    monkeypatch.setattr(sslops.ops, "__path__", [*sslops.ops.__path__, str(tmp_path)])
    yield folder
    for name in [n for n in sys.modules if n.startswith("sslops.ops.op_of_a_test")]:
        del sys.modules[name]
    registry.OPS.pop("op_of_a_test", None)


def test_a_new_backend_is_one_file(package):
    (package / "_fast.py").write_text(BACKEND.replace("return 1", "return 2"))
    op = registry.load("op_of_a_test", "fast", "reference")
    assert op(None) == 2 and op("reference") == 1


MISTAKES = ["import triton_misspelt", "import sslops.tritonn", "from sslops import no_such_name",
            "1 / 0", "def f(:"]  # fmt: skip


@pytest.mark.parametrize("first_line", MISTAKES)
def test_a_mistake_in_a_backend_surfaces_at_import(package, first_line):
    (package / "_triton.py").write_text(first_line + "\n" + BACKEND)
    with pytest.raises((ImportError, ZeroDivisionError, SyntaxError)):
        registry.load("op_of_a_test", "triton", "reference")


def test_a_backend_without_unsupported_surfaces_at_import(package):
    (package / "_triton.py").write_text("def op_of_a_test(*a, **k): return 1\n")
    with pytest.raises(AttributeError, match="unsupported"):
        registry.load("op_of_a_test", "triton", "reference")


def test_a_missing_file_surfaces_at_import(package):
    with pytest.raises(ModuleNotFoundError, match="_triton"):
        registry.load("op_of_a_test", "triton", "reference")


@pytest.mark.parametrize("name", ["triton", "sslops._C"])
def test_only_a_missing_triton_or_extension_excuses_a_backend(package, name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)  # importing it now raises ModuleNotFoundError
    (package / "_fast.py").write_text(f"import {name}\n" + BACKEND)
    op = registry.load("op_of_a_test", "fast", "reference")
    assert op.missing == {"fast": f"{name} is not installed"}
    assert op(None) == 1


def test_every_op_loads_and_runs_without_triton_or_the_extension():
    """Where nothing was compiled, or Triton has no build: MPS, Windows, a source tree."""
    code = """if True:
        import os, sys, torch
        missing = "sslops._C" if os.fork() else "triton"
        sys.modules[missing] = None
        import sslops
        from sslops import registry
        assert any(missing in reason for op in registry.OPS.values()
                   for reason in op.missing.values())
        assert all(None in found.values() for found in registry.availability("cpu").values())
        z = torch.eye(4)
        print(f"{missing} {sslops.info_nce(z, z, temperature=1.0).item():.4f}", flush=True)
        sys.exit(missing == "sslops._C" and os.waitstatus_to_exitcode(os.wait()[1]))"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1500:]
    assert sorted(done.stdout.splitlines()) == ["sslops._C 0.7437", "triton 0.7437"]


def test_backends_prints_what_runs_here_and_why_the_rest_does_not(capsys):
    sslops.backends("cpu")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"sslops on cpu, torch {torch.__version__}"
    for op in registry.OPS.values():
        start = lines.index(op.name) + 1
        of_op = lines[start : start + len(op.order)]
        assert [line.split()[0] for line in of_op] == [*op.backends, *op.missing]
        states = [line.split(maxsplit=1)[1] for line in of_op]
        assert sum(state == "yes, taken by default" for state in states) == 1
        assert all(s.startswith(("yes", "no: ")) for s in states)
        of_reference = states[[*op.backends, *op.missing].index("reference")]
        assert of_reference.startswith("yes")  # the specification always runs


def test_every_op_ends_with_the_backends_that_run_anywhere():
    for name in ("info_nce", "nt_xent"):
        assert tuple(registry.OPS[name].order)[-2:] == ("chunked", "reference")


@pytest.fixture
def koleo():
    """An op whose backends are put back after the test."""
    op = registry.OPS["koleo"]
    before = op.order, op.backends
    yield op
    op.order, op.backends = before


class Mine:
    """A backend for widths of 2, which takes the following row for the nearest one."""

    @staticmethod
    def unsupported(features, candidates, offset):
        return None if features.shape[-1] == 2 else f"takes widths of 2; got {features.shape[-1]}"

    @staticmethod
    def koleo(features, candidates, offset):
        B, N = features.shape[:2]
        return (torch.arange(1, N + 1) % N).expand(B, N)


def test_a_backend_from_outside_is_tried_first_and_can_be_forced(koleo, capsys):
    registry.register("koleo", "mine", Mine)
    angles = torch.tensor([0, 10, 100]).deg2rad()
    x = torch.stack([angles.cos(), angles.sin()], -1)
    distances = [2 * math.sin(math.radians(a / 2)) for a in (10, 90, 100)]  # to the next row
    expected = -sum(map(math.log, distances)) / 3
    assert sslops.koleo(x).item() == pytest.approx(expected, rel=1e-5)
    assert sslops.koleo(x, backend="mine").item() == pytest.approx(expected, rel=1e-5)
    assert sslops.koleo(x, backend="reference").item() > expected + 0.5  # two rows are 10° apart
    wide = torch.eye(3)
    assert sslops.koleo(wide).item() == pytest.approx(-math.log(2) / 2, rel=1e-5)
    with pytest.raises(RuntimeError, match="'mine' cannot run here: takes widths of 2; got 3"):
        sslops.koleo(wide, backend="mine")
    sslops.backends("cpu")
    lines = capsys.readouterr().out.splitlines()
    assert lines[lines.index("koleo") + 1].split()[0] == "mine"


WRONG = [
    ("no_op", "mine", Mine, ValueError, "op must be one of .*koleo.*; got 'no_op'"),
    ("koleo", "chunked", Mine, ValueError, "koleo has a backend 'chunked' already"),
    ("nt_xent", "mine", Mine, TypeError, "must define a function nt_xent"),
    ("koleo", "mine", object(), TypeError, "must define a function koleo"),
]


@pytest.mark.parametrize("op, name, module, error, message", WRONG)
def test_a_backend_that_cannot_be_registered_says_why(koleo, op, name, module, error, message):
    with pytest.raises(error, match=message):
        registry.register(op, name, module)


def test_a_backend_with_other_arguments_is_refused(koleo):
    class Other(Mine):
        koleo = staticmethod(lambda features, more: None)

    with pytest.raises(TypeError, match=r"must take \(.*\); got \(features, more\)"):
        registry.register("koleo", "mine", Other)
