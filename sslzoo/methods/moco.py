"""MoCo v1 and v2: a query finds the key of its image among a long queue of earlier keys.

He, Fan, Wu, Xie, Girshick, "Momentum Contrast for Unsupervised Visual Representation Learning",
CVPR 2020, and Chen, Fan, Girshick, He, "Improved Baselines with Momentum Contrastive Learning",
2020. The letters are the paper's: f_q and f_k encoders, q query, k key, m momentum of f_k, τ
temperature, K keys in the queue, N images.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

import sslops
from sslops.distributed import default_group
from sslzoo.ema import frozen_copy, update_ema
from sslzoo.sharding import norms
from sslzoo.split_batch_norm import Shuffle, split_batch_norm
from sslzoo.views import ViewSpec, whole_blur

# The small setting, images of 32 x 32: SGD at 0.06 per 128 images.
JUDGED = "query encoder"  # network whose weights are the backbone
DEFAULTS = {"optimizer": "sgd", "base_lr": 0.12, "weight_decay": 5e-4, "warmup_epochs": 0}

PAPER_BATCH, PAPER_IMAGES = 256, 1_281_167
LARGEST_QUEUE = 65536
SMALL_QUEUE = 16384
PAPER_TEMPERATURE = {"v1": 0.07, "v2": 0.2}
# Of the jitter: brightness, contrast, saturation, hue; and its probability.
JITTER = {"v1": (0.4, 0.4, 0.4, 0.4, 1.0), "v2": (0.4, 0.4, 0.4, 0.1, 0.8)}


@dataclass
class Config:
    """Options of MoCo. A value of 0 where 0 is "chosen" follows batch and data."""

    version: Literal["v1", "v2"] = "v2"
    """v1: linear head, grey before a jitter of every image; v2: MLP head, SimCLR's colours."""
    queue_size: int = 0
    """K, keys in the queue; 0 is chosen: a power of two, at most a quarter of the images and
    65536, the paper's."""
    key_momentum: float = 0.0
    """m of the key encoder, 0 to 1; 0 is chosen from the steps that a key stays in the queue.
    Paper: 0.999."""
    temperature: float = 0.0
    """τ, divides the cosine similarities; 0 is chosen: the paper's 0.07 (v1) or 0.2 (v2), and 0.1
    with a small queue."""
    ema_buffers: Literal["none", "copy", "ema"] = "none"
    """Batch norm's statistics of the key encoder: its own, as in the official code, those of the
    query encoder, or their moving average."""
    bn_splits: int = 0
    """Groups of a batch that batch norm normalises on their own; 0 is chosen: 8 on one process (or
    the most, up to 8, that divide the batch), 1 on several, whose shares are groups."""
    head_features: int = 128
    """Width of q and k, in features."""
    head_width: int = 0
    """Width of the hidden layer of v2's head; 0 is as wide as the backbone's features."""
    both_ways: bool = False
    """Also the second view as query and the first as key, averaged. The queue takes the keys of
    the first direction only."""
    crop_min_scale: float = 0.2
    """Smallest random crop, as a share of the image's area."""
    flip: float = 0.5
    """Probability of a horizontal flip; 0 where left and right mean something (digits, text)."""
    grayscale: float = 0.2
    """Probability of dropping the colours."""
    blur: float = 0.0
    """v2: probability of a Gaussian blur of 0.1 to 2 pixels. Paper: 0.5, off at 32 x 32."""

    def __post_init__(self):
        for name in ("queue_size", "temperature", "bn_splits", "head_width"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 (chosen) or more; got {getattr(self, name)}")
        if not 0 <= self.key_momentum < 1:
            raise ValueError(f"key_momentum must be in [0, 1), 0 chosen; got {self.key_momentum}")
        if self.version == "v1" and self.blur:
            raise ValueError("blur belongs to version v2; v1 has none")


def adapt(config, batch, images):
    """Queue, momentum, temperature and groups that suit the batch and the number of images."""
    K = config.queue_size or 2 ** int(math.log2(max(min(LARGEST_QUEUE, images / 4), 1)))
    age = K / batch
    m = config.key_momentum or min(max(1 - 1 / (4 * age), 0.99), 0.999)
    small = K < SMALL_QUEUE
    T = config.temperature or (0.1 if small else PAPER_TEMPERATURE[config.version])
    splits = config.bn_splits
    if not splits:
        alone = default_group() is None
        splits = max(d for d in range(1, 9) if batch % d == 0) if alone else 1
    reasons = [
        (config.queue_size, f"queue of {K} keys: the largest power of two up to {LARGEST_QUEUE} "
                            f"and a quarter of the {images} images, so that it seldom holds the "
                            "query's own image"),
        (config.key_momentum, f"key momentum {m:.4g}: keys stay {age:.3g} steps; the key encoder "
                              "should change slowly within four times that (0.99 to 0.999)"),
        (config.temperature, f"temperature {T:g}: " + (f"a queue below {SMALL_QUEUE} is small"
                             if small else f"that of the paper's {config.version}")),
        (config.bn_splits, f"batch norm in {splits} group{'s' * (splits > 1)}: " + (
            "each process is one" if splits == 1 and default_group() else
            "the most up to 8 that divide the batch; keys are shuffled over them")),
    ]  # fmt: skip
    chosen = replace(config, queue_size=K, key_momentum=m, temperature=T, bn_splits=splits)
    return chosen, [reason for given, reason in reasons if not given]


def views(config, image_size):
    """Query and key are drawn alike: v1 crop, grey, jitter, flip; v2 crop, jitter, grey, blur."""
    brightness, contrast, saturation, hue, probability = JITTER[config.version]
    view = ViewSpec(
        size=image_size,
        crop_scale=(config.crop_min_scale, 1.0),
        flip=config.flip,
        jitter=probability,
        brightness=brightness,
        contrast=contrast,
        saturation=saturation,
        hue=hue,
        grayscale=config.grayscale,
        grayscale_first=config.version == "v1",
        blur=config.blur,
        blur_sigma=(0.1, 2.0),
        blur_kernel=whole_blur(image_size),
    )
    return [view, view]


class MoCo(nn.Module):
    """The query encoder, the key encoder that follows it, and the queue of keys.

    Args:
        backbone: maps [N, C, H, W] to [N, d] and has `num_features` = d. Its batch norms are
            changed to normalise `bn_splits` groups.
        config: Config; what `adapt` would choose and has not is what suits ImageNet.
    """

    # Statistics over all processes would show which keys belong to which queries.
    sync_batch_norm = False

    def __init__(self, backbone, config):
        super().__init__()
        config, _ = adapt(config, PAPER_BATCH, PAPER_IMAGES)
        self.backbone = split_batch_norm(backbone, config.bn_splits)
        self.projector = head(backbone.num_features, config)
        self.key_encoder = frozen_copy(self.query_encoder())
        self.queue = sslops.KeyQueue(config.queue_size, config.head_features, group=default_group())
        self.temperature, self.m = config.temperature, config.key_momentum
        self.both_ways, self.ema_buffers = config.both_ways, config.ema_buffers

    def query_encoder(self):
        """f_q, under the names that f_k has."""
        return nn.ModuleDict({"backbone": self.backbone, "projector": self.projector})

    def forward(self, views, step):
        """Algorithm 1 for a batch of N images; views: x_q and x_k [N, C, H, W].

        Its momentum update comes after the optimizer's step, as in the paper, in `after_step`.
        """
        x_q, x_k = views
        h, q = self.encode_queries(x_q)
        k = self.encode_keys(x_k, step)
        # The queue is read before it takes this batch's keys: they are no negatives of their own.
        loss, stats = sslops.info_nce(q, k, self.queue, self.temperature, return_stats=True)
        if self.both_ways:
            other = sslops.info_nce(self.encode_queries(x_k)[1], self.encode_keys(x_q, step),
                                    self.queue, self.temperature)  # fmt: skip
            loss = (loss + other) / 2
        self.queue.enqueue_(k, batch_sizes=self.even_sizes(len(k)))
        return {
            "loss": loss,
            "contrastive_top1": (stats.positive_rank < 1).float().mean(),
            "contrastive_top5": (stats.positive_rank < 5).float().mean(),
            "features": h.detach(),
            "q": q.detach(),
            "positive_logit": stats.positive_logit,
        }

    def encode_queries(self, x):
        """Features h and queries q, with gradient."""
        h = self.backbone(x)
        return h, self.projector(h)

    @torch.no_grad()
    def encode_keys(self, x, step):
        """Keys, from samples shuffled so that batch norm sees them in other company."""
        shuffle = Shuffle(step, len(x), default_group(), x.device)
        f_k = self.key_encoder
        return shuffle.undo(f_k["projector"](f_k["backbone"](shuffle(x))))

    def even_sizes(self, rows):
        """Keys of each process: training's batches are even, so nobody need ask."""
        group = default_group()
        return [rows] * group.size() if group else None

    def after_step(self, step):
        """f_k <- m f_k + (1 - m) f_q over the parameters."""
        update_ema(self.key_encoder, self.query_encoder(), self.m, self.ema_buffers)

    def meters(self, outputs):
        """How near queries are to their keys and to the queue, and how far f_k is behind.

        key_distance  ||f_q - f_k|| / ||f_q|| over all parameters
        queue_age     steps until a key leaves the queue
        """
        q = F.normalize(outputs["q"].float(), dim=-1)
        rows = len(q) * (self.queue.group.size() if self.queue.group else 1)
        ours = [p.detach() for p in self.query_encoder().parameters()]
        behind = [a - b for a, b in zip(ours, self.key_encoder.parameters(), strict=True)]
        norm, distance = (norms(x).norm() for x in (ours, behind))
        return {
            "positive_cosine": outputs["positive_logit"].mean() * self.temperature,
            "queue_cosine": q.mean(0) @ self.queue.keys.float().mean(0),
            "key_distance": distance / norm,
            "key_momentum": torch.tensor(self.m),
            "queue_age": torch.tensor(self.queue.size / rows),
        }


def head(features, config):
    """v1: one linear layer; v2: two with ReLU between them. Both with biases and without norm."""
    if config.version == "v1":
        return nn.Sequential(nn.Linear(features, config.head_features))
    width = config.head_width or features
    return nn.Sequential(
        nn.Linear(features, width), nn.ReLU(inplace=True), nn.Linear(width, config.head_features)
    )
