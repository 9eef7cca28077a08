"""The benchmark code itself: floors, gates, peers, results, tables, the GPU script's dry run."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import sslops
from benchmarks import floors, gate, measure, results, run, scaling, tune
from benchmarks.baselines import nt_xent
from benchmarks.measure import Variant
from benchmarks.peers import Peers, own_variant
from sslops import tuning
from sslops.ops.dino_loss import cases as dino_cases
from sslops.ops.info_nce import cases as info_nce_cases
from sslops.ops.key_queue import cases as queue_cases
from sslops.ops.koleo import cases as koleo_cases
from sslops.ops.masking import cases as masking_cases
from sslops.ops.nt_xent import cases as nt_xent_cases

ROOT = Path(__file__).parents[1]
GPU_SCRIPT = ROOT / "benchmarks" / "gpu.sh"
H200 = json.loads((floors.DATA / "devices.json").read_text())["NVIDIA H200"]  # as modelled
MACHINE = {"device": "Some CPU, 2 cores", "date": "2026-01-02", "commit": "abc", "load": 0.1}
SMALL = {  # shapes, or cases that no shape names
    "info_nce": ["40x16", "24x90x16",
                 info_nce_cases.Case("symmetric", 33, 16, options={"symmetric": True})],
    "nt_xent": ["20x16"],
    "key_queue": ["4x16x8"],
    "masking": ["2x16x8", "restore-2x16x8"],
    "color_attention": ["loss-2x12x20x16x4", "1x12x20x16x3"],
    "dino_loss": ["4x2x3x40", dino_cases.Case("patches", 0, 1, 9, 40, weighted=True)],
    "koleo": ["12x16", koleo_cases.Case("two crops", 9, 16, (2,))],
    "sinkhorn_knopp": ["12x40"],
    "augment": ["3x12x10-8"],
}  # fmt: skip
# Whose check compares with the published code already, or whose peers draw views of their own.
CHECKED_APART = "masking", "key_queue", "augment"


def case_of(op, shape):
    cases = importlib.import_module(f"sslops.ops.{op}.cases")
    return cases.case_of(shape) if isinstance(shape, str) else shape


MEASURED = [(op, case_of(op, shape)) for op, shapes in SMALL.items() for shape in shapes]


@pytest.fixture(autouse=True)
def out(tmp_path, monkeypatch):
    """Results go nowhere else, and none of the project's is read."""
    monkeypatch.setattr(results, "KEPT", tmp_path / "kept")
    monkeypatch.setenv("OUT", str(tmp_path))
    return tmp_path


# Measuring


def test_quantiles_are_those_of_the_runs_in_milliseconds():
    times = measure.quantiles_ms([0.001, 0.002, 0.003, 0.004, 0.006])
    assert times == pytest.approx({"median": 3.0, "q20": 1.8, "q80": 4.4})
    assert measure.quantiles_ms([0.5]) == pytest.approx({"median": 500, "q20": 500, "q80": 500})


def test_every_round_runs_every_variant_on_the_inputs_in_turn():
    seen = {"a": [], "b": []}
    variants = [Variant(n, lambda x, n=n: seen[n].append(x.item())) for n in seen]
    inputs = [[torch.tensor(float(i))] for i in range(3)]
    times = measure.time_variants(variants, inputs, "cpu", repeats=5)
    assert seen == {"a": [0, 1, 2, 0, 1], "b": [0, 1, 2, 0, 1]}
    assert times.keys() == seen.keys()


def test_a_variant_that_takes_long_is_not_repeated(monkeypatch):
    monkeypatch.setattr(measure, "MOST_SECONDS", 0.0)
    calls = []
    measure.time_variants([Variant("slow", lambda: calls.append(1))], [[]], "cpu", repeats=9)
    assert len(calls) == 2


def test_forward_and_backward_are_timed_apart():
    x = torch.ones(3, requires_grad=True)
    times = []
    double = Variant("double", lambda x: times.append("forward") or 2 * x)
    forward, backward = measure.one_run(double, [x], "cpu")
    assert times == ["forward"] and forward > 0 and backward > 0 and x.grad is None


def test_peers_that_cannot_run_are_absent_with_their_reason():
    def fails(x):
        raise RuntimeError("no such\n  device")

    def missing():
        import no_such_peer

        return no_such_peer.loss

    variants = [
        Variant("fails", fails),
        measure.peer("missing", missing),
        Variant("large", torch.sum, needs_bytes=2.0**60),
        Variant("able", lambda x: x.sum()),
    ]
    x = torch.ones(2, requires_grad=True)
    reasons = {v.name: v.absent for v in measure.able(variants, [x], "cpu")}
    assert reasons == {
        "fails": "failed: no such device",
        "missing": "No module named 'no_such_peer'",
        "large": f"needs {2**30} GiB",
        "able": None,
    }


def event(name, start=0, device=None, **extra):
    kind = torch.autograd.DeviceType.CUDA if device else torch.autograd.DeviceType.CPU
    time_range = SimpleNamespace(start=start, end=extra.pop("end", start))
    return SimpleNamespace(name=name, time_range=time_range, device_type=kind, **extra)


def test_launches_are_what_ran_on_the_device_and_waits_those_inside_the_measured_range():
    events = [
        event(measure.MEASURED, 10, end=90),
        event(measure.MEASURED, 10, device=True, end=90),
        event("kernel", 20, device=True),
        event("Memcpy DtoD", 30, device=True),
        event("a range", 30, device=True, is_user_annotation=True),
        event("cudaStreamSynchronize", 40),
        event("cudaDeviceSynchronize", 95),
        event("cudaLaunchKernel", 15),
    ]
    assert measure.count_launches(events) == (2, 1)


# Floors: numbers of the design, which were worked out by hand


@pytest.mark.parametrize(
    "form, shape, dtype, ms",
    [
        ("info_nce one-directional", "65536x128", "bfloat16", 5.6),
        ("info_nce one-directional", "65536x256", "bfloat16", 8.4),
        ("info_nce one-directional", "65536x768", "bfloat16", 25.1),
        ("info_nce symmetric", "65536x128", "bfloat16", 6.95),
        ("info_nce symmetric", "65536x256", "bfloat16", 11.1),
        ("info_nce symmetric", "65536x1024", "bfloat16", 44.5),
        ("info_nce queue", "256x65536x128", "bfloat16", 0.0109),
        ("nt_xent", "16384x128", "bfloat16", 0.70),
        ("nt_xent", "16384x512", "bfloat16", 2.08),
    ],
)
def test_floor_of_a_device_is_that_of_the_fastest_algorithm(form, shape, dtype, ms):
    cases = nt_xent_cases if form == "nt_xent" else info_nce_cases
    floor = floors.floor(form, cases.case_of(shape), getattr(torch, dtype), H200)
    assert floor["ms"] == pytest.approx(ms, rel=0.03)


def test_floor_of_an_op_without_arithmetic_is_its_bytes():
    case = masking_cases.case_of("256x196x768")
    floor = floors.floor("masking", case, torch.bfloat16, H200)
    assert floor["ms"] == pytest.approx(1e3 * case.bytes_moved(2) / 4.3e12)


def test_no_floor_without_knowing_the_device():
    assert floors.floor("nt_xent", nt_xent_cases.case_of("8x8"), torch.bfloat16, {}) is None
    assert floors.floor("nt_xent", nt_xent_cases.case_of("8x8"), torch.float32, H200) is None


def test_measured_ceilings_take_the_place_of_the_model():
    machine = {**MACHINE, "device": "NVIDIA H200"}
    results.add(machine, "ceilings", [{"name": "copy", "rate": 4.0, "best": 4.1, "tiny": False}])
    results.add(machine, "ceilings", [{"name": "exp", "rate": 0.1, "best": 0.1, "tiny": True}])
    rates = floors.ceilings(machine)
    assert rates["copy"] == 4.0 and rates["exp"] == 3.7


def test_ceilings_of_the_project_count_until_they_are_measured_anew(monkeypatch):
    machine = {**MACHINE, "device": "NVIDIA H200"}
    kept = {"machine": machine, "ceilings": [
        {"name": name, "rate": rate, "tiny": False} for name, rate in (("copy", 3.0), ("exp", 2.0))
    ]}  # fmt: skip
    results.KEPT.mkdir()
    (results.KEPT / results.path_of(machine).name).write_text(json.dumps(kept))
    results.add(machine, "ceilings", [{"name": "copy", "rate": 4.0, "tiny": False}])
    assert results.known_ceilings(machine) == {"copy": 4.0, "exp": 2.0}


# Gates and peers


@pytest.mark.parametrize("op, case", MEASURED, ids=lambda x: getattr(x, "name", x))
def test_ours_passes_the_gate_and_peers_compute_what_they_say(op, case):
    torch.manual_seed(0)
    peers = Peers(op)
    ours = peers.ours(None, case)
    variants = peers.baselines(case, "cpu", torch.float32)
    variants = [v for v in variants if not v.name.startswith("torch.compile")]
    peers.check(None, ours, variants[1], case, "cpu", torch.float32)
    if op in CHECKED_APART:
        return
    tensors = peers.inputs(case, "cpu", torch.float32)
    expected = gate.values(ours.loss, tensors)
    for v in measure.able(variants[1:], tensors, "cpu"):
        if v.same_loss and not v.absent:
            for a, b in zip(gate.values(v.loss, tensors), expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=f"{v.name}: {a} {b}")


def test_a_wrong_op_is_not_timed(monkeypatch):
    case = nt_xent_cases.case_of("20x16")

    def wrong(op, backend, case):
        good = own_variant(op, backend, case)
        if backend == "reference":
            return good
        return Variant("sslops", lambda *tensors: 1.001 * good.loss(*tensors))

    peers = Peers("nt_xent")
    monkeypatch.setattr(nt_xent, "ours", wrong, raising=False)
    with pytest.raises(SystemExit, match="no speed is measured"):
        peers.check(None, peers.ours(None, case), Variant("eager", nt_xent.eager), case, "cpu",
                    torch.float32)  # fmt: skip


@pytest.mark.parametrize("op, case", MEASURED[:4], ids=lambda x: getattr(x, "name", x))
def test_parts_of_the_rows_add_up_to_the_loss(op, case, monkeypatch):
    peers = Peers(op)
    monkeypatch.setattr(gate, "PIECE", case.logits // 3)
    tensors, _ = case.inputs()
    whole = gate.values(peers.baselines(case, "cpu", torch.float32)[1].loss, tensors)
    for a, b in zip(gate.in_parts(peers.part, case, tensors), whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


# Tables of tiles and engines


def engine_record(question, case, variant, ms):
    return dict(question=question, case=case, variant=variant, absent=None, tiny=False,
                ms={"median": ms})  # fmt: skip


def measured_engines():
    tiles = [("forward", "64 x 64 x 4 x 2", 1.0), ("forward", "128 x 64 x 8 x 2", 0.7),
             ("gradient", "64 x 64 x 4 x 2", 1.0), ("gradient", "128 x 64 x 8 x 2", 1.1),
             ("triangle", "64 x 64 x 4 x 2", 1.0), ("triangle", "128 x 128 x 8 x 2", 0.99),
             ]  # fmt: skip
    records = [engine_record("tiles", f"{k}, 16384 rows, D = 128", t, ms) for k, t, ms in tiles]
    for form, D, tiled in [("one-directional", 64, 1.0), ("one-directional", 128, 1.0),
                           ("one-directional", 256, 3.0), ("symmetric", 128, 1.0),
                           ("nt_xent", 64, 1.0), ("nt_xent", 256, 1.0)]:  # fmt: skip
        case = f"{form}, 4096 rows, D = {D}"
        records.append(engine_record("crossover", case, "triton", tiled))
        records.append(engine_record("crossover", case, "chunked", 2.0))
    machine = {**MACHINE, "device": "NVIDIA H200"}
    return {"machine": machine, "engines": records}


def test_tune_takes_the_fastest_tile_and_the_widest_width_at_which_tiles_win():
    table = tune.table_from(measured_engines(), "sm_90", "nvidia-h200_2026.json")
    before = tuning.TABLES["sm_90"]
    assert table["tiles"]["rows"]["half"][128] == [128, 64, 8, 2]  # 1.8 against 2.0
    assert table["tiles"]["triangle"]["half"][128] == before["tiles"]["triangle"]["half"][128]
    assert table["tiles"]["rows"]["ieee"] == before["tiles"]["rows"]["ieee"]
    assert table["tiled_up_to"]["info_nce"]["half"] == 128
    assert table["tiled_up_to"]["nt_xent"]["half"] == 256
    assert "nvidia-h200_2026.json" in table["source"]


def test_a_written_table_reads_back(tmp_path, monkeypatch):
    table = tune.table_from(measured_engines(), "sm_90", "x.json")
    (tmp_path / "nvidia-h200.json").write_text(tune.as_json(table))
    monkeypatch.setattr(tuning, "FOLDER", tmp_path)
    assert tuning.load() == {"nvidia-h200": table}


def test_tune_refuses_results_without_answers():
    with pytest.raises(ValueError, match=r"gpu\.sh engines"):
        tune.table_from({"machine": MACHINE, "engines": []}, "sm_90", "x.json")


# The model of scale


def test_bytes_and_time_of_the_model_by_hand():
    machine = scaling.Machine(node=2, inside=100.0, between=10.0, inside_latency=0.0,
                              between_latency=0.0, tflops=1.0)  # fmt: skip
    loss = scaling.Loss(n=10, D=4, element=2, queue=100)
    one = scaling.all_gather(machine, loss, 1)
    assert one["moved_mb"] == 0 and one["ms"] == pytest.approx(1e3 * 8 * 10 * 10 * 4 / 1e12)
    two = scaling.all_gather(machine, loss, 2)
    # keys 10 x 4 x 2; column max and sum of 20 rows, twice the half; gradients 10 x 4 x 4
    assert two["moved_mb"] == pytest.approx((80 + 2 * 80 + 160) / 1e6)
    four = scaling.all_gather(machine, loss, 4)
    assert four["moved_mb"] == pytest.approx(3 * (80 + 2 * 80 + 160) / 1e6)
    # two links of 10 GB/s leave a node
    work = 8 * 10 * 40 * 4 / 1e12
    assert four["ms"] == pytest.approx(1e3 * (work + 3 * 400 / 20e9))
    assert scaling.sharded_queue(machine, loss, 4)["memory_mb"] == pytest.approx(200e-6)


def test_crossovers_are_where_time_or_memory_change_sides():
    machine, loss = scaling.Machine(memory=1.0), scaling.Loss(n=4096, D=1024)
    rows = scaling.table(machine, loss)
    W = scaling.most_that_fit(machine, rows, "all-gather")
    # keys in bf16 and their gradients in float32, of W n rows
    assert W * 4096 * 1024 * 6 <= 1e9 < 2 * W * 4096 * 1024 * 6
    changes = scaling.crossovers(rows, "all-gather", "ring")
    for i, (start, faster) in enumerate(changes):
        slower = "ring" if faster == "all-gather" else "all-gather"
        end = changes[i + 1][0] if i + 1 < len(changes) else 2 * scaling.GPUS[-1]
        for gpus in scaling.GPUS:
            if start <= gpus < end:
                assert rows[faster][gpus]["ms"] <= rows[slower][gpus]["ms"]
    assert changes[0][0] == 2
    words = scaling.in_words(machine, rows, "all-gather", "ring")
    assert f"1 GB hold all-gather up to {W} GPUs" in words


# The script that meets a GPU


def dry_run(*part, out):
    environment = {**os.environ, "OUT": str(out), "PYTHON": sys.executable}
    command = ["bash", str(GPU_SCRIPT), "--dry-run", *part]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_gpu_script_runs_a_part_without_a_gpu_and_leaves_its_results(out):
    pytest.importorskip("triton")
    done = dry_run("ceilings", out=out)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("*.json")
    names = {r["name"] for r in json.loads(path.read_text())["ceilings"]}
    assert names == {"copy", "exp", "bfloat16", "float16", "float32"}
    assert "ceilings: exit 0" in (out / "ceilings.log").read_text()


@pytest.mark.slow
def test_gpu_script_sweeps_an_op_without_a_gpu(out):
    pytest.importorskip("triton")
    done = dry_run("sweep", "nt_xent", out=out)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("*.json")
    records = json.loads(path.read_text())["records"]
    assert {r["backend"] for r in records} == {"triton"} and records[0]["variant"] == "sslops"
    peers = {r["variant"] for r in records}
    assert {"lightly NTXentLoss", "pytorch-metric-learning", "torch.compile"} <= peers


def test_gpu_script_explains_itself(out):
    done = dry_run("nonsense", out=out)
    assert done.returncode == 2 and "benchmarks/gpu.sh sweep OP" in done.stderr
    done = dry_run("sweep", out=out)
    assert done.returncode == 2 and "nt_xent" in done.stderr


@pytest.mark.slow
def test_gpu_script_walks_every_part_without_a_gpu(out):
    pytest.importorskip("triton")
    done = dry_run(out=out)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (path,) = [p for p in out.glob("*.json") if "_" in p.name]
    content = json.loads(path.read_text())
    assert {r["op"] for r in content["records"]} == set(run.OPS)
    assert {r["question"] for r in content["engines"]} == {
        "accumulate", "attention", "crossover", "epilogue", "tiles"}  # fmt: skip
    ours = [r for r in content["steps"] if r["variant"] == "sslops" and not r.get("absent")]
    assert {"simclr"} <= {r["method"] for r in ours}
    assert list(out.glob("*_nt_xent.png")) and list(out.glob("*.md"))


def test_backend_that_benchmarks_force_exists():
    """The dry run takes the GPU's code where an op has some in Triton."""
    assert "triton" in sslops.registry.OPS[run.registered("nt_xent", None)].order
    assert run.registered("masking", masking_cases.MEASURED[0]) == "random_masking"
    assert run.registered("key_queue", queue_cases.MEASURED[0]) == "enqueue_"
