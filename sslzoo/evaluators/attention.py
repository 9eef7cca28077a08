"""Where the encoder looks: pictures, and overlap with masks of the objects."""

from dataclasses import dataclass

import matplotlib
import numpy as np
import torch
from PIL import Image

from sslzoo.data import DataError
from sslzoo.data.annotated import IGNORED, open_annotated
from sslzoo.evaluation.attention import activation_map, enlarge, head_maps, jaccard, top_mass
from sslzoo.evaluation.results import Result, Row
from sslzoo.evaluation.retrieval import thumbnail
from sslzoo.pixels import centre_view

VERSION = 1
TILE, COLUMNS = 112, 8  # pixels of a picture, and how many stand in a line
GAP = 2  # white pixels around each
BATCH = 32


@dataclass
class Config:
    """Options of the attention maps."""

    masks: str = ""
    """Images with masks, for the overlap: a folder of VOC or COCO, or Parquet with columns image
    and mask. Without it there are pictures of the test images alone."""
    masks_list: str = ""
    """List of the folder, such as val; empty is the layout's usual one."""
    mass: float = 0.6
    """Share of a map's sum that its mask keeps."""
    images: int = 500
    """Images with masks that are judged, evenly spaced; 0 is all of them."""
    pictured: int = 8
    """Images in the picture, evenly spaced; 0 draws none."""
    block: int = -1
    """Block of a transformer, from 0; -1 is the last one."""

    def __post_init__(self):
        if not 0 < self.mass < 1 or min(self.images, self.pictured) < 0:
            raise ValueError("mass must lie between 0 and 1, images and pictured at least 0")


def unsuitable(subject):
    """Why there are no maps: the encoder has no heads and no stages of maps."""
    try:
        maps_of(subject, Config(), blank(subject))
    except (DataError, ValueError) as error:
        return str(error)
    return None


def evaluate(subject, config):
    """A picture of maps; with masks, the overlap of each head's mask with the objects'."""
    kind = "heads" if is_transformer(subject) else "activation"
    maps_of(subject, config, blank(subject))  # a fault of the encoder comes before the data's
    rows, scores = [], None
    if config.masks:
        views, truth = annotated_views(subject, config)
        scores = overlap(subject, config, views, truth)
        rows = overlap_rows(scores, len(views))
    else:
        data = subject.data("test")
        some = np.unique(np.linspace(0, len(data) - 1, max(config.pictured, 1)).astype(int))
        views = torch.stack([centre_view(data.load(i), subject.size) for i in some])
    pictures = {}
    if config.pictured:
        pictures["maps"] = draw(subject, config, views, subject.picture("attention.png"))
    by_head = None if scores is None else scores.mean(0).tolist()
    details = {"maps": kind, "mass": config.mass, "jaccard_by_head": by_head}
    return Result(rows, pictures, details)


def is_transformer(subject):
    return hasattr(subject.backbone, "patch_embed") and hasattr(subject.backbone, "blocks")


def blank(subject):
    return torch.zeros(1, subject.about["channels"], subject.size, subject.size, dtype=torch.uint8)


def maps_of(subject, config, views):
    """Maps [B, heads, h, w] of uint8 views: of heads, or one of activations."""
    x = subject.inputs(views)
    if not is_transformer(subject):
        return activation_map(subject.backbone, x, subject.layers[-1]).cpu()
    depth = len(subject.backbone.blocks)
    if not -depth <= config.block < depth:
        raise DataError(f"block {config.block} is asked; the transformer has {depth}")
    return head_maps(subject.backbone, x, config.block).cpu()


def annotated_views(subject, config):
    """Views uint8 [N, 3, S, S] and masks uint8 [N, S, S] of evenly spaced images."""
    data = open_annotated(config.masks, "test", "segmentation", config.masks_list)
    if subject.about["channels"] != 3:
        raise DataError(f"{data.name} has 3 channels; this backbone takes "
                        f"{subject.about['channels']}")  # fmt: skip
    most = min(config.images or len(data), len(data))
    data.rows = [data.rows[i] for i in np.unique(np.linspace(0, len(data) - 1, most).astype(int))]
    pairs = [data[i] for i in range(len(data))]
    subject.used[data.name] = {"images": len(pairs), "fingerprint": data.fingerprint()}
    views = torch.stack([centre_view(image, subject.size) for image, _ in pairs])
    nearest = (centre_view(mask[None], subject.size, "nearest-exact") for _, mask in pairs)
    return views, torch.cat(list(nearest))


def overlap(subject, config, views, truth):
    """Jaccard index of each image's heads with the objects: [N, heads]."""
    scores = []
    for rows in torch.arange(len(views)).split(BATCH):
        kept = enlarge(top_mass(maps_of(subject, config, views[rows]), config.mass), subject.size)
        for found, mask in zip(kept, truth[rows], strict=True):
            scores.append(jaccard(found, (mask > 0) & (mask != IGNORED), mask != IGNORED))
    return torch.stack(scores)


def overlap_rows(scores, count):
    """Mean over heads, the best head of each image as DINO counts, and the best one of all."""
    if scores.shape[1] == 1:
        return [Row("Jaccard of the activation map", scores.mean().item(), unit="")]
    best = scores.mean(0)
    return [Row("Jaccard, mean over heads", scores.mean().item(), unit=""),
            Row("Jaccard, best head of each image", scores.max(1).values.mean().item(), unit=""),
            Row(f"Jaccard, head {best.argmax().item()}", best.max().item(), unit="")]  # fmt: skip


def draw(subject, config, views, path):
    """A line for each image: itself, the mean of its maps, and the maps of the first heads."""
    some = np.unique(np.linspace(0, len(views) - 1, config.pictured).astype(int))
    maps = maps_of(subject, config, views[some])
    lines = []
    for view, found in zip(views[some], maps, strict=True):
        shown = [found] if len(found) == 1 else [found.mean(0, keepdim=True), found]
        tiles = [coloured(one) for one in torch.cat(shown)[: COLUMNS - 1]]
        tiles = [np.pad(t, ((GAP, GAP), (GAP, GAP), (0, 0)), constant_values=255)
                 for t in (thumbnail(view, TILE), *tiles)]  # fmt: skip
        lines.append(np.concatenate(tiles, 1))
    Image.fromarray(np.concatenate(lines)).save(path)
    return path


def coloured(one):
    """uint8 [TILE, TILE, 3] of a map, its largest value the brightest."""
    values = enlarge(one, TILE).numpy()
    return (matplotlib.colormaps["viridis"](values / values.max())[..., :3] * 255).astype(np.uint8)
