"""Heads for boxes and masks on an encoder's map: torchvision's, with the encoder or alone."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.fcn import FCNHead
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from sslzoo.backbones import dense_features
from sslzoo.data import DataError
from sslzoo.data.annotated import IGNORED
from sslzoo.progress import with_bar

NECK = 128  # channels of the map that the detector sees
BOXES = 128  # of an image that a step learns from
PROPOSALS = 300  # of an image that are looked at
HIDDEN = 1024  # width of the layers that look at a box
ANCHORS = (0.04, 0.08, 0.16, 0.32, 0.64)  # of the image's side
MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4
CLIP = 10.0  # norm of the gradient: a box's first errors can be large


class MapEncoder(nn.Module):
    """The last map of an encoder; frozen, it keeps its mode and has no gradient.

    Args:
        tuned: whether the encoder is trained with the head.
    """

    def __init__(self, encoder, layer, size, channels, tuned):
        super().__init__()
        self.encoder, self.layer, self.tuned = encoder.requires_grad_(tuned), layer, tuned
        encoder.eval()
        where = next(encoder.parameters()).device
        with torch.no_grad():
            found = dense_features(
                encoder, torch.zeros(1, channels, size, size, device=where), layer
            )
        self.width, self.cells = found.shape[1], found.shape[-1]

    def train(self, mode=True):
        super().train(mode)
        self.encoder.train(mode and self.tuned)
        return self

    def forward(self, x):
        with torch.set_grad_enabled(self.tuned and torch.is_grad_enabled()):
            return dense_features(self.encoder, x, self.layer)


def detector(encoder, classes, size, mean, std):
    """torchvision's Faster R-CNN on one map of 128 channels; images are stretched to a square.

    Args:
        encoder: MapEncoder.
        classes: without the background.
    """
    body = nn.Sequential(encoder, nn.Conv2d(encoder.width, NECK, 1))
    body.out_channels = NECK
    sides = tuple(max(1, round(share * size)) for share in ANCHORS)
    anchors = AnchorGenerator((sides,), ((0.5, 1.0, 2.0),))
    return FasterRCNN(body, rpn_anchor_generator=anchors, image_mean=list(mean),
                      image_std=list(std), fixed_size=(size, size), size_divisible=1,
                      rpn_post_nms_top_n_train=PROPOSALS, rpn_post_nms_top_n_test=PROPOSALS,
                      box_batch_size_per_image=BOXES, box_head=TwoMLPHead(NECK * 7 * 7, HIDDEN),
                      box_predictor=FastRCNNPredictor(HIDDEN, classes + 1))  # fmt: skip


class Segmenter(nn.Module):
    """A class for each pixel: a head on the map, enlarged to the image.

    Args:
        encoder: MapEncoder.
        classes: with the background.
        head: "linear" is a 1 x 1 convolution; "fcn" and "deeplab" are torchvision's.
    """

    def __init__(self, encoder, classes, head, mean, std):
        super().__init__()
        make = {"linear": lambda d, c: nn.Conv2d(d, c, 1), "fcn": FCNHead, "deeplab": DeepLabHead}
        self.encoder, self.head = encoder, make[head](encoder.width, classes)
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None])

    def forward(self, x, shape=None):
        """Logits [B, classes, H, W] of images uint8 [B, C, S, S], as large as they or as asked."""
        logits = self.head(self.encoder((x.float() / 255 - self.mean) / self.std))
        return F.interpolate(logits, shape or x.shape[-2:], mode="bilinear", align_corners=False)


def train_detector(model, data, *, steps, batch_size, lr, seed, device, workers=0):
    """Train a detector; a tenth of the rate from three quarters on, a hundredth from 11/12 on."""

    def loss_of(images, targets):
        images = [image.to(device).float() / 255 for image in images]
        kept = [(t.boxes[~t.ignored], t.labels[~t.ignored]) for t in targets]
        targets = [{"boxes": b.to(device), "labels": c.to(device)} for b, c in kept]
        return sum(model(images, targets).values())

    drops = (0.75 * steps, 11 / 12 * steps)
    warmup = min(100, steps // 10)

    def rate(step):
        return lr * min(1, (step + 1) / (warmup + 1)) * 0.1 ** sum(step >= drop for drop in drops)

    return _train(model, data, flip_boxes, loss_of, rate, steps, batch_size, seed, workers)


def train_segmenter(model, data, size, *, steps, batch_size, lr, seed, device, workers=0):
    """Train a segmenter on images stretched to a square: SGD, rate (1 - step / steps) ** 0.9."""

    def loss_of(images, masks):
        x = torch.stack([tv.resize(image, [size, size], antialias=True) for image in images])
        y = torch.stack([tv.resize(mask[None], [size, size],
                                   interpolation=InterpolationMode.NEAREST_EXACT)[0]
                         for mask in masks])  # fmt: skip
        return F.cross_entropy(model(x.to(device)), y.long().to(device), ignore_index=IGNORED)

    return _train(model, data, flip_mask, loss_of, lambda step: lr * (1 - step / steps) ** 0.9,
                  steps, batch_size, seed, workers)  # fmt: skip


def _train(model, data, flip, loss_of, rate, steps, batch_size, seed, workers):
    """SGD on batches of flipped images; returns the model in eval mode and the last loss."""
    weights = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.SGD(weights, rate(0), MOMENTUM, weight_decay=WEIGHT_DECAY)
    model.train()
    drawn = batches(data, steps, batch_size, seed, workers)
    for step, pairs in enumerate(with_bar(drawn, steps, "the head")):
        optimizer.param_groups[0]["lr"] = rate(step)
        generator = np.random.default_rng((seed, step))
        pairs = [flip(*pair) if generator.random() < 0.5 else pair for pair in pairs]
        loss = loss_of(*zip(*pairs, strict=True))
        if not torch.isfinite(loss):
            raise DataError(f"the head diverged at step {step}; try a lower lr")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, CLIP)
        optimizer.step()
    return model.eval(), loss.item()


def batches(data, steps, batch_size, seed, workers=0):
    """`steps` lists of samples, in another order each pass."""
    generator, order = np.random.default_rng(seed), []
    while len(order) < steps * batch_size:
        order += generator.permutation(len(data)).tolist()
    rows = [order[i * batch_size : (i + 1) * batch_size] for i in range(steps)]
    return torch.utils.data.DataLoader(data, batch_sampler=rows, num_workers=workers,
                                       collate_fn=list, generator=torch.Generator())  # fmt: skip


def flip_boxes(image, target):
    """Image and boxes, left and right exchanged."""
    x0, y0, x1, y1 = target.boxes.unbind(1)
    W = image.shape[-1]
    return image.flip(-1), target._replace(boxes=torch.stack([W - x1, y0, W - x0, y1], 1))


def flip_mask(image, mask):
    return image.flip(-1), mask.flip(-1)


@torch.no_grad()
def average_precision(model, data, device):
    """{name: AP} as COCO counts it, and AP50 as VOC07 does, at 11 recalls.

    Difficult objects of VOC and crowds of COCO are neither found nor missed.
    """
    from torchmetrics.detection import MeanAveragePrecision

    coco = MeanAveragePrecision()
    voc = MeanAveragePrecision(iou_thresholds=[0.5], rec_thresholds=np.linspace(0, 1, 11).tolist())
    for index in range(len(data)):
        image, target = data[index]
        found = model([image.to(device).float() / 255])[0]
        found = {name: value.cpu() for name, value in found.items()}
        truth = {"boxes": target.boxes, "labels": target.labels, "iscrowd": target.ignored.long()}
        for metric in (coco, voc):
            metric.update([found], [truth])
    values = coco.compute()
    names = {"AP": "map", "AP50": "map_50", "AP75": "map_75"}
    found = {name: values[key].item() for name, key in names.items()}
    return found | {"AP50 (VOC07, 11 points)": voc.compute()["map"].item()}


@torch.no_grad()
def mean_iou(model, data, size, classes, device):
    """(mean over classes of intersection over union, pixel accuracy) of one confusion matrix.

    Every image counts at its own size; classes that neither occur nor are found do not count.
    """
    from torchmetrics.classification import MulticlassConfusionMatrix

    matrix = MulticlassConfusionMatrix(classes, ignore_index=IGNORED)
    for index in range(len(data)):
        image, mask = data[index]
        x = tv.resize(image, [size, size], antialias=True)[None].to(device)
        matrix.update(model(x, mask.shape).argmax(1).cpu(), mask[None].long())
    counts = matrix.compute().double()
    both, either = counts.diagonal(), counts.sum(0) + counts.sum(1) - counts.diagonal()
    iou = both[either > 0] / either[either > 0]
    return iou.mean().item(), (both.sum() / counts.sum()).item()
