"""Results files, and the tables, pictures and pages that are made from them."""

import json
from pathlib import Path

import pytest

from benchmarks import pages, report, results, run, scaling

ROOT = Path(__file__).parents[1]
MACHINE = {"device": "Some CPU, 2 cores", "date": "2026-01-02", "commit": "abc", "load": 0.1}


@pytest.fixture(autouse=True)
def out(tmp_path, monkeypatch):
    """Results go nowhere else."""
    monkeypatch.setenv("OUT", str(tmp_path))
    return tmp_path


def row(name, ms, **extra):
    times = {"median": ms, "q20": ms, "q80": ms}
    return dict(variant=name, ms=dict(forward=times, backward=times, both=times), peak_mib=1.0,
                launches=None, graph_ms=None, same_loss=True, **extra)  # fmt: skip


def test_ratio_is_that_to_the_best_peer_with_the_same_loss():
    rows = [row("sslops", 2.0), row("bare", 1.0), row("slow", 8.0), row("fast", 5.0)]
    rows += [{**row("another loss", 0.5), "same_loss": False}, dict(variant="x", absent="why")]
    run.add_ratios(rows, None)
    assert rows[0]["best_peer"] == "fast" and rows[0]["ratio_to_best_peer"] == 2.5
    assert rows[0]["share_of_floor"] == 0.5 and rows[0]["floor"]["algorithm"] == "bare"
    run.add_ratios(rows, {"ms": 1.5, "algorithm": "model"})
    assert rows[0]["share_of_floor"] == 0.75


# Results and tables


def test_results_are_added_replaced_and_merged(out):
    first = dict(op="nt_xent", case="a", dtype="float32", backend=None, variant="sslops", n=1)
    path = results.add(MACHINE, "records", [first, {**first, "case": "b"}])
    results.add(MACHINE, "records", [{**first, "n": 2}])
    assert path == out / "some-cpu-2-cores_2026-01-02.json"
    assert [p.name for p in out.iterdir()] == [path.name]
    content = results.read(path)
    assert [(r["case"], r["n"], r["commit"]) for r in content["records"]] == [
        ("a", 2, "abc"), ("b", 1, "abc")]  # fmt: skip
    other = {"machine": MACHINE, "records": [{**first, "n": 3}, {**first, "case": "c"}]}
    merged = results.merge([content, other])
    assert [(r["case"], r["n"]) for r in merged["records"]] == [("a", 3), ("b", 1), ("c", 1)]


def test_report_makes_a_table_and_a_picture_per_op(out):
    about = dict(op="nt_xent", dtype="float32", backend=None, D=8)
    for n, ms in ((10, 2.0), (20, 4.0)):
        rows = [row("sslops", ms), row("bare", 1.0), row("peer", 3 * ms),
                dict(variant="gone", absent="not installed")]  # fmt: skip
        run.add_ratios(rows, None)
        results.add(MACHINE, "records", [{**about, "case": f"{n}x8", "size": n, **r} for r in rows])
    content = results.read(results.path_of(MACHINE))
    written = report.write("some-cpu", content, out)
    assert [p.name for p in written] == ["some-cpu.md", "some-cpu_nt_xent.png"]
    assert written[1].read_bytes().startswith(b"\x89PNG")
    text = written[0].read_text()
    assert "| nt_xent | 10x8 | float32 | 2 | 50% | peer | 3 | 1, 1 |" in text
    assert "- nt_xent: gone: not installed (2 cases)" in text
    points = report.lines_of("nt_xent", content["records"])
    assert points == {"D = 8 float32": [(10, 3.0, 0.5), (20, 3.0, 0.25)]}


def test_a_new_measurement_replaces_all_variants_of_an_older_one(out):
    """Else a ratio would be taken between numbers of two runs."""
    about = dict(op="nt_xent", case="a", dtype="float32", backend=None)
    results.add(MACHINE, "records", [{**about, "variant": v} for v in ("sslops", "old peer")])
    path = results.add(MACHINE, "records", [{**about, "variant": "sslops"}])
    assert [r["variant"] for r in results.read(path)["records"]] == ["sslops"]


def test_a_table_of_a_case_is_written_by_hand_alike():
    rows = [row("sslops", 2.0), row("bare copy", 1.0), row("peer", 1236.0)]
    rows.append(dict(variant="gone", absent="why"))
    assert report.case_table(rows) == [
        "| | forward ms | backward ms | both ms (20 % .. 80 %) | × sslops | × floor | peak MiB |",
        "|---|---|---|---|---|---|---|",
        "| sslops | 2 | 2 | 2 (2 .. 2) | 1.00 | 2.00 | 1 |",
        "| bare copy | 1 | 1 | 1 (1 .. 1) | 0.50 | 1.00 | 1 |",
        "| peer | 1236 | 1236 | 1236 (1236 .. 1236) | 618.00 | 1236.00 | 1 |",
        "| gone | absent: why | | | | | |",
    ]
    rows[0]["launches"] = {"forward": 2, "backward": 1, "waits": 0}
    assert report.case_table(rows)[2].endswith("| 1 | 2 + 1 |")


# Pages


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda p: p.name)
def test_pages_quote_the_results_files_as_they_are(page):
    """Mended by: python benchmarks/pages.py"""
    text = page.read_text()
    assert pages.refreshed(text, page) == text


def test_times_in_the_readme_come_from_results_files():
    text = pages.BLOCK.sub("", (ROOT / "README.md").read_text())
    assert " ms |" not in text and "MiB |" not in text
    assert pages.BLOCK.search((ROOT / "README.md").read_text())


def test_a_page_gets_the_newest_numbers_and_none_written_by_hand(out):
    about = dict(op="nt_xent", case="4 pairs", dtype="float32", backend=None, D=8, size=4)
    for date, ms in (("2026-01-02", 3.0), ("2026-01-03", 5.0)):
        machine = {**MACHINE, "date": date, "cores": 2, "torch": "2.14"}
        results.add(machine, "records", [{**about, **row("sslops", ms)}])
    page = out / "docs" / "page.md"
    case = "<!-- measured: some-cpu-2-cores, nt_xent, 4 pairs -->\n{}<!-- end -->\n"
    old = case.format("| sslops | 1 |\n") + case.format("").replace("4 pairs", "overview")
    old += case.format("").replace("nt_xent, 4 pairs", "steps")
    new = pages.refreshed("before\n" + old + "after\n", page, out)
    assert new.startswith("before\n") and new.endswith("after\n")
    assert "| sslops | 5 | 5 | 5 (5 .. 5) | 1.00 | | 1 |" in new and "| sslops | 1 |" not in new
    assert "torch 2.14, 2026-01-03, commit abc ([results file](../some-cpu" in new
    assert new.count("Not measured yet.") == 2  # no case called overview, no steps
    assert pages.refreshed(new, page, out) == new


def test_the_page_of_the_model_holds_what_the_model_computes():
    page = (ROOT / "docs" / "scale.md").read_text()
    lines = scaling.markdown(scaling.table(scaling.Machine(), scaling.Loss())).splitlines()
    quoted = [line for line in page.splitlines() if line.startswith("|")]
    assert len(quoted) > 6 and set(quoted) <= set(lines)
    written = json.loads((ROOT / "benchmarks" / "results" / "scaling.json").read_text())
    assert written["table"] == json.loads(
        json.dumps(scaling.table(scaling.Machine(), scaling.Loss()))
    )
