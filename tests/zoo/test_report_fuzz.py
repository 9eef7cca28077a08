"""Reports of mutated run folders: a page, or an error that names the run; nothing else."""

import csv
import functools
import json
import shutil

import pytest
import yaml
from fuzzing import MUTATIONS, QUICK, mutate, nested
from hypothesis import given, settings
from hypothesis import strategies as st
from report_runs import make_run

from sslzoo import report

JSON = nested(st.floats(), st.integers(), st.just(10**400))
TEXTS = ["metrics.csv", "evaluation.json", "config.yaml", "versions.json"]
ARRAYS = ["evaluation/embedding.npz", "evaluation/thumbnails.png"]


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("report") / "run", epochs=2)


def report_or_refuse(run):
    """The page, or the error that names the run and becomes one line."""
    try:
        report.write([run], run / "report.html")
    except report.ReportError as error:
        assert str(run) in str(error)


@pytest.mark.parametrize("name", TEXTS + ARRAYS)
def test_reports_of_mutated_files(reported, tmp_path, name):
    file = shutil.copytree(reported, tmp_path / "run") / name
    content = file.read_bytes()

    @settings(QUICK, max_examples=60)
    @given(MUTATIONS)
    def check(mutations):
        file.write_bytes(mutate(content, mutations))
        report_or_refuse(file.parent)

    check()


def places_in(tree, path=()):
    """The way to every value of nested lists and dictionaries."""
    items = {dict: dict.items, list: enumerate}.get(type(tree), lambda value: ())(tree)
    return [path, *(place for key, value in items for place in places_in(value, (*path, key)))]


@pytest.mark.parametrize("name", ["evaluation.json", "config.yaml"])
def test_reports_of_other_content(reported, tmp_path, name):
    file = shutil.copytree(reported, tmp_path / "run") / name
    read, write = (yaml.safe_load, yaml.safe_dump) if "yaml" in name else (json.loads, json.dumps)
    content = file.read_text()

    @settings(QUICK, max_examples=80)
    @given(st.data())
    def check(data):
        tree = [read(content)]
        *way, key = data.draw(st.sampled_from(places_in(tree)[1:]))
        functools.reduce(lambda holder, step: holder[step], way, tree)[key] = data.draw(JSON)
        file.write_text(write(tree[0]))
        report_or_refuse(file.parent)

    check()


CELLS = ["", "nan", "inf", "-inf", "1e308", "-1e308", "1e-320", "9" * 400, "0", "-3", "x"]


@settings(QUICK, max_examples=60)
@given(st.data())
def test_reports_of_other_metrics(reported, tmp_path, data):
    run = shutil.copytree(reported, tmp_path / "run", dirs_exist_ok=True)
    with (reported / "metrics.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    for _ in range(data.draw(st.integers(1, 3))):
        row = data.draw(st.sampled_from(rows[1:]))
        row[data.draw(st.integers(0, len(row) - 1))] = data.draw(st.sampled_from(CELLS))
    with (run / "metrics.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    report_or_refuse(run)
