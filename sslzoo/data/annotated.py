"""Images with boxes or masks: the layouts of Pascal VOC and COCO, and Parquet with masks."""

import hashlib
import io
import json
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image

from sslzoo.data.decoding import DAMAGE, decode
from sslzoo.data.image_data import DataError

IGNORED = 255  # in a mask: pixels that count nowhere
SLACK = 1.0  # pixels that a box may lie outside the image, by rounding
LISTS = {"voc": ("train", "val"), "coco": ("train2017", "val2017")}


class Boxes(NamedTuple):
    """The objects of an image."""

    boxes: torch.Tensor  # float32 [n, 4], x0 y0 x1 y1 in pixels from 0
    labels: torch.Tensor  # int64 [n], from 1
    ignored: torch.Tensor  # bool [n]: difficult (VOC) or a crowd (COCO)

    def key(self):
        return b"".join(part.numpy().tobytes() for part in self)


def file_key(path):
    """Name and size of a file, as bytes; the name alone where it is missing."""
    size = path.stat().st_size if path.is_file() else None
    return f"{path.name} {size}\n".encode()


class Annotated:
    """Images with boxes or masks, read one by one.

    Attributes:
        class_names: of the labels from 1; 0 is the background.
    """

    def __init__(self, name, rows, class_names):
        self.name, self.rows, self.class_names = name, rows, class_names
        if not rows:
            raise DataError(f"{name} lists no images")

    def __len__(self):
        return len(self.rows)

    def fingerprint(self):
        """Hexadecimal digest of boxes, polygons and small masks; of files their names and sizes."""
        digest = hashlib.blake2b(digest_size=6)
        for path, annotation in self.rows:
            digest.update(file_key(path) if isinstance(path, Path) else path.key())
            digest.update(annotation.key())
        return digest.hexdigest()

    def __getitem__(self, index):
        """(image uint8 [3, H, W], Boxes or mask uint8 [H, W])."""
        path, annotation = self.rows[index]
        image = decode(path, str(path)) if isinstance(path, Path) else path()
        H, W = image.shape[-2:]
        if isinstance(annotation, Boxes):
            return image, check_boxes(annotation, H, W, path)
        mask = annotation()
        if mask.shape != (H, W):
            raise DataError(f"{self.name}: the mask of {getattr(path, 'name', 'a row')} has "
                            f"{tuple(mask.shape)} pixels, its image {(H, W)}")  # fmt: skip
        return image, mask


def layout_of(path):
    """ "voc", "coco" or "parquet"; a DataError where it is none of them."""
    path = Path(path)
    if path.suffix == ".parquet" and path.is_file():
        return "parquet"
    if (path / "JPEGImages").is_dir():
        return "voc"
    if (path / "annotations").is_dir():
        return "coco"
    raise DataError(f"{path} is of no known layout: VOC holds JPEGImages/, COCO annotations/")


def open_annotated(path, split, task, name=""):
    """Images with boxes ("detection") or masks ("segmentation").

    Args:
        path: VOC: JPEGImages/, Annotations/ or SegmentationClass/, ImageSets/; COCO:
            annotations/instances_LIST.json and LIST/; or Parquet with columns image and mask.
        split: "train" or "test".
        task: "detection" or "segmentation".
        name: of the list where it is not the usual one, such as "trainval" or "train_aug".

    Returns:
        Annotated.

    Raises:
        DataError: something is missing or does not fit; the message says what.
    """
    path, layout = Path(path), layout_of(path)
    if layout == "parquet":
        return _parquet(path, task)
    name = name or LISTS[layout][split != "train"]
    return {"voc": _voc, "coco": _coco}[layout](path, name, task)


def member(folder, name):
    """A file by the name that a list gives it; a DataError where that leads out of the folder."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise DataError(f"a list of {folder.parent} names {name}, outside of {folder}")
    return folder / name


def check_boxes(annotation, height, width, where):
    """The Boxes, cut at the image's edge; a DataError where one lies outside or is empty."""
    boxes = annotation.boxes
    limit = torch.tensor([width, height, width, height], dtype=torch.float32)
    outside = (boxes < -SLACK).any(1) | (boxes > limit + SLACK).any(1)
    boxes = boxes.clamp(min=0).minimum(limit)
    empty = (boxes[:, 2:] <= boxes[:, :2]).any(1)
    for fault, words in ((outside, "lies outside the image"), (empty, "is empty")):
        if fault.any():
            box = [round(x, 1) for x in annotation.boxes[fault][0].tolist()]
            raise DataError(f"{where}: the box {box} {words} of {width} x {height} pixels")
    return annotation._replace(boxes=boxes)


def _voc(path, name, task):
    folder = {"detection": "Main", "segmentation": "Segmentation"}[task]
    file = path / "ImageSets" / folder / f"{name}.txt"
    if not file.is_file():
        raise DataError(f"{path} has no list {file.relative_to(path)}")
    stems = [line.split()[0] for line in file.read_text().splitlines() if line.strip()]
    images = [member(path / "JPEGImages", f"{stem}.jpg") for stem in stems]
    if task == "segmentation":
        masks = [member(path / "SegmentationClass", f"{stem}.png") for stem in stems]
        rows = [(image, MaskFile(mask)) for image, mask in zip(images, masks, strict=True)]
        return Annotated(f"{path.name}/{name}", rows, None)
    # All annotations, so that every list has the same classes.
    known = {file.stem: _voc_objects(file) for file in (path / "Annotations").glob("*.xml")}
    names = sorted({words[0] for objects in known.values() for words in objects})
    missing = next((stem for stem in stems if stem not in known), None)
    if missing:
        raise DataError(f"{path} has no Annotations/{missing}.xml")
    found = [known[stem] for stem in stems]
    rows = [(image, _voc_boxes(objects, names))
            for image, objects in zip(images, found, strict=True)]  # fmt: skip
    return Annotated(f"{path.name}/{name}", rows, names)


def _voc_objects(file):
    """[(name, difficult, xmin, ymin, xmax, ymax)] of an XML file."""
    try:
        root = ElementTree.parse(file).getroot()
        corners = ("xmin", "ymin", "xmax", "ymax")
        return [(node.findtext("name"), node.findtext("difficult", "0") == "1",
                 *(float(node.find("bndbox").findtext(c)) for c in corners))
                for node in root.iter("object")]  # fmt: skip
    except (OSError, ElementTree.ParseError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{file} is no readable annotation ({error})") from error


def _voc_boxes(objects, names):
    # VOC counts pixels from 1 and includes the last one.
    boxes = torch.tensor([o[2:] for o in objects], dtype=torch.float32).reshape(-1, 4)
    return Boxes(boxes - torch.tensor([1.0, 1.0, 0.0, 0.0]),
                 torch.tensor([names.index(o[0]) + 1 for o in objects], dtype=torch.int64),
                 torch.tensor([o[1] for o in objects], dtype=torch.bool))  # fmt: skip


def _coco(path, name, task):
    file = path / "annotations" / f"instances_{name}.json"
    try:
        content = json.loads(file.read_text())
        categories = sorted(content["categories"], key=lambda c: c["id"])
        number = {category["id"]: i for i, category in enumerate(categories, 1)}
        images = content["images"]
        of_image = {image["id"]: [] for image in images}
        for annotation in content["annotations"]:
            of_image[annotation["image_id"]].append(annotation)
        unknown = {annotation["category_id"] for annotation in content["annotations"]} - {*number}
        files = [member(path / name, image["file_name"]) for image in images]
    except FileNotFoundError as error:
        raise DataError(f"{path} has no {file.relative_to(path)}") from error
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError(f"{file} is no annotation file of COCO ({error!r})") from error
    if unknown:
        raise DataError(f"{file} has annotations of a class that it does not list: {min(unknown)}")
    make = {"detection": _coco_boxes, "segmentation": CocoMask}[task]
    rows = [(image_file, make(of_image[image["id"]], number, image))
            for image_file, image in zip(files, images, strict=True)]  # fmt: skip
    return Annotated(f"{path.name}/{name}", rows, [c["name"] for c in categories])


def _coco_boxes(annotations, number, image):
    boxes = torch.tensor([a["bbox"] for a in annotations], dtype=torch.float32).reshape(-1, 4)
    return Boxes(torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1),
                 torch.tensor([number[a["category_id"]] for a in annotations], dtype=torch.int64),
                 torch.tensor([bool(a.get("iscrowd")) for a in annotations]).bool())  # fmt: skip


class MaskFile(NamedTuple):
    """A PNG whose pixels are class numbers; calling it reads it."""

    path: Path

    def key(self):
        return file_key(self.path)

    def __call__(self):
        try:
            with Image.open(self.path) as image:
                return torch.from_numpy(np.array(image))
        except DAMAGE as error:
            raise DataError(f"{self.path} is not a readable mask ({error})") from error


class CocoMask(NamedTuple):
    """Class numbers drawn from polygons; smaller objects lie above larger ones."""

    annotations: list
    number: dict
    image: dict

    def key(self):
        return json.dumps([self.annotations, self.image], sort_keys=True).encode()

    def __call__(self):
        from pycocotools import mask as coco

        H, W = self.image["height"], self.image["width"]
        out = np.zeros((H, W), np.uint8)
        for annotation in sorted(self.annotations, key=lambda a: -a.get("area", 0)):
            shape = annotation["segmentation"]
            if isinstance(shape, list):
                shape = coco.merge(coco.frPyObjects(shape, H, W))
            elif isinstance(shape["counts"], list):
                shape = coco.frPyObjects(shape, H, W)
            value = IGNORED if annotation.get("iscrowd") else self.number[annotation["category_id"]]
            out[coco.decode(shape).astype(bool)] = value
        return torch.from_numpy(out)


def _parquet(path, task):
    """Rows with an encoded image and an encoded mask, in which all but 0 is the object."""
    if task != "segmentation":
        raise DataError(f"{path} holds no boxes: detection needs the layout of VOC or COCO")
    try:
        table = pq.read_table(path, columns=["image", "mask"])
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} has no columns image and mask ({error})") from error
    rows = [(Cell(table["image"], i, path), ObjectMask(table["mask"], i))
            for i in range(len(table))]  # fmt: skip
    return Annotated(path.name, rows, ["object"])


class Cell(NamedTuple):
    """An encoded image in a column; calling it decodes it."""

    column: object
    row: int
    path: Path

    def key(self):
        return self.column[self.row]["bytes"].as_py()

    def __call__(self):
        return decode(io.BytesIO(self.column[self.row]["bytes"].as_py()),
                      f"row {self.row} of {self.path}")  # fmt: skip


class ObjectMask(NamedTuple):
    """An encoded mask in a column; calling it decodes it to 0 and 1."""

    column: object
    row: int

    def key(self):
        return self.column[self.row]["bytes"].as_py()

    def __call__(self):
        with Image.open(io.BytesIO(self.column[self.row]["bytes"].as_py())) as image:
            return torch.from_numpy((np.array(image.convert("L")) > 0).astype(np.uint8))
