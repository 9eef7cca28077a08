"""What the report reads, what it compares, and what it refuses; the browser has its own file."""

import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from report_runs import HOSTILE, entry, make_run, row, save, write_evaluations

from sslzoo import report
from sslzoo.cli import main
from sslzoo.evaluation.results import Row
from sslzoo.report import curves, leaderboard, media
from sslzoo.report.run import read_run


def page_of(folder, *more):
    out = folder / "report.html"
    report.write([folder, *more], out)
    return out.read_text()


def headings(text):
    return re.findall(r"<h2[^>]*>(?:<i [^>]*></i>)?([^<]*)</h2>", text)


def test_the_page_needs_nothing_from_elsewhere(tmp_path):
    text = page_of(make_run(tmp_path / "run"))
    assert re.findall(r"(?:src|href)=\"(?!data:|#)", text) == []
    assert "url(" not in text and "@import" not in text and "://" not in text
    assert "default-src 'none'" in text


def test_every_part_of_a_run_has_its_section(tmp_path):
    assert headings(page_of(make_run(tmp_path / "run"))) == [
        "Summary", "Curves", "Evaluation", "Embedding", "Pictures", "Compute", "Configuration",
    ]  # fmt: skip


def test_what_a_run_lacks_is_left_out(tmp_path):
    run = make_run(tmp_path / "run")
    for name in ("evaluation.json", "metrics.csv", "versions.json"):
        (run / name).unlink()
    for picture in (run / "pictures").iterdir():
        picture.unlink()
    assert headings(page_of(run)) == ["Configuration"]


def test_a_folder_of_evaluations_alone_is_enough(tmp_path):
    write_evaluations(tmp_path, [entry("knn", [row("20 nearest neighbours, top-1", 0.5)])])
    assert headings(page_of(tmp_path)) == ["Summary", "Evaluation"]


def test_several_runs_are_compared_and_differ_where_they_differ(tmp_path):
    runs = [make_run(tmp_path / "one", seed=1), make_run(tmp_path / "two", seed=2)]
    text = page_of(*runs)
    assert headings(text)[0] == "Leaderboard" and {"one", "two"} <= set(headings(text))
    assert leaderboard.settings([read_run(r, r.name) for r in runs]) == [("seed", [1, 2])]


def test_the_numbers_are_those_of_evaluation_json(tmp_path):
    record = Row("20 nearest neighbours, top-1", 0.875, count=200).record()
    write_evaluations(tmp_path, [entry("knn", [record])])
    text = page_of(tmp_path)
    # Wilson's interval of 175 of 200, by hand: 0.8219 to 0.9139.
    assert "87.5 %" in text and "82.2 to 91.4" in text


def board_of(folder, *groups):
    """The leaderboard of runs with these evaluations."""
    runs = []
    for number, entries in enumerate(groups):
        path = folder / str(number)
        path.mkdir()
        write_evaluations(path, entries)
        runs.append(read_run(path, str(number)))
    return leaderboard.board(runs)


def knn(value, **options):
    return entry("knn", [row("20 nearest neighbours, top-1", value)], **options)


def test_answers_to_the_same_question_share_a_column_and_the_best_is_marked(tmp_path):
    board = board_of(tmp_path, [knn(0.4)], [knn(0.6)])
    (column,) = board["columns"]
    assert [c["text"] for c in column["cells"]] == ["40.0 %", "60.0 %"]
    assert [c["best"] for c in column["cells"]] == [False, True]


def test_the_lowest_error_is_the_best(tmp_path):
    groups = [[entry("robustness", [row("mean error under corruption", v)])] for v in (0.4, 0.6)]
    (column,) = board_of(tmp_path, *groups)["columns"]
    assert [c["best"] for c in column["cells"]] == [True, False]


def test_other_data_or_options_are_another_question(tmp_path):
    other = knn(0.9)
    other["options"] |= {"k": [5]}
    board = board_of(tmp_path, [knn(0.4)], [knn(0.6, fingerprint="bb")], [other])
    assert [[c and c["text"] for c in line["cells"]] for line in board["lines"]] == [
        ["40.0 %", None, None],
        [None, "60.0 %", None],
        [None, None, "90.0 %"],
    ]
    assert [c["differs"] for c in board["columns"]] == [
        "k [20], fingerprint aa", "k [20], fingerprint bb", "k [5], fingerprint aa",
    ]  # fmt: skip


def test_where_the_data_lies_makes_no_other_question(tmp_path):
    moved = knn(0.6)
    moved["options"] |= {"out": "elsewhere", "data": "/another/place"}
    assert len(board_of(tmp_path, [knn(0.4)], [moved])["columns"]) == 1


def test_untrained_and_older_weights_stand_in_lines_of_their_own(tmp_path):
    entries = [knn(0.4, weights="w0old"), knn(0.2, weights="r", untrained=True), knn(0.6)]
    lines = board_of(tmp_path, entries)["lines"]
    assert {line["name"]: line["cells"][0]["text"] for line in lines} == {
        "0": "60.0 %", "0, untrained": "20.0 %", "0, older weights w0old": "40.0 %",
    }  # fmt: skip


def test_pictures_that_share_a_file_belong_to_the_newest_evaluation(tmp_path):
    save(tmp_path / "evaluation" / "n.png", (8, 8), 0)
    pictures = {"neighbours": "evaluation/n.png"}
    write_evaluations(tmp_path, [
        entry("retrieval", [], pictures=pictures),
        entry("retrieval", [], pictures=pictures, untrained=True),
    ])  # fmt: skip
    (found,) = media.evaluation_pictures(read_run(tmp_path, "run"))
    assert "untrained" in found["note"]


@pytest.mark.parametrize("absolute", [False, True])
def test_no_file_outside_the_run_is_taken_in(tmp_path, absolute):
    run = make_run(tmp_path / "run")
    save(tmp_path / "secret" / "picture.png", (8, 8), 0)
    path = str(tmp_path / "secret/picture.png") if absolute else "../secret/picture.png"
    write_evaluations(run, [entry("retrieval", [], pictures={"neighbours": path})])
    assert media.evaluation_pictures(read_run(run, "run")) == []
    (run / "pictures" / "link_0001.png").symlink_to(tmp_path / "secret/picture.png")
    assert [name for name, _ in media.method_pictures(read_run(run, "run"))] == ["reconstruction"]


def test_many_epochs_are_thinned_to_evenly_spaced_ones(tmp_path):
    run = make_run(tmp_path / "run", epochs=40)
    ((_, shots),) = media.method_pictures(read_run(run, "run"))
    epochs = [epoch for epoch, _ in shots]
    assert epochs[0] == 1 and epochs[-1] == 40 and len(epochs) == 8
    assert set(np.diff(epochs)) <= {5, 6}


def test_videos_beyond_the_limit_are_named_and_left_out(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run")
    for name, size in (("a", 60), ("b", 50), ("c", 40)):
        (run / "evaluation" / f"{name}.mp4").write_bytes(bytes(size))
    monkeypatch.setattr(media, "VIDEO_BYTES", 100)
    found = media.videos(read_run(run, "run"))
    assert [(v["title"], bool(v["uri"])) for v in found] == [
        ("evaluation/a.mp4", True), ("evaluation/b.mp4", False), ("evaluation/c.mp4", True),
    ]  # fmt: skip
    assert "left out" in page_of(run)


class Parsed(HTMLParser):
    """A page as a browser takes it: its tags with the names of their attributes, and its words."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.in_json, self.data = [], [], False, []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, *(name for name, _ in attributes)))
        self.words += [value for _, value in attributes if value]
        self.in_json = ("type", "application/json") in attributes

    def handle_data(self, data):
        (self.data.append(json.loads(data)) if self.in_json else self.words.append(data))
        self.in_json = False


def strange_run(folder, text):
    """A run in which whatever a stranger may write says `text` and where it stands."""
    words = {}

    def word(place):
        words[place] = f"{text} ({place})"
        return words[place]

    def file_name(place):
        return word(place).replace("/", "|")

    run = make_run(folder / file_name("run"), word=word("everywhere"), method=word("method"))
    strange = entry(word("protocol"), [row(word("metric"), 0.5, unit=word("unit"))]) | {
        "version": word("version"), "device": word("device"), "seed": word("seed"),
        "backbone": {"weights": word("weights")}, "features": [word("features")],
        "data": {word("data"): {"images": word("images"), "fingerprint": word("fingerprint")}},
        "options": {word("option"): [word("choice")]}, "notes": [word("note")],
        "pictures": {word("picture"): "evaluation/neighbours.png"},
    }  # fmt: skip
    known = json.loads((run / "evaluation.json").read_text())["evaluations"]
    write_evaluations(run, [*known, strange])
    options = yaml.safe_load((run / "config.yaml").read_text())
    options |= {word("setting"): [word("value")], "backbone": word("backbone")}
    (run / "config.yaml").write_text(yaml.safe_dump(options))
    versions = {"torch": word("torch"), word("package"): word("package's version")}
    (run / "versions.json").write_text(json.dumps(versions))
    save(run / "pictures" / f"{file_name('drawing')}_0001.png", (9, 9), 0)
    (run / "evaluation" / f"{file_name('video')}.mp4").write_bytes(b"")
    return run, words


@pytest.mark.parametrize("alone", [True, False])
def test_names_that_are_code_stay_words(tmp_path, alone):
    """From whatever file or name they come, and wherever they stand, also in attributes and JSON:
    the page has the tags and attributes of one with plain words."""

    def parsed(text):
        run, words = strange_run(tmp_path / str(len(text)), text)
        other = tmp_path / str(len(text)) / "other"  # its entries are those of the run
        write_evaluations(other.mkdir() or other, json.loads(
            (run / "evaluation.json").read_text())["evaluations"])  # fmt: skip
        return Parsed(page_of(run, *[other] * (not alone))), words

    (harmless, plain), (page, hostile) = parsed("plain"), parsed(HOSTILE)
    assert page.tags == harmless.tags
    for found, words in ((harmless, plain), (page, hostile)):
        shown = "\n".join(found.words)
        assert [place for place in words if f"({place})" not in shown] == []
        (maps,) = [data for data in found.data if isinstance(data, dict)]
        assert maps["names"] == ["cat", f"dog{words['everywhere']}"]
        assert list(maps["maps"]) == ["t-SNE 30", f"PCA{words['everywhere']}"]


def test_the_hover_of_an_embedding_has_what_the_evaluation_wrote(judge, make_subject, tmp_path):
    """Coordinates keep their shape, and the classes have the names of the data."""
    judge("embedding", make_subject(), perplexity=(5.0,), control=False)
    found = media.embedding(read_run(tmp_path / "out", "run"))
    data = found["data"]
    assert list(data["maps"]) == ["t-SNE 5", "PCA"] and data["names"] == [str(i) for i in range(10)]
    with np.load(tmp_path / "out/evaluation/embedding.npz") as arrays:
        xy, labels = arrays["pca"], arrays["labels"]
    assert data["labels"] == labels.tolist() and found["points"] == 60
    drawn = np.reshape(data["maps"]["PCA"], (-1, 2))
    distance = np.linalg.norm(xy[0] - xy[1]) / np.ptp(xy, 0).max() * 1000
    assert abs(np.linalg.norm(drawn[0] - drawn[1]) - distance) < 2
    assert found["sheet"]["width"] == data["columns"] * data["thumbnail"]


@pytest.mark.parametrize(
    ("protocol", "metrics", "expected"),
    [
        ("finetune", ["fine-tuned, top-1", "fine-tuned, top-5", "from scratch, top-1"], 0),
        ("semi", ["5 labels per class, probe, top-1", "50 labels per class, fine-tuned, top-1",
                  "50 labels per class, from scratch, top-1"], 1),
        ("transfer", ["AP", "AP50", "random weights, AP", "random weights, AP50"], 0),
        ("transfer", ["mIoU", "pixel accuracy", "random weights, mIoU"], 0),
        ("cluster", ["test, NMI", "test, matched accuracy", "train, matched accuracy"], 1),
        ("attention", ["Jaccard, mean over heads", "Jaccard, best head of each image",
                       "Jaccard, head 3"], 1),
        ("attention", ["Jaccard of the activation map"], 0),
    ],
)  # fmt: skip
def test_the_leaderboard_never_shows_a_control(protocol, metrics, expected):
    entry = SimpleNamespace(protocol=protocol, results=[{"metric": name} for name in metrics])
    assert leaderboard.headline(entry)["metric"] == metrics[expected]


# Curves


def test_a_long_curve_keeps_its_highest_and_lowest_values():
    points = [(i, 0.0) for i in range(10_000)]
    points[1234], points[7777] = (1234, 9.0), (7777, -9.0)
    kept = curves.thin(points)
    assert len(kept) <= curves.POINTS + 2
    assert {(1234, 9.0), (7777, -9.0), points[0], points[-1]} <= set(kept)
    assert kept == sorted(kept)


def test_labels_of_ticks_differ():
    values = [73.06 + 0.0025 * i for i in range(5)]
    texts = curves.labels(values)
    assert len({*texts}) == 5 and [float(t) for t in texts] == pytest.approx(values, abs=1e-3)
    assert curves.labels([0.0, 2e-5, 4e-5]) == ["0", "2.0e-5", "4.0e-5"]


def test_a_curve_breaks_where_a_value_is_not_finite():
    points = [(0, 1.0), (1, float("nan")), (2, 3.0), (3, 4.0)]
    assert curves.path(points, lambda x: x, lambda y: y) == "M0 1M2 3L3 4"
    thinned = curves.thin([(i, float("nan") if i == 600 else 1.0) for i in range(2000)])
    assert any(x == 600 for x, _ in thinned)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.13, 0.98, [0.0, 0.25, 0.5, 0.75, 1.0]), (-3, 41, [-20, 0, 20, 40, 60]), (5, 5, None)],
)
def test_ticks_are_round_and_enclose_the_values(low, high, expected):
    found = curves.ticks(low, high, 4)
    assert found[0] <= low and found[-1] >= high and len(found) >= 2
    assert expected is None or found == expected


def test_the_collapse_line_follows_the_width_of_the_features(tmp_path):
    run = read_run(make_run(tmp_path / "run"), "run")
    assert curves.guides("feature_std", [run]) == []
    run.width = 64
    (healthy, _), (ill, _) = curves.guides("feature_std", [run])
    assert healthy == pytest.approx(0.125) and ill == pytest.approx(0.0125)


# What it refuses


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("evaluation.json", "{"),
        ("evaluation.json", '{"evaluations": [{"protocol": "knn"}]}'),
        ("evaluation.json", '{"evaluations": 3}'),
        ("config.yaml", "- a\n- b\n"),
        ("config.yaml", "!!python/object/apply:os.system ['true']"),
        ("metrics.csv", "step,loss\n1,ab\n"),
        ("metrics.csv", "loss\n1\n"),
        ("evaluation/embedding.npz", "nothing"),
        ("evaluation/neighbours.png", "nothing"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(tmp_path, capsys, file, content):
    run = make_run(tmp_path / "run")
    (run / file).write_text(content)
    assert main(["report", str(run)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(run / file) in error
    assert not (run / "report.html").exists()


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "is no run folder" in capsys.readouterr().err
    assert main(["report", str(tmp_path), str(tmp_path)]) == 2
    assert "named twice" in capsys.readouterr().err


def test_the_command_says_what_it_wrote(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out.startswith(f"wrote {run / 'report.html'} (")
