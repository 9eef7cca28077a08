"""Barlow Twins: each feature of one view goes with itself in the other view, and with no other.

Zbontar, Jing, Misra, LeCun, Deny, "Barlow Twins: Self-Supervised Learning via Redundancy
Reduction", ICML 2021. The letters are the paper's: Z embeddings, C their cross-correlation, λ.

A method of your own in one file: the command line runs it like those of the package.

    sslzoo pretrain examples/barlow_twins.py --data digits --flip 0 --epochs 30 --out runs/barlow
    sslzoo evaluate knn runs/barlow
    sslzoo report runs/barlow

Four parts: `Config` holds the options, `views` says how images are augmented, `DEFAULTS` changes
options that all methods share, and the module is called like the file, in whatever case.
"""

from dataclasses import dataclass

import torch
from torch import nn

from sslops.distributed import default_group, gather_rows
from sslzoo.heads import mlp_head
from sslzoo.views import ViewSpec

DEFAULTS = {"backbone": "convnet4", "image_size": 16, "base_lr": 0.1, "weight_decay": 1e-4}


@dataclass
class Config:
    """Options of Barlow Twins. `--help` shows each with the line below it."""

    off_diagonal: float = 5e-3
    """λ, weight of the features' correlation with one another; no unit."""
    features: int = 512
    """Width of Z, in features. Paper: 8192."""
    flip: float = 0.5
    """Probability of a horizontal flip; 0 for digits and text."""

    def __post_init__(self):
        if not self.off_diagonal > 0:
            raise ValueError(f"off_diagonal must be above 0; got {self.off_diagonal}")


def views(config, image_size):
    """Two views, drawn alike."""
    view = ViewSpec(size=image_size, crop_scale=(0.3, 1.0), flip=config.flip, jitter=0.8,
                    brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)  # fmt: skip
    return [view, view]


class BarlowTwins(nn.Module):
    """The backbone, a head of three layers, and the loss of section 2.1."""

    def __init__(self, backbone, config):
        super().__init__()
        self.backbone = backbone
        width = config.features
        # The last layer is a batch norm without scale: the mean and deviation of algorithm 1.
        self.projector = mlp_head((backbone.num_features, width, width, width))
        self.off_diagonal = config.off_diagonal

    def forward(self, views, step):
        """Algorithm 1 for a batch of N images; views: two tensors [N, C, H, W]."""
        h = self.backbone(torch.cat(views))
        z = torch.stack([self.projector(part) for part in h.chunk(2)])  # [2, N, features]
        group = default_group()
        if group is not None:  # C is that of all processes' images, with gradient
            z, _ = gather_rows(z, group)
        C = z[0].T @ z[1] / z.shape[1]
        on_diagonal = (C.diagonal() - 1).square().sum()
        off_diagonal = C.square().sum() - C.diagonal().square().sum()
        return {
            "loss": on_diagonal + self.off_diagonal * off_diagonal,  # equation 1
            "mean_correlation": C.diagonal().mean(),
            "features": h.detach(),
        }
