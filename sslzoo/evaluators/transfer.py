"""Detection or segmentation by torchvision's heads on the frozen or tuned encoder."""

import importlib.util
from dataclasses import dataclass
from typing import Literal

import torch

from sslzoo.data import DataError
from sslzoo.data.annotated import IGNORED, layout_of
from sslzoo.evaluation.results import Result, Row
from sslzoo.evaluation.transfer import (
    MapEncoder,
    Segmenter,
    average_precision,
    detector,
    mean_iou,
    train_detector,
    train_segmenter,
)

VERSION = 1
RATES = {"detection": 0.02, "segmentation": 0.01}


@dataclass
class Config:
    """Options of the transfer. --data names a folder of VOC or COCO."""

    task: Literal["detection", "segmentation"] = "segmentation"
    """What is learnt: boxes (Faster R-CNN) or a class for each pixel."""
    head: Literal["linear", "fcn", "deeplab"] = "linear"
    """Of the segmentation: a 1 x 1 convolution, or torchvision's FCN or DeepLab v3."""
    tuned: bool = False
    """Train the encoder too, in training mode; else it is frozen."""
    control: bool = True
    """Also the same on the encoder with random weights."""
    train_list: str = ""
    """List of the training images, such as trainval; empty is train, of COCO train2017."""
    test_list: str = ""
    """List of the images to be judged on; empty is val, of COCO val2017."""
    steps: int = 2000
    """Steps of the optimizer."""
    batch_size: int = 8
    """Images of a step."""
    lr: float = 0.0
    """Learning rate; 0 is 0.02 for detection, 0.01 for segmentation."""

    def __post_init__(self):
        if self.steps < 1 or self.batch_size < 1 or self.lr < 0:
            raise ValueError("steps and batch_size must be at least 1, lr at least 0")


def unsuitable(subject):
    """Why not: the data has neither boxes nor masks."""
    try:
        is_known = layout_of(subject.spec) in ("voc", "coco")
    except DataError as error:
        return str(error)
    return None if is_known else "transfer needs the layout of VOC or COCO"


def evaluate(subject, config):
    """Rows of the trained encoder, and of the one with random weights."""
    reason = unsuitable(subject)
    if reason:
        raise DataError(reason)
    needs_coco = config.task == "detection" or layout_of(subject.spec) == "coco"
    if needs_coco and importlib.util.find_spec("pycocotools") is None:
        raise DataError("this needs pycocotools: pip install 'sslops[detection]'")
    train = subject.annotated("train", config.task, config.train_list)
    test = subject.annotated("test", config.task, config.test_list)
    if config.task == "detection" and len(train.class_names) < 1:
        raise DataError(f"{train.name} holds no objects")
    starts = {"": subject.trainable}
    if config.control:
        starts["random weights, "] = subject.untrained
    rows, losses = [], {}
    judge = {"detection": detection, "segmentation": segmentation}[config.task]
    for name, start in starts.items():
        found, losses[name or "encoder"] = judge(subject, config, start(), train, test)
        rows += [Row(name + metric, value) for metric, value in found.items()]
    return Result(rows, details={"last_loss": losses, "tuned": config.tuned})


def encoder_of(subject, config, encoder):
    channels = subject.about["channels"]
    return MapEncoder(encoder, subject.layers[-1], subject.size, channels, config.tuned)


def options(subject, config):
    return dict(steps=config.steps, batch_size=config.batch_size, seed=subject.seed,
                lr=config.lr or RATES[config.task], device=subject.device,
                workers=subject.common.workers)  # fmt: skip


def detection(subject, config, encoder, train, test):
    """({metric: AP}, last loss)."""
    with torch.random.fork_rng([]):
        torch.manual_seed(subject.seed)
        model = detector(encoder_of(subject, config, encoder), len(train.class_names),
                         *subject.view).to(subject.device)  # fmt: skip
        model, loss = train_detector(model, train, **options(subject, config))
    return average_precision(model, test, subject.device), loss


def segmentation(subject, config, encoder, train, test):
    """({mIoU and pixel accuracy}, last loss)."""
    size, mean, std = subject.view
    classes = 1 + max(largest(train), largest(test))
    if classes < 2:
        raise DataError(f"the masks of {train.name} and {test.name} hold the background alone")
    with torch.random.fork_rng([]):
        torch.manual_seed(subject.seed)
        model = Segmenter(encoder_of(subject, config, encoder), classes, config.head, mean,
                          std).to(subject.device)  # fmt: skip
        model, loss = train_segmenter(model, train, size, **options(subject, config))
    iou, accuracy = mean_iou(model, test, size, classes, subject.device)
    return {"mIoU": iou, "pixel accuracy": accuracy}, loss


def largest(data):
    """The largest class number of the masks; COCO tells it in the list of classes."""
    if data.class_names is not None:
        return len(data.class_names)
    masks = (annotation() for _, annotation in data.rows)
    return max(int(mask[mask != IGNORED].max()) if (mask != IGNORED).any() else 0
               for mask in masks)  # fmt: skip
