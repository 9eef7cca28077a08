"""Mean average precision of linear support vector machines, as VOC07 counts classification."""

from dataclasses import dataclass

import numpy as np

from sslzoo.data import DataError, ImageData
from sslzoo.data.annotated import layout_of
from sslzoo.data.folder import ImageFiles
from sslzoo.evaluation.layers import prefix
from sslzoo.evaluation.results import Result, Row
from sslzoo.evaluation.svm import (
    ABSENT,
    COSTS,
    FOLDS,
    PRESENT,
    UNSURE,
    check_counts,
    draw_few,
    fit_class,
    judge,
    unit,
)

VERSION = 1


@dataclass
class Config:
    """Options of the support vector machines. --data names a folder of VOC or COCO."""

    train_list: str = ""
    """List of the training images, such as trainval; empty is train, of COCO train2017."""
    test_list: str = ""
    """List of the test images; empty is val, of COCO val2017."""
    costs: tuple[float, ...] = COSTS
    """Costs (scikit-learn's C) that each class chooses from by 3-fold cross-validation."""
    positive_weight: float = 0.0
    """Weight of an image with the class, where one without it has 1; 0 balances the two kinds."""
    low_shot: tuple[int, ...] = ()
    """Also with so many images of each class, such as [1,2,4,8,16,32,64,96], and 19 times as many
    without it."""
    draws: int = 5
    """Draws of these few images: their mean and standard deviation are given."""
    low_shot_cost: float = 1.0
    """Cost with few images: there is nothing to choose it on."""

    def __post_init__(self):
        if not self.costs or min(self.costs) <= 0 or self.low_shot_cost <= 0:
            raise ValueError("costs must be above 0")
        if any(k < 1 for k in self.low_shot) or self.draws < 1 or self.positive_weight < 0:
            raise ValueError("low_shot and draws must be at least 1, positive_weight at least 0")


def unsuitable(subject):
    """Why not: the images have no objects that name several classes."""
    try:
        is_known = layout_of(subject.spec) in ("voc", "coco")
    except DataError as error:
        return str(error)
    return None if is_known else "svm needs the layout of VOC or COCO"


def evaluate(subject, config):
    """mAP of each layer by area and at 11 recalls; the classes' own in the details."""
    reason = unsuitable(subject)
    if reason:
        raise DataError(reason)
    train, test = (subject.annotated(split, "detection", name)
                   for split, name in (("train", config.train_list),
                                       ("test", config.test_list)))  # fmt: skip
    names = train.class_names
    targets, test_targets = targets_of(train), targets_of(test)
    check_counts(targets, names, max([FOLDS, *config.low_shot]), train.name)
    check_counts(test_targets, names, 1, test.name)
    rows, details = [], {}
    for layer in subject.layers:
        x, x_test = (unit(subject.features_of(images_of(data), data.fingerprint(), layer))
                     for data in (train, test))  # fmt: skip
        found = Classes(x, targets, x_test, test_targets, config, subject.seed)
        details[layer or "output"] = per_class = found.all_images(names)
        for name, key in (("mAP", "AP"), ("mAP (VOC07, 11 points)", "AP (11 points)")):
            rows.append(Row(prefix(layer) + name, mean(per_class.values(), key)))
        for k in config.low_shot:
            values = [found.few_images(k, draw) for draw in range(config.draws)]
            words = f"{prefix(layer)}{k} image{'s' * (k > 1)} per class, mAP"
            rows.append(Row(words, float(np.mean(values)), float(np.std(values))))
    return Result(rows, details={"classes": details})


def images_of(data):
    """The images of an Annotated as ImageData."""
    return ImageData(data.name, source=ImageFiles([path for path, _ in data.rows]))


def targets_of(data):
    """Whether each class is in each image: 1, 0 (a difficult object alone) or -1, int [N, C]."""
    targets = np.full((len(data), len(data.class_names)), ABSENT)
    for row, (_, objects) in zip(targets, data.rows, strict=True):
        numbers, ignored = objects.labels.numpy() - 1, objects.ignored.numpy()
        row[numbers[ignored]] = UNSURE
        row[numbers[~ignored]] = PRESENT
    return targets


def mean(classes, key):
    return float(np.mean([one[key] for one in classes]))


class Classes:
    """The machines of all classes, on the features of one layer."""

    def __init__(self, x, targets, x_test, test_targets, config, seed):
        self.x, self.targets, self.config, self.seed = x, targets, config, seed
        self.x_test, self.test_targets = x_test, test_targets

    def all_images(self, names):
        """{class: {AP, AP (11 points), C}} with all images that are sure, the cost chosen."""
        found = {}
        for number, name in enumerate(names):
            sure = np.flatnonzero(self.targets[:, number] != UNSURE)
            ap, cost = self.judged(number, sure, self.config.costs)
            found[name] = {"AP": ap.area, "AP (11 points)": ap.eleven, "C": cost}
        return found

    def few_images(self, k, draw):
        """mAP by area of one draw of k images of each class."""
        cost = (self.config.low_shot_cost,)
        found = [self.judged(number, draw_few(column, k, (self.seed, draw, number)), cost)[0].area
                 for number, column in enumerate(self.targets.T)]  # fmt: skip
        return float(np.mean(found))

    def judged(self, number, rows, costs):
        """(AveragePrecision on the test images, cost) of a class, learnt from some rows."""
        is_present = self.targets[rows, number] == PRESENT
        model, cost = fit_class(self.x[rows], is_present, costs=costs, seed=self.seed,
                                positive_weight=self.config.positive_weight)  # fmt: skip
        return judge(model, self.x_test, self.test_targets[:, number]), cost
