"""DINO: students of many crops match the sharpened, centred output of a teacher of two.

Caron, Touvron, Misra, Jégou, Mairal, Bojanowski, Joulin, "Emerging Properties in Self-Supervised
Vision Transformers", ICCV 2021. The letters are the paper's: s student, t teacher, g logits,
P probabilities, C centre, τ temperature, K prototypes.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

import sslops
from sslops.distributed import default_group
from sslzoo import schedules
from sslzoo.ema import frozen_copy, update_ema
from sslzoo.heads import DINOHead
from sslzoo.self_distillation import (
    encode,
    in_crop_order,
    multi_crop_views,
    rising,
    set_drop_path,
    teacher_meters,
)
from sslzoo.sharding import local, norms

JUDGED = "teacher"  # network whose weights are the backbone
DEFAULTS = {"backbone": "vit_tiny_p4", "optimizer": "adamw", "base_lr": 5e-4, "min_lr": 1e-6,
            "weight_decay": 0.04, "warmup_epochs": 10}  # fmt: skip


@dataclass
class Config:
    """Options of DINO. The defaults suit images of 32 x 32; recipes hold the paper's."""

    prototypes: int = 0
    """K, width of the head's output; 0 follows the number of images. Paper: 65536."""
    head_hidden: int = 512
    """Width of the head's hidden layers, in features. Paper: 2048."""
    head_bottleneck: int = 256
    """Width of the head's narrow layer, in features."""
    head_layers: int = 3
    """Linear layers of the head's MLP."""
    head_bn: bool = False
    """Batch norm in the head."""
    norm_last_layer: bool = True
    """Keep the prototypes at length 1. Paper: off for ViT-S, on for ViT-B."""
    freeze_last_layer: float = 1.0
    """Epochs in which the prototypes do not move."""
    student_temperature: float = 0.1
    """τ_s, divides the student's logits; above 0."""
    warmup_teacher_temperature: float = 0.04
    """τ_t in the first epoch; above 0."""
    teacher_temperature: float = 0.04
    """τ_t after its warm-up. Paper's best: 0.07; above that training is unstable."""
    warmup_teacher_temperature_epochs: int = 0
    """Epochs over which τ_t rises, in equal steps from epoch to epoch; 0 is off. Paper: 30."""
    center_momentum: float = 0.9
    """Momentum of the centre C, 0 to 1."""
    teacher_momentum: float = 0.0
    """Momentum of the teacher at the start, 0 to 1, rising to 1; 0 follows batch and images.
    Paper: 0.996."""
    ema_buffers: Literal["none", "copy", "ema"] = "none"
    """The teacher's batch-norm statistics: its own, the student's, or their moving average."""
    weight_decay_end: float = 0.4
    """Weight decay at the end of its half cosine."""
    clip_parameter: float = 3.0
    """Largest norm of the gradient of each parameter on its own; 0 is off."""
    drop_path: float = 0.05
    """Stochastic depth of the student's last block, rising from 0 at the first. Paper: 0.1."""
    local_crops: int = 4
    """Small crops of an image, beside the two large ones. Paper: 8."""
    local_size: int = 0
    """Side of the small crops, in pixels; 0 is half of image_size. Paper: 96."""
    global_crop_scale: tuple[float, float] = (0.0, 1.0)
    """Smallest and largest large crop, as a share of the image's area; a smallest of 0 is chosen:
    0.4, or 0.14 where there are no small crops (both the official code's)."""
    local_crop_scale: tuple[float, float] = (0.1, 0.4)
    """Smallest and largest small crop, as a share of the image's area. Paper: 0.05 to 0.4."""
    flip: float = 0.5
    """Probability of a horizontal flip; 0 where left and right mean something."""
    blur: float = 0.0
    """Factor of the blur's probabilities, 1 (first large crop), 0.1 (second), 0.5 (small). Paper:
    1; off at 32 x 32."""

    def __post_init__(self):
        for name in ("student_temperature", "warmup_teacher_temperature", "teacher_temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0; got {getattr(self, name)}")
        for name in ("teacher_momentum", "center_momentum", "blur"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1; got {getattr(self, name)}")
        if self.prototypes < 0 or self.local_crops < 0 or self.head_layers < 1:
            raise ValueError("prototypes and local_crops must be 0 or more, head_layers 1 or more")


def adapt(config, batch, images):
    """Prototypes follow the images, the teacher's momentum the steps of an epoch."""
    reasons = []
    if not config.prototypes:
        # 65536 for ImageNet's 1.28 M images, 4096 for 50,000; more of them than images are dead.
        K = min(max(1 << (images // 16).bit_length(), 256), 65536)
        config = replace(config, prototypes=K)
        reasons.append(f"{K} prototypes for {images} images: many more would stay unused")
    if not config.teacher_momentum:
        # The official code has 0.996 at a batch of 1024 and 0.9995 at 256; small data sets have
        # too few steps for a slow teacher (lightly has 0.99 on CIFAR-10).
        m = 0.99 if images < 200_000 else min(max(1 - 0.004 * batch / 1024, 0.996), 0.9995)
        m = max(min(m, 1 - batch / images), 0.9)
        config = replace(config, teacher_momentum=round(m, 4))
        reasons.append(f"teacher momentum {m:.4g}, rising to 1: with batches of {batch} of "
                       f"{images} images the teacher averages over at most an epoch")  # fmt: skip
    if not config.global_crop_scale[0]:
        config = replace(config, global_crop_scale=crop_scale(config))
        if not config.local_crops:
            reasons.append(f"crops from {config.global_crop_scale[0]:g} of the image: without "
                           "small crops the large ones have to differ more")  # fmt: skip
    is_warmed = config.warmup_teacher_temperature_epochs > 1
    if config.teacher_temperature > (0.07 if is_warmed else 0.06):
        reasons.append(f"teacher temperature {config.teacher_temperature:g}: training is unstable "
                       "above 0.07, and from 0.07 on without a warm-up")  # fmt: skip
    return config, reasons


def crop_scale(config):
    """The range of the large crops; small ones make up for a range that is not wide."""
    low, high = config.global_crop_scale
    return low or (0.4 if config.local_crops else 0.14), high


def views(config, image_size):
    """Two global crops, then the local ones."""
    return multi_crop_views(replace(config, global_crop_scale=crop_scale(config)), image_size)


class DINO(nn.Module):
    """The student, the teacher that is its moving average, and the centre.

    Args:
        backbone: maps [N, C, H, W] to [N, d] and has `num_features` = d; a ViT of timm takes crops
            of any size.
        config: Config.
    """

    def __init__(self, backbone, config):
        super().__init__()
        self.config = config
        K = config.prototypes or 4096
        head = DINOHead(backbone.num_features, K, hidden=config.head_hidden,
                        bottleneck=config.head_bottleneck, layers=config.head_layers,
                        batch_norm=config.head_bn,
                        train_length=not config.norm_last_layer)  # fmt: skip
        self.student = nn.ModuleDict({"backbone": backbone, "head": head})
        # The teacher, whose backbone the paper evaluates; in training mode like the student, so
        # that batch norm keeps statistics of its own.
        self.backbone, self.teacher_head = frozen_copy(backbone), frozen_copy(head)
        set_drop_path(self.student["backbone"], rising(config.drop_path))
        self.register_buffer("center", torch.zeros(K))
        self.total_steps = self.steps_per_epoch = None
        self.at(0)

    def forward(self, views, step):
        """Algorithm 1 with multi-crop; views: two global crops, then local ones, [N, C, H, W]."""
        self.at(step)
        with torch.no_grad():
            h_t = in_crop_order(lambda x: encode(self.backbone, x), views[:2])
            g_t = self.teacher_head(h_t)
        h_s = in_crop_order(lambda x: encode(self.student["backbone"], x), views)
        g_s = self.student["head"](h_s)

        N, C = len(views[0]), self.center
        loss = sslops.dino_loss(
            g_s.view(len(views), N, -1), g_t.view(2, N, -1), center=C,
            student_temperature=self.config.student_temperature,
            teacher_temperature=self.teacher_temperature, group=default_group(),
        )  # fmt: skip
        if self.training:  # after the loss: it used the centre of the batches before
            self.center = sslops.updated_center(C, g_t, self.config.center_momentum,
                                                group=default_group())  # fmt: skip
        return {"loss": loss, "features": h_t.detach(), "teacher_logits": g_t, "used_center": C}

    def plan(self, total_steps, steps_per_epoch):
        self.total_steps, self.steps_per_epoch = total_steps, steps_per_epoch

    def at(self, step):
        """Set what is scheduled to its value at this step."""
        config = self.config
        epoch = int(step // self.steps_per_epoch) if self.steps_per_epoch else 0
        self.teacher_temperature = schedules.linear_warmup(
            epoch, config.warmup_teacher_temperature_epochs, config.warmup_teacher_temperature,
            config.teacher_temperature,
        )  # fmt: skip
        # Without a plan there is no end to rise to.
        progress = (step, self.total_steps) if self.total_steps else (0, 1)
        self.momentum = schedules.cosine(*progress, config.teacher_momentum or 0.996, 1.0)
        self.progress = progress

    def schedule(self, step, groups):
        """Weight decay rises along half a cosine, where there is any."""
        self.at(step)
        for group in groups:
            if group.setdefault("first_weight_decay", group["weight_decay"]):
                group["weight_decay"] = schedules.cosine(
                    *self.progress, group["first_weight_decay"], self.config.weight_decay_end
                )
        self.weight_decay = max(group["weight_decay"] for group in groups)

    @torch.no_grad()
    def after_backward(self, step):
        """Clip every parameter's own gradient; then the last layer's go, while it is frozen."""
        limit = self.config.clip_parameter
        gradients = [p.grad for p in self.student.parameters() if p.grad is not None]
        if limit and gradients:
            factors = (limit / (norms(gradients) + 1e-6)).clamp(max=1)
            torch._foreach_mul_(local(gradients), factors.unbind())
        if step < self.config.freeze_last_layer * (self.steps_per_epoch or 0):
            # None, not zero: AdamW decays whatever has a gradient.
            for p in self.student["head"].last_layer.parameters():
                p.grad = None

    def after_step(self, step):
        """The teacher follows; `step` steps are done, so that of the schedules is one before."""
        self.at(step - 1)
        buffers = self.config.ema_buffers
        update_ema(self.backbone, self.student["backbone"], self.momentum, buffers)
        update_ema(self.teacher_head, self.student["head"], self.momentum, buffers)

    def meters(self, outputs):
        """How sharp the teacher is and how many prototypes it uses; kl is E KL(P_t || P_s)."""
        g_t, C = outputs["teacher_logits"].float(), outputs["used_center"]
        P = ((g_t - C) / self.teacher_temperature).softmax(-1)
        found = teacher_meters(P)
        return {
            **found,
            "kl": outputs["loss"].detach() - found["teacher_entropy"],
            "center_norm": self.center.norm(),
            "teacher_temperature": self.teacher_temperature,
            "teacher_momentum": self.momentum,
            "weight_decay": getattr(self, "weight_decay", 0.0),
        }
