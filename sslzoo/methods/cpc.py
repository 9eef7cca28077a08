"""CPC: from the context of what came before, tell the latent k steps ahead among others.

van den Oord, Li, Vinyals, "Representation Learning with Contrastive Predictive Coding", 2018.
Sounds go forward in time; images from the top row of patches to the bottom one. The letters are
the paper's: z latents, c context, W_k the map for k steps ahead, K steps, N negatives; B samples,
P places to predict from.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

import sslops
from sslzoo.backbones import AUDIO
from sslzoo.views import ViewSpec
from sslzoo.waves import WaveSpec

# The small settings: sounds of a second at 8 kHz, images of 32 x 32 (backbone cpc_patches).
DATA = ("audio", "images")
DEFAULTS = {"backbone": "cpc_audio", "optimizer": "adamw", "base_lr": 5e-4, "lr_rule": "none",
            "weight_decay": 0.0, "warmup_epochs": 5, "batch_size": 32, "epochs": 50}  # fmt: skip


@dataclass
class Config:
    """Options of CPC. The defaults suit short sounds at 8 kHz; recipes hold those of images."""

    steps: int = 6
    """K, steps ahead that are predicted: of 160 samples, or rows of patches. Paper: 12 and 5."""
    negatives: int = 64
    """N, latents that each prediction has to be told from. CPC_audio: 128."""
    score: Literal["mean", "sum", "cosine"] = "mean"
    """How z^T W_k c is scaled: by 1 / width, not, or as a cosine over the temperature."""
    temperature: float = 0.1
    """Divides the cosines, for score cosine only; no unit, above 0."""
    norm: Literal["channel", "batch", "none"] = "channel"
    """Sounds: what follows each convolution, channel (CPC_audio's: over the channels of a time
    step), batch (the paper's: its statistics hold something of the future) or none."""
    window: int = 8000
    """Samples of a sound that are seen at a time."""
    fill: Literal["join", "zeros"] = "join"
    """After sounds shorter than the window: others of the same speaker (of any, where the data
    names none), or silence."""
    same_speaker: bool = True
    """Batches of one speaker's sounds, so that a voice alone tells no negative apart. Where the
    data names no speakers, batches are mixed."""
    crop_min_scale: float = 0.5
    """Images: smallest random crop, as a share of the area."""
    flip: float = 0.5
    """Images: probability of a horizontal flip."""
    grayscale: float = 0.2
    """Images: probability of dropping the colours. Paper: 1."""
    patch_grayscale: float = 0.0
    """Images: probability of dropping the colours of each patch on its own, so that a colour does
    not tell which patches are neighbours."""

    def __post_init__(self):
        for name in ("steps", "negatives", "window"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0; got {self.temperature}")
        if not 0 <= self.patch_grayscale <= 1:
            raise ValueError(f"patch_grayscale must be from 0 to 1; got {self.patch_grayscale}")


def backbone_options(config, name):
    """The norm of the encoder of sounds; kept beside the weights, so that they load again."""
    return {"norm": config.norm} if name in AUDIO else {}


def views(config, image_size, kind="audio"):
    """One view: a window of a sound, or a crop of an image."""
    if kind == "audio":
        return [WaveSpec(config.window, fill=config.fill, same_group=config.same_speaker)]
    view = ViewSpec(
        size=image_size,
        crop_scale=(config.crop_min_scale, 1.0),
        flip=config.flip,
        grayscale=config.grayscale,
    )
    return [view]


class CPC(nn.Module):
    """The encoder with its context, the maps W_k, and the loss between them.

    Args:
        backbone: with latents(x), context(z) and latent_width; see sslzoo.grid_encoders.
        config: Config.

    Raises:
        ValueError: the backbone makes no grid of latents.
    """

    def __init__(self, backbone, config):
        super().__init__()
        if not hasattr(backbone, "latents"):
            raise ValueError("cpc needs a backbone that makes a grid of latents: cpc_audio for "
                             "sounds, cpc_patches for images")  # fmt: skip
        self.backbone = backbone
        self.steps, self.negatives = config.steps, config.negatives
        self.score, self.temperature = config.score, config.temperature
        self.patch_grayscale = config.patch_grayscale
        self.latent_width = backbone.latent_width
        # W_1 ... W_K, one below the other: one product makes all predictions.
        outputs = config.steps * self.latent_width
        self.predict = nn.Linear(backbone.num_features, outputs, bias=False)

    def forward(self, views, step):
        """Section 2.2 for B samples; views: one tensor of sounds [B, 1, T] or images."""
        z = self.latents(views[0])
        c = self.backbone.context(z)
        loss_KPB, stats = self.losses(z.float(), c)

        right = (stats.positive_rank < 1).float()
        loss, accuracy = loss_KPB.detach().mean((1, 2)), right.mean((1, 2))
        easy = min(self.backbone.shared_steps, self.steps - 1)
        return {
            "loss": loss_KPB.mean(),
            "accuracy": accuracy[easy:].mean(),
            **{f"loss_{k}": loss[k - 1] for k in range(1, self.steps + 1)},
            **{f"accuracy_{k}": accuracy[k - 1] for k in range(1, self.steps + 1)},
            "features": self.backbone.pooled(z, c).detach().float(),
            "latents": z.detach(),
            "contexts": c.detach(),
        }

    def latents(self, x):
        """z [B, R, J, C]; the colours of some patches are gone before they are encoded."""
        if not (self.training and self.patch_grayscale):
            return self.backbone.latents(x)
        patches = self.backbone.patches(x)  # [B, R, J, channels, side, side]
        is_grey = torch.rand(patches.shape[:3], device=x.device) < self.patch_grayscale
        grey = patches.mean(3, keepdim=True)
        return self.backbone.encode(torch.where(is_grey[..., None, None, None], grey, patches))

    def losses(self, z, c):
        """The loss of every prediction [K, P, B] and its statistics: equation 4.

        From the place (r, j), for k = 1 to K, the candidates are z at (r + k, j) and N negatives
        drawn for this place, the same for all k and all samples of the batch.
        """
        B, R, J, C = z.shape
        K, P = self.steps, (R - self.steps) * J
        if P < 1:
            raise ValueError(f"{K} steps ahead need more than {K} rows of latents; there are {R}")
        c = c[:, : R - K].reshape(B, P, -1).movedim(0, 1)  # [P, B, H]
        W_c = self.predict(c).float().view(P, B, K, C)  # all K maps as one product
        rows = torch.arange(R - K, device=z.device)[:, None]
        ahead = rows + torch.arange(1, K + 1, device=z.device)
        positive = z[:, ahead].movedim(3, 2).reshape(B, P, K, C).movedim(0, 1)

        loss, stats = sslops.info_nce(
            W_c.reshape(P, B * K, C), positive.reshape(P, B * K, C), self.draw_negatives(z, P),
            self.scale(C), reduction="none", normalize=self.score == "cosine", return_stats=True,
        )  # fmt: skip
        loss, *stats = (x.view(P, B, K).movedim(-1, 0) for x in (loss, *stats))  # [K, P, B]
        return loss, sslops.InfoNCEStats(*stats)

    def draw_negatives(self, z, places):
        """N latents for each place [P, N, C], of any sample, at any place of the grid but this.

        One of them is, seldom, the positive itself (once in B (R J - 1) draws); it stays in.
        """
        B, R, J, C = z.shape
        shape = (places, self.negatives)
        sample = torch.randint(B, shape, device=z.device)
        shift = torch.randint(1, R * J, shape, device=z.device)
        place = (torch.arange(places, device=z.device)[:, None] + shift) % (R * J)
        return z.reshape(B, R * J, C)[sample, place]

    def scale(self, width):
        """What the scores are divided by."""
        return {"mean": float(width), "sum": 1.0, "cosine": self.temperature}[self.score]

    def meters(self, outputs):
        """Mean norms of the latents and of the contexts."""
        return {f"{name}_norm": outputs[name].float().norm(dim=-1).mean()
                for name in ("latents", "contexts")}  # fmt: skip
