"""Split-brain autoencoder: two separate networks, one predicts colour from lightness, one the
reverse; side by side their features describe the whole image.

Zhang, Isola, Efros, "Split-Brain Autoencoders: Unsupervised Learning by Cross-Channel
Prediction", CVPR 2017. The letters are the paper's: F1 sees X1 = L, F2 sees X2 = ab.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from sslzoo.color_bins import color_bins, hits, lightness_bins, pick
from sslzoo.color_encoders import MapDecoder, SplitEncoder, enlarge_bilinear
from sslzoo.lab import lab_to_rgb, rgb_to_lab
from sslzoo.pictures import grid, to_uint8
from sslzoo.views import ViewSpec

IS_NORMALISED = False  # LAB is defined for RGB as it is
# The small setting, images of 32 x 32.
DEFAULTS = {
    "epochs": 100,
    "batch_size": 128,
    "optimizer": "adamw",
    "base_lr": 1e-3,
    "lr_rule": "none",
    "weight_decay": 1e-3,
    "warmup_epochs": 0,
}


@dataclass
class Config:
    """Options of split-brain. The defaults suit images of 32 x 32; recipes hold the paper's."""

    objective: Literal["cl-cl", "reg-reg", "cl-reg"] = "cl-cl"
    """Loss of F1 (colour) and of F2 (lightness): cl, classification into bins, or reg, L2."""
    ab_bins: Literal[313, 64] = 313
    """Colour bins: 313 in steps of 10 units of a and b, or 64 in steps of 20."""
    ab_neighbours: int = 10
    """Bins in the soft code of a colour."""
    lightness_bins: int = 100
    """Bins of equal width over the lightness 0 to 100."""
    rebalance: bool = False
    """Give pixels of rare colours more weight in F1's loss; off in the paper."""
    uniform_share: float = 0.5
    """lambda, share of the uniform distribution in these weights, above 0 to 1."""
    prior_sigma: float = 5.0
    """Gaussian that smooths the frequencies of the bins, in units of a and b; 0 is off."""
    gray_threshold: float = 5.0
    """Images whose |a| and |b| nowhere exceed this do not count in F1's loss."""
    temperature: float = 0.38
    """T of the annealed mean in pictures, above 0."""
    output_stride: int = 2
    """Pixels of the image per prediction."""
    decoder: Literal["skip", "deconv", "linear"] = "skip"
    """From the maps of a half to predictions; "linear" is one 1 x 1 convolution."""
    crop_scale: float = 1.0
    """Random crops as a share of the image's area."""
    translation: float = 0.125
    """Largest shift, as a share of the crop's side; 4 pixels of 32."""
    flip: float = 0.5
    """Probability of a horizontal flip; 0 where left and right mean something (digits, text)."""

    def __post_init__(self):
        if not 0 < self.uniform_share <= 1:
            raise ValueError(f"uniform_share must be above 0 to 1; got {self.uniform_share}")
        if self.lightness_bins < 2 or not 1 <= self.ab_neighbours <= self.ab_bins:
            raise ValueError("lightness_bins must be 2 or more, ab_neighbours 1 to ab_bins")
        if self.output_stride < 1 or not self.temperature > 0:
            raise ValueError("output_stride must be 1 or more, temperature above 0")


def views(config, image_size):
    """One view: crop or shift, and flip; the same for both halves."""
    return [
        ViewSpec(
            size=image_size,
            crop_scale=(config.crop_scale, config.crop_scale),
            crop_ratio=(1.0, 1.0),
            translate=config.translation,
            flip=config.flip,
            jitter=0.0,
            grayscale=0.0,
        )
    ]


def build_backbone(name, *, image_size, channels):
    """Both halves; given RGB images they make LAB themselves."""
    return SplitEncoder(name, image_size, channels)


class SplitBrain(nn.Module):
    """Two halves, a decoder on each, and the sum of their losses.

    Args:
        backbone: SplitEncoder.
        config: Config.
    """

    def __init__(self, backbone, config):
        super().__init__()
        self.backbone, self.config = backbone, config
        self.side = -(-backbone.image_size // config.output_stride)
        self.first, self.second = config.objective.split("-")
        self.ab_bins = color_bins(config.ab_bins, config.ab_neighbours)
        self.l_bins = lightness_bins(config.lightness_bins)
        outputs = {
            "ab": config.ab_bins if self.first == "cl" else 2,
            "L": config.lightness_bins if self.second == "cl" else 1,
        }
        self.decoders = nn.ModuleDict({
            target: MapDecoder(backbone.shapes, self.side, count, config.decoder)
            for target, count in outputs.items()
        })  # fmt: skip

    def survey(self, batches):
        """Count how often each colour and each lightness occurs in the training images."""
        ab_count = l_count = 0
        for x in batches:
            lab = pick(rgb_to_lab(x), (self.side, self.side))
            ab_count = ab_count + self.ab_bins.count(lab[..., 1:])
            l_count = l_count + self.l_bins.count(lab[..., :1])
        uniform_share = self.config.uniform_share if self.config.rebalance else 1.0
        smoothing = self.config.prior_sigma
        self.ab_bins.rebalance(ab_count, smoothing=smoothing, uniform_share=uniform_share)
        self.l_bins.rebalance(l_count, smoothing=0, uniform_share=1.0)

    def forward(self, views, step):
        """Equations 2 and 4 for a batch of images; views: one tensor [B, 3, S, S], 0 to 1."""
        lab = rgb_to_lab(views[0])
        maps = self.backbone.maps(lab)
        ab_hat = self.decoders["ab"](maps["L"])  # F1 : X1 -> X2
        l_hat = self.decoders["L"](maps["ab"])  # F2 : X2 -> X1

        ab = pick(lab[:, 1:], ab_hat.shape[1:3])
        lightness = pick(lab[:, :1], l_hat.shape[1:3])
        is_colored = (lab[:, 1:].abs() > self.config.gray_threshold).flatten(1).any(1)
        is_colored = is_colored[:, None, None]
        if self.first == "cl":
            ab_loss, log = classification(ab_hat, ab, self.ab_bins, is_colored, "ab")
        else:
            ab_loss, log = regression(ab_hat, ab / 110, is_colored, "ab")
        if self.second == "cl":
            l_loss, l_log = classification(l_hat, lightness, self.l_bins, 1.0, "lightness")
        else:
            l_loss, l_log = regression(l_hat, lightness / 50 - 1, 1.0, "lightness")

        halves = {half: list(stages.values())[-1] for half, stages in
                  self.backbone.features(maps).items()}  # fmt: skip
        return {
            "loss": ab_loss + l_loss,
            **log,
            **l_log,
            "features": torch.cat([x.detach() for x in halves.values()], 1),
            "L_map": list(maps["L"].values())[-1].detach(),
            "ab_map": list(maps["ab"].values())[-1].detach(),
        }

    def test_scores(self, views, step):
        """Both losses and accuracies on images that were not trained on."""
        return self(views, step)

    def meters(self, outputs):
        """Standard deviation of the features of each half before their normalisation."""
        return {f"{half}_feature_std": outputs[f"{half}_map"].mean((2, 3)).std(0).mean()
                for half in ("L", "ab")}  # fmt: skip

    def pictures(self, views):
        """Colours predicted from lightness, lightness predicted from colours, and the original."""
        lab = rgb_to_lab(views[0])
        maps, shape = self.backbone.maps(lab), lab.shape[-2:]
        ab, lightness = self.decoders["ab"](maps["L"]), self.decoders["L"](maps["ab"])
        T = self.config.temperature
        ab = self.ab_bins.decode(ab, T) if self.first == "cl" else 110 * ab
        lightness = self.l_bins.decode(lightness, T) if self.second == "cl" else 50 * lightness + 50
        ab, lightness = (enlarge_bilinear(x.float(), shape) for x in (ab, lightness))
        columns = [
            lab_to_rgb(torch.cat([lab[:, :1], ab], 1)),
            lab_to_rgb(torch.cat([lightness, lab[:, 1:]], 1)),
            views[0],
        ]
        return {"cross_channel": grid([to_uint8(c) for c in columns])}


def classification(logits, values, bins, counts, name):
    """Cross-entropy with soft codes, and what to log of it."""
    code = bins.encode(values)
    cross_entropy = bins.cross_entropy(logits, code)
    v = bins.weights[code.ids[..., 0]] * counts
    loss = (v * cross_entropy).mean()
    log = {
        f"{name}_loss": loss.detach(),
        f"{name}_kl": (cross_entropy.detach() - code.entropy()).mean(),
        f"{name}_prior_loss": (v * bins.prior_cross_entropy(code, is_weighted=True)).mean(),
        f"{name}_top1": hits(logits.detach(), code, 1).mean(),
    }
    return loss, log


def regression(prediction, values, counts, name):
    """Squared error, and what to log of it."""
    loss = (counts * (prediction.float() - values).square().sum(-1)).mean()
    return loss, {f"{name}_loss": loss.detach()}
