"""Support vector machines for images of several classes: AP by hand, and scikit-learn's own."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.model_selection import GridSearchCV
from sklearn.svm import LinearSVC

from sslzoo.cli import main
from sslzoo.data import DataError
from sslzoo.data.annotated import open_annotated
from sslzoo.evaluation.svm import average_precision, draw_few, fit_class, judge, unit
from sslzoo.evaluators.svm import targets_of

COLOURS = {"apple": (220, 30, 30), "sky": (30, 30, 220), "tree": (30, 200, 30)}
NAMES = list(COLOURS)
OBJECT = """<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>1</ymin>
<xmax>{}</xmax><ymax>16</ymax></bndbox></object>"""


def classes_of(number):
    """Every class is in some images, with others or alone; one is difficult in image 5."""
    return [name for bit, name in enumerate(NAMES) if number >> bit & 1]


@pytest.fixture
def voc(tmp_path):
    """Stripes of the classes' colours on grey, in VOC's layout: 32 images to train, 16 to test."""
    root = tmp_path / "voc"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    for split, numbers in (("train", range(32)), ("val", range(32, 48))):
        for number in numbers:
            pixels = np.random.default_rng(number).integers(90, 110, (16, 24, 3), dtype=np.uint8)
            objects = ""
            for name in classes_of(number):
                left = 8 * NAMES.index(name)
                pixels[:, left : left + 8] = COLOURS[name]
                is_difficult = int(number == 5 and name == "apple")
                objects += OBJECT.format(name, is_difficult, left + 1, left + 8)
            Image.fromarray(pixels).save(root / f"JPEGImages/{number}.jpg", quality=95)
            text = f"<annotation>{objects}</annotation>"
            (root / f"Annotations/{number}.xml").write_text(text)
        text = "".join(f"{number}\n" for number in numbers)
        (root / f"ImageSets/Main/{split}.txt").write_text(text)
    return root


def test_average_precision_worked_by_hand():
    # Precisions at the recalls 1/2 and 1 are 1/2 and 2/3: made falling, 2/3 and 2/3.
    rising = average_precision(np.array([0, 1, 1]) > 0, np.array([3.0, 2.0, 1.0]))
    assert rising == pytest.approx((2 / 3, 2 / 3))
    # 1, 2/3 and 3/6 at the recalls 1/3, 2/3 and 1: at 11 recalls 4 times, 3 times and 4 times.
    falling = average_precision(np.array([1, 0, 1, 0, 0, 1]) > 0, -np.arange(6.0))
    assert falling.area == pytest.approx((1 + 2 / 3 + 1 / 2) / 3)
    assert falling.eleven == pytest.approx((4 * 1 + 3 * 2 / 3 + 4 / 2) / 11)


def test_a_class_s_machine_and_cost_are_scikit_learns():
    generator = np.random.default_rng(0)
    is_present = np.arange(90) % 3 == 0
    features = torch.tensor(generator.normal(size=(90, 6)) + 0.6 * is_present[:, None])
    x, costs = unit(features), (0.01, 1.0, 100.0)
    for weight, theirs in ((0.0, "balanced"), (2.0, {True: 2, False: 1})):
        model, cost = fit_class(x, is_present, costs=costs, positive_weight=weight)
        machine = LinearSVC(class_weight=theirs, random_state=0, max_iter=2000, dual=True)
        search = GridSearchCV(machine, {"C": costs}, scoring="average_precision", cv=3)
        search.fit(x, is_present)
        assert cost == search.best_params_["C"]
        expected = search.best_estimator_.decision_function(x)
        np.testing.assert_allclose(model.decision_function(x), expected, rtol=1e-6)
    lengths = np.linalg.norm(x, axis=1)
    np.testing.assert_allclose(lengths, 1)


def test_unsure_images_do_not_count():
    class Told:
        def decision_function(self, x):
            return x

    scores, targets = np.array([4.0, 3.0, 2.0, 1.0]), np.array([0, 1, -1, 1])
    assert judge(Told(), scores, targets).area == pytest.approx((1 + 2 / 3) / 2)


def test_a_draw_of_few_has_19_images_without_the_class_for_each_with_it():
    targets = np.repeat([1, -1, 0], [10, 60, 5])
    rows = draw_few(targets, 3, (0, 1))
    assert [int((targets[rows] == value).sum()) for value in (1, -1, 0)] == [3, 57, 0]
    assert len(set(rows)) == 60 and not np.array_equal(rows, draw_few(targets, 3, (0, 2)))
    assert len(draw_few(targets, 5, 0)) == 5 + 60, "there are no more"


def test_targets_of_images_with_several_classes(voc):
    targets = targets_of(open_annotated(voc, "train", "detection"))
    assert targets.shape == (32, 3) and targets[7].tolist() == [1, 1, 1]
    assert targets[2].tolist() == [-1, 1, -1] and targets[0].tolist() == [-1] * 3
    assert targets[5].tolist() == [0, -1, 1], "a difficult object alone: neither with nor without"


def test_oracle_features_rank_all_right_and_random_ones_as_often_as_the_class_occurs():
    generator = np.random.default_rng(0)
    is_present = np.arange(400) % 4 == 0
    values = []
    for noise in (0.0, 0.4, 1.0, 1e6):
        x, x_test = (
            unit(torch.tensor(np.eye(2)[is_present * 1] + noise * generator.normal(size=(400, 2))))
            for _ in range(2)
        )
        model, _ = fit_class(x, is_present, costs=(1.0,))
        values.append(judge(model, x_test, np.where(is_present, 1, -1)).area)
    assert values[0] == 1 and np.diff(values).max() < 0
    assert values[-1] == pytest.approx(0.25, abs=0.06)


def test_the_command_ranks_colours_and_says_the_same_again(voc, tmp_path, capsys):
    argv = ["evaluate", "svm", "convnet4", "--data", str(voc), "--image_size", "16", "--device",
            "cpu", "--out", str(tmp_path / "out"), "--low_shot", "[2]", "--draws", "2",
            "--layers", "blocks.0,blocks.1"]  # fmt: skip
    assert main(argv) == 0
    printed = capsys.readouterr().out
    (entry,) = json.loads((tmp_path / "out/evaluation.json").read_text())["evaluations"]
    assert entry["protocol"] == "svm" and entry["version"] == 1
    assert {name: part["images"] for name, part in entry["data"].items()} == {
        "voc/train": 32, "voc/val": 16}  # fmt: skip
    found = {row["metric"]: row["value"] for row in entry["results"]}
    assert found["blocks.1: mAP"] > 0.9 and found["blocks.1: mAP (VOC07, 11 points)"] > 0.9
    assert found["blocks.0: 2 images per class, mAP"] > 0.5
    classes = entry["details"]["classes"]["blocks.1"]
    assert found["blocks.1: mAP"] == pytest.approx(np.mean([c["AP"] for c in classes.values()]))
    assert main(argv) == 0 and capsys.readouterr().out == printed


def test_data_that_does_not_allow_it_is_told_in_one_line(voc, judge, make_subject):
    with pytest.raises(DataError, match="of no known layout"):
        judge("svm")  # on the digits
    subject = make_subject(data=str(voc), channels=3, max_train=4)
    with pytest.raises(DataError, match=r"voc/train has \d images with apple; the support vector "
                       "machines need 3"):  # fmt: skip
        judge("svm", subject)
    with pytest.raises(DataError, match="this backbone takes 1"):
        judge("svm", make_subject(data=str(voc)))
    (voc / "JPEGImages/40.jpg").unlink()
    with pytest.raises(DataError, match=r"40\.jpg"):
        judge("svm", make_subject(data=str(voc), channels=3, max_train=0, max_test=0))
    with pytest.raises(ValueError, match="costs must be above 0"):
        judge("svm", make_subject(data=str(voc), channels=3), costs=(0.0,))
