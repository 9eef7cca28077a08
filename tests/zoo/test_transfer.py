"""Boxes and masks: reading VOC and COCO, training heads, counting AP and mIoU."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from sslzoo import backbones
from sslzoo.data import DataError
from sslzoo.data.annotated import IGNORED, Boxes, check_boxes, open_annotated
from sslzoo.evaluation.transfer import MapEncoder, average_precision, flip_boxes, mean_iou

COLOURS = {"apple": (220, 30, 30), "sky": (30, 30, 220)}
SIDE = 32


def scene(number):
    """(image, mask, name, box) of one coloured rectangle on grey; a box in pixels from 0."""
    generator = np.random.default_rng(number)
    name = ["apple", "sky"][number % 2]
    x, y = generator.integers(1, 14, 2).tolist()
    w, h = generator.integers(10, 17, 2).tolist()
    image = generator.integers(90, 110, (SIDE, SIDE, 3)).astype(np.uint8)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    image[y : y + h, x : x + w], mask[y : y + h, x : x + w] = COLOURS[name], 1 + number % 2
    mask[y, x] = IGNORED
    return image, mask, name, (x, y, x + w, y + h)


XML = """<annotation><object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin>
<ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object></annotation>"""


@pytest.fixture
def voc(tmp_path):
    root = tmp_path / "voc"
    for name in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Main",
                 "ImageSets/Segmentation"):  # fmt: skip
        (root / name).mkdir(parents=True)
    for split, numbers in (("train", range(8)), ("val", range(8, 12))):
        for number in numbers:
            image, mask, name, (x0, y0, x1, y1) = scene(number)
            Image.fromarray(image).save(root / f"JPEGImages/{number}.jpg", quality=95)
            Image.fromarray(mask).save(root / f"SegmentationClass/{number}.png")
            text = XML.format(name, int(number == 3), x0 + 1, y0 + 1, x1, y1)
            (root / f"Annotations/{number}.xml").write_text(text)
        for task in ("Main", "Segmentation"):
            text = "".join(f"{number}\n" for number in numbers)
            (root / f"ImageSets/{task}/{split}.txt").write_text(text)
    return root


@pytest.fixture
def coco(tmp_path):
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    for split, numbers in (("train2017", range(4)), ("val2017", range(4, 6))):
        (root / split).mkdir()
        categories = [{"id": 7, "name": "sky"}, {"id": 3, "name": "apple"}]
        content = {"images": [], "annotations": [], "categories": categories}
        for number in numbers:
            image, _, name, (x0, y0, x1, y1) = scene(number)
            Image.fromarray(image).save(root / split / f"{number}.jpg")
            content["images"].append({"id": 100 + number, "file_name": f"{number}.jpg",
                                      "height": SIDE, "width": SIDE})  # fmt: skip
            content["annotations"].append({
                "image_id": 100 + number, "category_id": {"apple": 3, "sky": 7}[name],
                "bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0),
                "iscrowd": 0, "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
            })  # fmt: skip
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    return root


def test_voc_gives_boxes_from_zero_and_masks(voc):
    data = open_annotated(voc, "train", "detection")
    assert len(data) == 8 and data.class_names == ["apple", "sky"]
    for number in (0, 3):
        image, target = data[number]
        expected, _, name, box = scene(number)
        assert (
            image.permute(1, 2, 0).int() - torch.tensor(expected).int()
        ).abs().float().mean() < 8
        assert target.boxes.tolist() == [list(box)]
        assert target.labels.tolist() == [1 + ["apple", "sky"].index(name)]
        assert target.ignored.tolist() == [number == 3]
    image, mask = open_annotated(voc, "test", "segmentation")[1]
    assert torch.equal(mask, torch.from_numpy(scene(9)[1]))


def test_coco_gives_the_same_boxes_and_draws_polygons(coco):
    data = open_annotated(coco, "train", "detection")
    assert data.class_names == ["apple", "sky"]
    masks = open_annotated(coco, "train", "segmentation")
    for number in range(4):
        _, mask, _, box = scene(number)
        target = data[number][1]
        assert target.boxes.tolist() == [list(box)] and target.labels.item() == 1 + number % 2
        drawn = masks[number][1]
        differs = (drawn.numpy() != mask) & (mask != IGNORED)
        assert differs.mean() < 0.02 and set(drawn.unique().tolist()) == {0, 1 + number % 2}


def boxes(*rows):
    boxes = torch.tensor(rows, dtype=torch.float32)
    return Boxes(boxes, torch.ones(len(rows), dtype=torch.int64), torch.zeros(len(rows)).bool())


def test_boxes_are_cut_by_rounding_and_refused_beyond_it():
    kept = check_boxes(boxes((-0.5, 0, 20.9, 10)), 10, 20, "a.jpg").boxes
    assert kept.tolist() == [[0, 0, 20, 10]]
    with pytest.raises(
        DataError, match=r"a\.jpg: the box \[5\.0, 5\.0, 30\.0, 9\.0\] lies outside"
    ):
        check_boxes(boxes((5, 5, 30, 9)), 10, 20, "a.jpg")
    with pytest.raises(DataError, match="is empty of 20 x 10 pixels"):
        check_boxes(boxes((5, 5, 5, 9)), 10, 20, "a.jpg")


def test_faults_of_the_files_are_told(voc, coco):
    with pytest.raises(DataError, match=r"no list ImageSets/Main/trainval\.txt"):
        open_annotated(voc, "train", "detection", "trainval")
    with pytest.raises(DataError, match=r"coco has no annotations/instances_dev\.json"):
        open_annotated(coco, "train", "detection", "dev")
    Image.fromarray(np.zeros((5, 6), np.uint8)).save(voc / "SegmentationClass/8.png")
    with pytest.raises(DataError, match=r"the mask of 8\.jpg has \(5, 6\) pixels, its image"):
        open_annotated(voc, "test", "segmentation")[0]
    (voc / "Annotations/0.xml").write_text("<annotation><object>")
    with pytest.raises(DataError, match=r"0\.xml is no readable annotation"):
        open_annotated(voc, "train", "detection")
    (voc / "Annotations/0.xml").unlink()
    with pytest.raises(DataError, match=r"has no Annotations/0\.xml"):
        open_annotated(voc, "train", "detection")
    file = coco / "annotations/instances_train2017.json"
    file.write_text(file.read_text().replace('"category_id": 3', '"category_id": 4'))
    with pytest.raises(DataError, match="annotations of a class that it does not list: 4"):
        open_annotated(coco, "train", "detection")
    file.write_text("[]")
    with pytest.raises(DataError, match="is no annotation file of COCO"):
        open_annotated(coco, "train", "detection")


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "a/../../secret"])
def test_lists_name_no_file_outside(voc, coco, name):
    for task in ("Main", "Segmentation"):
        (voc / f"ImageSets/{task}/val.txt").write_text(f"{name}\n")
    (voc / "Annotations" / "x.xml").write_text("<annotation/>")
    file = coco / "annotations/instances_val2017.json"
    file.write_text(file.read_text().replace("4.jpg", f"{name}.jpg"))
    for folder, task in ((voc, "detection"), (voc, "segmentation"), (coco, "detection")):
        with pytest.raises(DataError, match=rf"names {name}\.jpg, outside of {folder}"):
            open_annotated(folder, "test", task)


def test_a_flip_exchanges_left_and_right_of_image_and_boxes():
    image = torch.arange(6).reshape(1, 1, 6)
    flipped, target = flip_boxes(image, boxes((1, 0, 3, 1)))
    assert flipped.flatten().tolist() == [5, 4, 3, 2, 1, 0]
    assert target.boxes.tolist() == [[3, 0, 5, 1]]


class Told:
    """A detector that says what it was told, image by image."""

    def __init__(self, *answers):
        self.answers = iter(answers)

    def __call__(self, images):
        rows, scores = next(self.answers)
        found = torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)
        return [{"boxes": found, "scores": torch.tensor(scores),
                 "labels": torch.ones(len(found), dtype=torch.int64)}]  # fmt: skip


IMAGE = torch.zeros(3, 100, 100, dtype=torch.uint8)


def test_average_precision_worked_by_hand():
    one, other = (10, 10, 50, 50), (60, 60, 90, 90)
    data = [(IMAGE, boxes(one, other))]
    perfect = average_precision(Told(([one, other], [0.9, 0.8])), data, "cpu")
    assert all(value == pytest.approx(1) for value in perfect.values())
    # Half of the objects at full precision: 51 of 101 recalls, and 6 of 11.
    half = average_precision(Told(([one], [0.9])), data, "cpu")
    assert half["AP50"] == pytest.approx(51 / 101)
    assert half["AP50 (VOC07, 11 points)"] == pytest.approx(6 / 11)
    # An overlap of 0.7 counts at 0.5, 0.55, ... 0.7 and not at 0.75.
    loose = average_precision(Told(([(10, 10, 50, 38.01)], [0.9])), [(IMAGE, boxes(one))], "cpu")
    assert loose["AP50"] == pytest.approx(1) and loose["AP75"] == 0
    assert loose["AP"] == pytest.approx(0.5)


def test_difficult_objects_are_neither_found_nor_missed():
    one, other = (10, 10, 50, 50), (60, 60, 90, 90)
    target = boxes(one, other)._replace(ignored=torch.tensor([False, True]))
    for answer in (([one], [0.9]), ([one, other], [0.8, 0.9])):
        assert average_precision(Told(answer), [(IMAGE, target)], "cpu")["AP50"] == pytest.approx(1)


def test_mean_iou_is_of_one_matrix_over_all_images():
    truths = torch.tensor([[[0, 0], [1, 1]], [[1, 1], [1, IGNORED]]], dtype=torch.uint8)
    answers = iter(torch.tensor([[[0, 1], [1, 1]], [[1, 1], [0, 0]]]))

    def model(x, shape):
        return torch.nn.functional.one_hot(next(answers), 3).permute(2, 0, 1)[None].float()

    data = [(torch.zeros(3, 2, 2, dtype=torch.uint8), mask) for mask in truths]
    iou, accuracy = mean_iou(model, data, 4, 3, "cpu")
    # Background: 1 / 3. Class 1: 4 / 6. Class 2 occurs nowhere. 5 of 7 pixels are right.
    assert iou == pytest.approx((1 / 3 + 4 / 6) / 2) and accuracy == pytest.approx(5 / 7)


def test_mean_iou_of_oracle_and_of_random_maps():
    """Without noise 1, worse with more of it, and at last what guessing gives."""
    C, S = 4, 40
    generator = torch.Generator().manual_seed(0)
    shares = torch.tensor([0.55, 0.25, 0.15, 0.05])
    masks = torch.multinomial(shares, 6 * S * S, True, generator=generator).view(6, S, S)
    data = [(torch.zeros(3, S, S, dtype=torch.uint8), mask.byte()) for mask in masks]
    values = []
    for noise in (0.0, 0.5, 1.0, 1e6):
        logits = [(F.one_hot(mask, C).permute(2, 0, 1)
                   + noise * torch.randn(C, S, S, generator=generator))[None]
                  for mask in masks]  # fmt: skip
        left = iter(logits)
        values.append(mean_iou(lambda *_, left=left: next(left), data, S, C, "cpu")[0])
    assert values[0] == 1 and np.diff(values).max() < 0
    # A guess of equal chances: both = share / C of the pixels, either = share + 1 / C - both.
    both = shares / C
    assert values[-1] == pytest.approx((both / (shares + 1 / C - both)).mean().item(), abs=0.01)


def test_changed_masks_and_boxes_are_other_data(voc, coco):
    for path, task, change in (
        (voc, "segmentation", lambda: Image.fromarray(np.zeros((9, 9), np.uint8)).save(
            voc / "SegmentationClass/1.png")),
        (voc, "detection", lambda: (voc / "Annotations/1.xml").write_text(
            XML.format("sky", 0, 1, 1, 9, 9))),
        (coco, "segmentation", lambda: edit(coco, 'tion": [[', 'tion": [[1, 1, ')),
    ):  # fmt: skip
        before = open_annotated(path, "train", task).fingerprint()
        assert open_annotated(path, "train", task).fingerprint() == before
        change()
        assert open_annotated(path, "train", task).fingerprint() != before


def edit(coco, old, new):
    file = coco / "annotations/instances_train2017.json"
    file.write_text(file.read_text().replace(old, new, 1))


def test_a_frozen_encoder_stays_as_it_is_and_a_tuned_one_does_not():
    for tuned in (False, True):
        model = backbones.build("convnet4", image_size=16)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        encoder = MapEncoder(model, None, 16, 3, tuned).train()
        out = encoder(torch.randn(4, 3, 16, 16))
        same = all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert out.requires_grad == tuned and same != tuned and model.training == tuned
        assert encoder.width == out.shape[1] and encoder.cells == out.shape[-1]


def subject_of(make_subject, path, source="resnet10t", **options):
    return make_subject(source, data=str(path), channels=3, image_size=SIDE, **options)


def test_segmentation_learns_the_coloured_rectangles(judge, make_subject, voc):
    subject = subject_of(make_subject, voc, "convnet4", layers="blocks.1")
    options = dict(steps=60, batch_size=4, lr=0.1)
    values, result = judge("transfer", subject, **options)
    assert values["mIoU"] > 0.6 and values["pixel accuracy"] > 0.8
    assert "random weights, mIoU" in values and result.details["tuned"] is False
    assert judge("transfer", subject, **options)[0] == values


def small_heads(monkeypatch):
    for name, value in (("NECK", 32), ("BOXES", 32), ("PROPOSALS", 50), ("HIDDEN", 64)):
        monkeypatch.setattr(f"sslzoo.evaluation.transfer.{name}", value)


@pytest.mark.slow
def test_detection_learns_the_coloured_rectangles(judge, make_subject, voc, monkeypatch):
    small_heads(monkeypatch)
    subject = subject_of(make_subject, voc, "convnet4", layers="blocks.1")
    values, _ = judge("transfer", subject, task="detection", tuned=True, control=False, steps=100,
                      batch_size=2)  # fmt: skip
    assert values["AP50"] > 0.3 and {"AP", "AP75", "AP50 (VOC07, 11 points)"} < {*values}


def test_a_transformer_serves_too(judge, make_subject, coco, monkeypatch):
    small_heads(monkeypatch)
    subject = subject_of(make_subject, coco, "vit_micro_p4")
    values, _ = judge("transfer", subject, head="fcn", steps=2, batch_size=2, control=False)
    assert 0 <= values["mIoU"] <= 1
    values, _ = judge("transfer", subject, task="detection", steps=1, batch_size=2, control=False)
    assert -1 <= values["AP"] <= 1


def test_data_without_boxes_is_told(judge, make_subject, voc):
    with pytest.raises(DataError, match="of no known layout"):
        judge("transfer")
    with pytest.raises(DataError, match="this backbone takes 1"):
        judge("transfer", make_subject(data=str(voc)))
