"""What the sweeps measure, and that they keep to their time."""

import importlib
import json
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gate, pages, run, sweeps, train_step

ROOT = Path(__file__).parents[1]


def cases_of(op):
    return importlib.import_module(f"sslops.ops.{op}.cases")


def test_gpu_sweeps_hold_the_sizes_that_were_asked_for():
    sizes = {op: [(d, c) for d, c in sweeps.entries(op, "cuda")] for op in sweeps.SWEEPS}
    batches = {c.N for d, c in sizes["info_nce"] if c.negatives is None and d == "bfloat16"}
    assert min(batches) == 256 and max(batches) == 262144
    assert {c.D for _, c in sizes["info_nce"]} == {64, 128, 256, 512, 768, 1024}
    queues = {(c.N, c.M) for _, c in sizes["info_nce"] if c.negatives}
    assert queues == {(n, m) for n in (256, 4096) for m in (65536, 2**20)}
    assert {2 * c.N for _, c in sizes["nt_xent"]} >= {512, 131072}
    widths = {(c.L, c.D) for _, c in sizes["masking"]}  # ViT-B, L, H, and video
    assert widths >= {(196, 768), (196, 1024), (256, 1280), (1568, 768)}
    assert any(c.grid == (60, 107) and c.frames == 5 for _, c in sizes["color_attention"])
    assert any(c.D == 64 and c.cells == (1024, 3072) for _, c in sizes["color_attention"])
    for op in sizes:
        assert {d for d, _ in sizes[op]} == {"bfloat16", "float32"}, op


def test_every_op_has_peers_and_can_be_swept():
    folders = {p.parent.name for p in (ROOT / "sslops/ops").glob("*/cases.py")}
    # logit_blocks is what the losses are made of across ranks, no function of its own.
    assert set(run.OPS) == folders - {"logit_blocks"} == set(sweeps.SWEEPS)
    for op in run.OPS:
        assert sweeps.entries(op, "cuda") and sweeps.entries(op, "cpu", tiny=True)


@pytest.mark.parametrize("op", run.OPS)
def test_a_sweep_of_a_cpu_measures_what_pages_quote(op):
    """Else they would keep numbers of an older commit."""
    swept = [case for _, case in sweeps.entries(op, "cpu")]
    assert all(case in swept for case in cases_of(op).MEASURED)
    quoted = {case for name, case in pages.HEADLINES if name == op}
    assert quoted <= {case.name for case in swept}


def timed_sweep(monkeypatch, seconds_of):
    """The cases that a sweep of a CPU measures, and when it ends, by a clock that cases move."""
    clock, seen = [0.0], []

    def case(self, op, case, dtype, seconds):
        seen.append((op, case.name))
        clock[0] += seconds_of(op, case)

    monkeypatch.setattr(run.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(run.Run, "case", case)
    options = Namespace(budget=None, tiny=False, backend=None, skip_done=False)
    run.Run(options, "cpu", {}).sweep([*sweeps.SWEEPS])
    return seen, clock[0]


def test_a_sweep_ends_in_time_whatever_its_cases_take(monkeypatch, capsys):
    everything = {(op, c.name) for op in sweeps.SWEEPS for _, c in sweeps.entries(op, "cpu")}
    seen, end = timed_sweep(monkeypatch, lambda op, case: 5)
    assert set(seen) == everything and end == 5 * len(everything)
    seen, end = timed_sweep(monkeypatch, lambda op, case: 20)
    assert end < 300 and {op for op, _ in seen} == set(sweeps.SWEEPS)
    assert "out of time, not measured" in capsys.readouterr().out


def test_a_case_that_fails_does_not_end_a_sweep(monkeypatch, capsys):
    errors = [SystemExit("wrong: no speed is measured"), torch.OutOfMemoryError("out of memory")]
    seen = []

    def case(self, op, case, dtype, seconds):
        seen.append(case.name)
        if len(seen) <= len(errors):
            raise errors[len(seen) - 1]

    monkeypatch.setattr(run.Run, "case", case)
    options = Namespace(budget=None, tiny=False, backend=None, skip_done=False)
    failed = run.Run(options, "cpu", {}).sweep(["nt_xent"])
    assert seen == [c.name for _, c in sweeps.entries("nt_xent", "cpu")]
    assert failed == [f"nt_xent {name} float32" for name in seen[:2]]
    said = capsys.readouterr().out
    assert "out of memory" in said and f"failed, not measured: {', '.join(failed)}" in said


def test_what_waits_is_not_captured_in_a_graph():
    asked = run.Run(Namespace(skip_done=False), "cpu", {})
    asked.device = "cuda"
    quick = {"both": {"median": 0.01}}
    found = asked.graph_ms(None, [], quick, {"forward": 1, "backward": 0, "waits": 1})
    assert found == {"absent": "it waits for the device"}


def test_a_slow_machine_still_measures_the_headline_of_every_op(monkeypatch):
    """Ops that have many entries leave time to those that come later."""
    seen, end = timed_sweep(monkeypatch, lambda op, case: 30)
    first = [(op, sweeps.entries(op, "cpu")[0][1].name) for op in sweeps.SWEEPS]
    assert seen == first and end < 300


def test_records_of_a_sweep_tell_one_case_from_another():
    for op in sweeps.SWEEPS:
        for device in ("cpu", "cuda"):
            keys = [json.dumps([case.name, dtype]) for dtype, case in sweeps.entries(op, device)]
            assert len(keys) == len(set(keys)), f"{op} on {device}"


def test_a_side_of_a_step_that_fails_is_absent_with_its_reason(monkeypatch):
    def out_of_memory(views, device):
        raise torch.OutOfMemoryError("out of memory")

    works = SimpleNamespace(next_views=list, train=lambda views, device: None)
    fails = SimpleNamespace(next_views=list, train=out_of_memory)
    sides = {"sslops": works, "lightly": fails}
    monkeypatch.setattr(train_step, "sides_of", lambda setting, device: (sides, {}))
    ours, theirs = train_step.compare(train_step.TINY[0], "cpu", True, 1.0)
    assert ours["images_per_second"] > 0 and theirs["absent"] == "failed: out of memory"


def test_a_gradient_of_nan_does_not_pass_behind_a_right_loss():
    one = torch.ones(2, dtype=torch.float64)
    gate.compare([one, one], [one, one], torch.float32, "itself")
    with pytest.raises(SystemExit, match="no speed is measured"):
        gate.compare([one, one * torch.nan], [one, one], torch.float32, "itself")
