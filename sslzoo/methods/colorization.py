"""Colourisation: from the lightness of an image, a distribution over colours at every place.

Zhang, Isola, Efros, "Colorful Image Colorization", ECCV 2016. The letters are the paper's: Z the
soft code of the true colours, v the weight of a pixel, Q bins, T temperature of the annealed mean.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from sslzoo.color_bins import color_bins, error_area, hits, pick
from sslzoo.color_encoders import LightnessEncoder, MapDecoder, enlarge_bilinear
from sslzoo.lab import lab_to_rgb, rgb_to_lab
from sslzoo.pictures import grid, to_uint8
from sslzoo.views import ViewSpec

IS_NORMALISED = False  # LAB is defined for RGB as it is
# The small setting, images of 32 x 32.
DEFAULTS = {
    "epochs": 100,
    "batch_size": 128,
    "optimizer": "adamw",
    "betas": (0.9, 0.99),
    "base_lr": 1e-3,
    "lr_rule": "none",
    "weight_decay": 1e-3,
    "warmup_epochs": 0,
}


@dataclass
class Config:
    """Options of colourisation. The defaults suit images of 32 x 32; recipes hold the paper's."""

    ab_bins: Literal[313, 64] = 313
    """Q, colour bins: 313 in steps of 10 units of a and b, or 64 in steps of 20."""
    neighbours: int = 10
    """Bins in the soft code of a colour. The paper's text says 5, its code 10."""
    rebalance: bool = True
    """Give pixels of rare colours more weight."""
    uniform_share: float = 0.5
    """lambda, share of the uniform distribution in the weights, above 0 to 1; 1 weighs alike."""
    prior_sigma: float = 5.0
    """Gaussian that smooths the frequencies of the bins, in units of a and b; 0 is off."""
    gray_threshold: float = 5.0
    """Images whose |a| and |b| nowhere exceed this do not count; 0 counts all but exact greys."""
    temperature: float = 0.38
    """T of the annealed mean, above 0: low gives the mode, 1 the mean of the colours."""
    output_stride: int = 2
    """Pixels of the image per predicted colour. Paper: 4."""
    decoder: Literal["skip", "deconv", "linear"] = "skip"
    """From the encoder's maps to colours; "deconv" is the paper's, "linear" one layer."""
    crop_min_scale: float = 1.0
    """Smallest random crop, as a share of the image's area."""
    crop_max_scale: float = 1.0
    """Largest random crop, as a share of the image's area."""
    flip: float = 0.5
    """Probability of a horizontal flip; 0 where left and right mean something (digits, text)."""

    def __post_init__(self):
        if not 0 < self.uniform_share <= 1:
            raise ValueError(f"uniform_share must be above 0 to 1; got {self.uniform_share}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0; got {self.temperature}")
        if not 1 <= self.neighbours <= self.ab_bins:
            raise ValueError(f"neighbours must be 1 to {self.ab_bins}; got {self.neighbours}")
        if self.output_stride < 1:
            raise ValueError(f"output_stride must be 1 or more; got {self.output_stride}")


def views(config, image_size):
    """One view: crop and flip. Colours are what is predicted, so nothing changes them."""
    whole = config.crop_min_scale == config.crop_max_scale
    return [
        ViewSpec(
            size=image_size,
            crop_scale=(config.crop_min_scale, config.crop_max_scale),
            crop_ratio=(1.0, 1.0) if whole else (3 / 4, 4 / 3),
            flip=config.flip,
            jitter=0.0,
            grayscale=0.0,
        )
    ]


def build_backbone(name, *, image_size, channels):
    """The encoder of L; given RGB images it makes L itself."""
    return LightnessEncoder(name, image_size, channels)


class Colorization(nn.Module):
    """The encoder of L, the decoder to colour bins and the loss between them.

    Args:
        backbone: LightnessEncoder.
        config: Config.
    """

    def __init__(self, backbone, config):
        super().__init__()
        self.backbone, self.config = backbone, config
        self.side = -(-backbone.image_size // config.output_stride)
        self.decoder = MapDecoder(backbone.shapes, self.side, config.ab_bins, config.decoder)
        self.bins = color_bins(config.ab_bins, config.neighbours)

    def survey(self, batches):
        """Count how often each colour occurs in the training images."""
        shape = self.side, self.side
        counts = sum(self.bins.count(pick(rgb_to_lab(x)[:, 1:], shape)) for x in batches)
        uniform_share = self.config.uniform_share if self.config.rebalance else 1.0
        self.bins.rebalance(counts, smoothing=self.config.prior_sigma, uniform_share=uniform_share)

    def forward(self, views, step):
        """Equation 2 for a batch of images; views: one tensor [B, 3, S, S], 0 to 1."""
        lab = rgb_to_lab(views[0])
        maps = self.backbone.maps(lab)
        logits = self.decoder(maps)

        ab = pick(lab[:, 1:], logits.shape[1:3])
        Z = self.bins.encode(ab)
        is_colored = (lab[:, 1:].abs() > self.config.gray_threshold).flatten(1).any(1)
        v = self.bins.weights[Z.ids[..., 0]] * is_colored[:, None, None]

        cross_entropy = self.bins.cross_entropy(logits, Z)
        loss = (v * cross_entropy).mean()  # over all pixels, not over the sum of the weights
        return {
            "loss": loss,
            "cross_entropy": cross_entropy.detach().mean(),
            "kl": (cross_entropy.detach() - Z.entropy()).mean(),
            "prior_loss": (v * self.bins.prior_cross_entropy(Z, is_weighted=True)).mean(),
            "prior_cross_entropy": self.bins.prior_cross_entropy(Z).mean(),
            "bin_top1": hits(logits.detach(), Z, 1).mean(),
            "bin_top5": hits(logits.detach(), Z, 5).mean(),
            "gray_images": 1 - is_colored.float().mean(),
            "features": list(maps.values())[-1].detach().mean((2, 3)),
            "logits": logits.detach(),
            "ab": ab,
        }

    def test_scores(self, views, step):
        """Losses, accuracies and errors of colours on images that were not trained on."""
        outputs = self(views, step)
        return outputs | self.meters(outputs)

    def meters(self, outputs):
        """How the colours differ from the true ones.

        chroma_ratio       mean predicted chroma over true chroma: 1 as colourful, 0 grey
        ab_rmse            root mean squared distance of a colour, in units of a and b
        error_area         area under the share of pixels with an error of at most t, t to 150
        error_area_rebalanced  the same with the weights of rare colours
        """
        ab = outputs["ab"].flatten(0, 2)
        predicted = self.bins.decode(outputs["logits"].flatten(0, 2), self.config.temperature)
        error = (predicted - ab).norm(dim=-1)
        return {
            "chroma_ratio": predicted.norm(dim=-1).mean() / ab.norm(dim=-1).mean().clamp(min=1e-6),
            "ab_rmse": error.square().mean().sqrt(),
            "error_area": error_area(error),
            "error_area_rebalanced": error_area(error, self.bins.weights[self.bins.nearest(ab)]),
        }

    def colorize(self, x):
        """RGB [B, 3, S, S] with the lightness of x and predicted colours."""
        lab = rgb_to_lab(x)
        logits = self.decoder(self.backbone.maps(lab))
        ab = self.bins.decode(logits, self.config.temperature)
        return lab_to_rgb(torch.cat([lab[:, :1], enlarge_bilinear(ab, x.shape[-2:])], 1))

    def pictures(self, views):
        """The lightness that was seen, the colours predicted from it, and the original."""
        x = views[0]
        gray = rgb_to_lab(x) * torch.tensor([1.0, 0.0, 0.0], device=x.device)[:, None, None]
        columns = [lab_to_rgb(gray), self.colorize(x), x]
        return {"colorized": grid([to_uint8(c) for c in columns])}
