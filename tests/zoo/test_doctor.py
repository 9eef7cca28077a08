"""`sslzoo doctor` and the self-test that it runs."""

import json

import pytest
import torch

import sslops
from sslops import registry
from sslops.self_test import CALLS, self_test
from sslzoo import doctor
from sslzoo.cli import main


def test_every_registered_op_is_run_by_the_self_test(monkeypatch):
    ran, run = set(), registry.Op.__call__
    monkeypatch.setattr(
        registry.Op, "__call__", lambda op, *args, **kw: ran.add(op.name) or run(op, *args, **kw)
    )
    assert all(result.is_right for result in self_test("cpu"))
    assert ran == set(registry.OPS)


def test_the_self_test_finds_a_wrong_gradient(monkeypatch):
    right = sslops.nt_xent

    def wrong(a, b, backend=None):
        loss = right(a, b, backend=backend)
        return loss if backend else loss * 1.01 - (loss * 0.01).detach()

    monkeypatch.setattr(sslops, "nt_xent", wrong)
    results = {result.op: result for result in self_test("cpu")}
    assert not results["nt_xent"].is_right
    assert results["info_nce"].is_right


def test_a_gradient_that_is_no_number_is_wrong_and_leaves_json_readable(monkeypatch, capsys):
    right = sslops.koleo

    def wrong(x, backend=None):
        loss = right(x, backend=backend)
        return loss if backend else loss + (x.sum() * 0).sqrt() * 0  # 0, with the gradient nan

    monkeypatch.setattr(sslops, "koleo", wrong)
    assert main(["doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)["self_test"]
    assert found["koleo"] == {"error": None, "right": False, "message": ""}
    assert found["nt_xent"]["right"]


def test_an_op_that_raises_is_wrong_and_says_why(monkeypatch, capsys):
    def broken(x, backend=None):
        if backend is None:
            raise RuntimeError("no kernel image is available")
        return x.sum()

    monkeypatch.setattr(sslops, "koleo", broken)
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "WRONG no kernel image is available" in out


def test_json_holds_versions_backends_and_errors(capsys):
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert torch.__version__.startswith(found["versions"]["torch"])
    assert found["backends"]["info_nce"]["reference"] is None
    assert found["self_test"].keys() == CALLS.keys() and "augment" in CALLS
    assert all(0 <= result["error"] < 1e-3 for result in found["self_test"].values())
    assert 0 < found["self_test_seconds"] < 60 and found["backends"].keys() == registry.OPS.keys()
    assert found["disk_gib"] > 0


def test_an_unknown_option_is_an_error_of_the_user(capsys):
    assert main(["doctor", "--jsn"]) == 2


def test_a_missing_extension_is_said(monkeypatch):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    assert doctor.compiled().startswith("no extension")


@pytest.mark.gpu
def test_the_self_test_is_right_on_a_gpu():
    assert all(result.is_right for result in self_test("cuda"))
