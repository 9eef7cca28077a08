"""MoCo v3: each view's query finds the other view's key among the keys of the batch, no queue.

Chen, Xie, He, "An Empirical Study of Training Self-Supervised Vision Transformers", ICCV 2021.
The letters are the paper's: f_q backbone, projector and predictor, f_k backbone and projector,
q query, k key, m momentum of f_k, τ temperature, N images.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

import sslops
from sslops.distributed import default_group
from sslzoo.ema import frozen_copy, update_ema
from sslzoo.heads import mlp_head
from sslzoo.sharding import norms
from sslzoo.views import ViewSpec, whole_blur
from sslzoo.vit_setup import is_vit, start_vit

# The small setting for a ViT; the paper's for ImageNet is in its recipes.
JUDGED = "query encoder"  # network whose weights are the backbone
DEFAULTS = {"backbone": "vit_tiny_p4", "optimizer": "adamw", "base_lr": 3e-4, "weight_decay": 0.1,
            "warmup_epochs": 10}  # fmt: skip

LONGEST_AVERAGE = 100  # steps that f_k averages over at the start: the paper's m of 0.99


@dataclass
class Config:
    """Options of MoCo v3. The defaults suit images of 32 x 32; recipes hold the paper's."""

    temperature: float = 0.2
    """τ, divides the cosine similarities; no unit, above 0. Paper: 0.2 for ViT, 1 for ResNet."""
    key_momentum: float = 0.0
    """m of the key encoder in the first step, 0 to 1, from where half a cosine brings it to 1; 0
    is chosen from the steps of an epoch. Paper: 0.99."""
    ema_buffers: Literal["none", "copy", "ema"] = "none"
    """Batch norm's statistics of the key encoder: its own, as in the official code, those of the
    query encoder, or their moving average."""
    head_width: int = 1024
    """Width of the hidden layers of projector and predictor. Paper: 4096."""
    head_features: int = 256
    """Width of q and k, in features."""
    frozen_patch_embed: bool = True
    """ViT: keep the patch embedding as it was drawn; without this training is unstable."""
    crop_min_scale: float = 0.08
    """Smallest random crop, as a share of the image's area. Paper: 0.08 for ViT, 0.2 for ResNet."""
    flip: float = 0.5
    """Probability of a horizontal flip; 0 where left and right mean something (digits, text)."""
    jitter: float = 0.8
    """Probability of the colour jitter: brightness and contrast 0.4, saturation 0.2, hue 0.1."""
    grayscale: float = 0.2
    """Probability of dropping the colours."""
    blur: tuple[float, float] = (0.0, 0.0)
    """Probability of a Gaussian blur of 0.1 to 2 pixels, in each view. Paper: 1 and 0.1."""
    solarize: tuple[float, float] = (0.0, 0.2)
    """Probability of solarisation, in each view; these are the paper's."""

    def __post_init__(self):
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0; got {self.temperature}")
        if not 0 <= self.key_momentum < 1:
            raise ValueError(f"key_momentum must be in [0, 1), 0 chosen; got {self.key_momentum}")
        if self.head_width < 1 or self.head_features < 1:
            raise ValueError("head_width and head_features must be at least 1")


def adapt(config, batch, images):
    """A momentum that averages over no more than about an epoch."""
    if config.key_momentum:
        return config, []
    steps = min(max(images / batch, 2), LONGEST_AVERAGE)
    m = 1 - 1 / steps
    why = "the paper's" if steps == LONGEST_AVERAGE else "the steps of an epoch"
    return replace(config, key_momentum=m), [
        f"key momentum {m:.4g} to 1: at first the key encoder averages over {steps:.3g} steps, "
        f"{why}"
    ]


def views(config, image_size):
    """The two views differ in blur and solarisation, as in BYOL."""
    return [
        ViewSpec(
            size=image_size,
            crop_scale=(config.crop_min_scale, 1.0),
            flip=config.flip,
            jitter=config.jitter,
            brightness=0.4,
            contrast=0.4,
            saturation=0.2,
            hue=0.1,
            grayscale=config.grayscale,
            blur=blur,
            blur_sigma=(0.1, 2.0),
            blur_kernel=whole_blur(image_size),
            solarize=solarize,
        )
        for blur, solarize in zip(config.blur, config.solarize, strict=True)
    ]


class MoCoV3(nn.Module):
    """The query encoder with its predictor, and the key encoder that follows it.

    Args:
        backbone: maps [N, C, H, W] to [N, d] and has `num_features` = d. A ViT is started as the
            official code does (fixed sine and cosine positions, Xavier weights).
        config: Config.
    """

    def __init__(self, backbone, config):
        super().__init__()
        vit = is_vit(backbone)
        if vit:
            start_vit(backbone, frozen_patch_embed=config.frozen_patch_embed)
        hidden, out = config.head_width, config.head_features
        layers = (hidden, hidden) if vit else (hidden,)
        self.backbone = backbone
        self.projector = mlp_head((backbone.num_features, *layers, out))
        self.predictor = mlp_head((out, hidden, out), last_norm=vit)
        self.key_encoder = frozen_copy(self.base_encoder())  # without the predictor
        self.temperature, self.ema_buffers = config.temperature, config.ema_buffers
        self.first_m = self.m = config.key_momentum or 1 - 1 / LONGEST_AVERAGE
        self.total_steps = None
        self.gradient_norms = {}

    def base_encoder(self):
        """f_q without its predictor, under the names that f_k has."""
        return nn.ModuleDict({"backbone": self.backbone, "projector": self.projector})

    def plan(self, total_steps, steps_per_epoch):
        """How long the momentum takes to rise to 1."""
        self.total_steps = total_steps

    def forward(self, views, step):
        """Algorithm 1 for a batch of N images; views: x1 and x2 [N, C, H, W].

        Its momentum update is that of `after_step`, between two steps.
        """
        return self.contrast(self.embed(views, step), step)

    def embed(self, views, step):
        """Features h and queries q of both views, and their keys k."""
        x1, x2 = views
        h1, q1 = self.encode_queries(x1)
        h2, q2 = self.encode_queries(x2)
        k1, k2 = self.encode_keys(x1), self.encode_keys(x2)
        return {"q1": q1, "q2": q2, "k1": k1, "k2": k2, "h": torch.cat([h1, h2]).detach()}

    def contrast(self, embeddings, step):
        """The loss of all pairs: of a batch, or of several that accumulation put together."""
        q1, q2, k1, k2, h = (embeddings[name] for name in ("q1", "q2", "k1", "k2", "h"))
        k1, k2 = k1.detach(), k2.detach()
        # ctr(q1, k2) + ctr(q2, k1), each times 2τ, as one call with a leading size of 2.
        loss, stats = sslops.info_nce(
            torch.stack([q1, q2]), torch.stack([k2, k1]), temperature=self.temperature,
            group=default_group(), return_stats=True,
        )  # fmt: skip
        return {
            "loss": 2 * (2 * self.temperature * loss),
            "contrastive_top1": (stats.positive_rank < 1).float().mean(),
            "positive_cosine": stats.positive_logit.mean() * self.temperature,
            "features": h.detach(),
        }

    def encode_queries(self, x):
        """Features h and queries q, with gradient."""
        h = self.backbone(x)
        return h, self.predictor(self.projector(h))

    @torch.no_grad()
    def encode_keys(self, x):
        return self.key_encoder["projector"](self.key_encoder["backbone"](x))

    def after_step(self, step):
        """f_k <- m f_k + (1 - m) f_q over the parameters."""
        self.m = self.momentum_at(step)
        update_ema(self.key_encoder, self.base_encoder(), self.m, self.ema_buffers)

    def momentum_at(self, step):
        """m rises from its first value to 1 along half a cosine."""
        done = step / self.total_steps if self.total_steps else 0.0
        return 1 - (1 - self.first_m) * (1 + math.cos(math.pi * done)) / 2

    def after_backward(self, step):
        """Instability of a ViT begins as spikes in the gradient of its first layer."""
        # Weights of layers: a class token is none.
        weights = [p for name, p in self.backbone.named_parameters()
                   if name.endswith("weight") and p.ndim > 1 and p.grad is not None]  # fmt: skip
        ends = {"first_layer": weights[0], "last_layer": weights[-1]}
        self.gradient_norms = {f"{name}_gradient": norms([p.grad])[0] for name, p in ends.items()}

    def meters(self, outputs):
        """The momentum, and the gradient's norm in the first and the last layer that learns."""
        return {"key_momentum": torch.tensor(self.m), **self.gradient_norms}
