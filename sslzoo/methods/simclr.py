"""SimCLR: two views of an image find each other among all views of the batch.

Chen, Kornblith, Norouzi, Hinton, "A Simple Framework for Contrastive Learning of Visual
Representations", ICML 2020. The letters are the paper's: f encoder, g projection head, h = f(x)
representation, z = g(h), τ temperature, N images, 2N views.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

import sslops
from sslops.distributed import default_group
from sslzoo.heads import projection_head
from sslzoo.views import ViewSpec

# The small setting, images of 32 x 32: SGD at 0.06 per 128 images.
DEFAULTS = {"optimizer": "sgd", "base_lr": 0.12, "weight_decay": 5e-4, "warmup_epochs": 10}


@dataclass
class Config:
    """Options of SimCLR. The defaults suit images of 32 x 32; recipes hold the paper's."""

    temperature: float = 0.5
    """τ, divides the cosine similarities; no unit, above 0. Paper: 0.1 at a batch of 4096."""
    projector: Literal["nonlinear", "linear", "none"] = "nonlinear"
    """The head g between the features and the loss; "none" puts the loss on the features."""
    projector_layers: int = 2
    """Linear layers of the nonlinear head. SimCLR v2: 3."""
    projector_width: int = 0
    """Width of its hidden layers, in features; 0 is as wide as the backbone's features."""
    projector_features: int = 128
    """Width of z, in features."""
    head_bn: bool = True
    """Batch norm after every linear layer of the head."""
    head_std: float = 0.0
    """Standard deviation of the head's first weights; 0: torch's own start. Paper's code: 0.01."""
    crop_min_scale: float = 0.2
    """Smallest random crop, as a share of the image's area. Paper: 0.08."""
    flip: float = 0.5
    """Probability of a horizontal flip; 0 where left and right mean something (digits, text)."""
    rotation: float = 0.0
    """Largest random rotation either way, in degrees; 0 is off, as in the paper."""
    shear: float = 0.0
    """Largest random shear either way, in degrees; 0 is off, as in the paper."""
    translation: float = 0.0
    """Largest random shift, as a share of the crop's side; 0 is off, as in the paper."""
    jitter: float = 0.8
    """Probability of the colour jitter."""
    jitter_strength: float = 0.5
    """s: brightness, contrast and saturation vary by 0.8 s, hue by 0.2 s of a turn. Paper: 1."""
    grayscale: float = 0.2
    """Probability of dropping the colours."""
    blur: float = 0.0
    """Probability of a Gaussian blur of 0.1 to 2 pixels. Paper: 0.5, off at 32 x 32."""

    def __post_init__(self):
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0; got {self.temperature}")
        if self.projector_layers < 1 or self.projector_width < 0 or self.projector_features < 1:
            raise ValueError("projector_layers and projector_features must be at least 1")
        if not self.head_std >= 0:
            raise ValueError(f"head_std must be 0 or more; got {self.head_std}")


def views(config, image_size):
    """Both views are drawn alike: crop, flip, colour jitter, grayscale, blur."""
    s = config.jitter_strength
    view = ViewSpec(
        size=image_size,
        crop_scale=(config.crop_min_scale, 1.0),
        flip=config.flip,
        rotate=config.rotation,
        shear=config.shear,
        translate=config.translation,
        jitter=config.jitter,
        brightness=0.8 * s,
        contrast=0.8 * s,
        saturation=0.8 * s,
        hue=0.2 * s,
        grayscale=config.grayscale,
        blur=config.blur,
        blur_sigma=(0.1, 2.0),
    )
    return [view, view]


class SimCLR(nn.Module):
    """The backbone f, the head g and the loss between them.

    Args:
        backbone: maps [N, C, H, W] to [N, d] and has `num_features` = d.
        config: Config.
    """

    def __init__(self, backbone, config):
        super().__init__()
        self.backbone = backbone
        self.projector = projector(backbone.num_features, config)
        self.temperature = config.temperature

    def forward(self, views, step):
        """Algorithm 1 for a batch of N images; views: two tensors [N, C, H, W]."""
        return self.contrast(self.embed(views, step), step)

    def embed(self, views, step):
        """Representations h and embeddings z of both views."""
        x = torch.cat(views)  # one forward, so that batch norm sees both views
        h = self.backbone(x)
        z0, z1 = self.projector(h).chunk(2)
        return {"z0": z0, "z1": z1, "h": h.detach()}

    def contrast(self, embeddings, step):
        """The loss of all pairs: of a batch, or of several that accumulation put together."""
        z0, z1, h = (embeddings[name] for name in ("z0", "z1", "h"))
        # The paper's mean over 2N rows; its code sums both directions and returns twice this.
        loss, stats = sslops.nt_xent(
            z0, z1, self.temperature, group=default_group(), return_stats=True
        )
        return {
            "loss": loss,
            "contrastive_top1": (stats.positive_rank < 1).float().mean(),
            "contrastive_top5": (stats.positive_rank < 5).float().mean(),
            "features": h.detach(),
            "z": torch.cat([z0, z1]).detach(),
        }

    def meters(self, outputs):
        """How near the views of an image are, how far those of different images.

        alignment   E ||z_i - z_p||²: 0 where the two views of an image coincide
        uniformity  log E exp(-2 ||z_i - z_j||²): 0 where all coincide, near -4 where spread out
                    (both: Wang, Isola, ICML 2020)
        mutual_information_bound  log(candidates) - loss, in nats (van den Oord et al., 2018)
        """
        z = F.normalize(outputs["z"].float(), dim=-1)
        z0, z1 = z.chunk(2)
        R = len(z)
        positive = (z0 * z1).sum(-1).mean()
        # Every pair of rows at once: ||sum z||² holds R squares and each pair twice.
        pairs = z.sum(0).square().sum() - R
        # ||a - b||² = 2 - 2ab, so the mean over pairs is a log-sum-exp at temperature 1/4.
        _, stats = sslops.nt_xent(z0, z1, 0.25, normalize=False, return_stats=True)
        group = default_group()
        candidates = R * (group.size() if group else 1) - 1
        return {
            "positive_cosine": positive,
            "negative_cosine": (pairs - R * positive) / max(R * (R - 2), 1),
            "alignment": 2 - 2 * positive,
            "uniformity": stats.lse.logsumexp(0) - math.log(R * (R - 1)) - 4,
            "mutual_information_bound": math.log(candidates) - outputs["loss"].detach(),
        }


def projector(features, config):
    """The head g: "nonlinear", "linear" or "none" (section 4.2 of the paper)."""
    if config.projector == "none":
        return nn.Identity()
    layers = config.projector_layers if config.projector == "nonlinear" else 1
    hidden = (config.projector_width or features,) * (layers - 1)
    return projection_head((features, *hidden, config.projector_features),
                           batch_norm=config.head_bn, std=config.head_std)  # fmt: skip
