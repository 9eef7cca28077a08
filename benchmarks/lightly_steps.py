"""Training steps put together from lightly's parts, around the same backbone as ours.

Each is an nn.Module, made from a backbone and the configuration of our method: forward(views) ->
loss, after_step(step, total) after `step` of `total` steps, `encoder`, which is judged, and
transform(size, views) for PIL images, which draws crops, colours and blur as our views do.
"""

import copy
from typing import ClassVar

import torch
from lightly import loss as losses
from lightly import transforms
from lightly.models import utils
from lightly.models.modules import heads, masked_autoencoder_timm, masked_vision_transformer_timm
from lightly.utils.scheduler import cosine_schedule
from torch import nn


def colours(view):
    """lightly's names for how a view's colours are drawn and normalised."""
    return dict(
        cj_prob=view.jitter, cj_strength=1.0, cj_bright=view.brightness,
        cj_contrast=view.contrast, cj_sat=view.saturation, cj_hue=view.hue,
        random_gray_scale=view.grayscale,
        normalize={"mean": list(view.mean), "std": list(view.std)},
    )  # fmt: skip


class SimCLR(nn.Module):
    def __init__(self, backbone, config):
        super().__init__()
        d = backbone.num_features
        self.backbone, self.head = backbone, heads.SimCLRProjectionHead(d, d, 128)
        self.loss = losses.NTXentLoss(config.temperature)

    def forward(self, views):
        # As its example does: the network sees one view after the other.
        z0, z1 = (self.head(self.backbone(x)) for x in views)
        return self.loss(z0, z1)

    @property
    def encoder(self):
        return self.backbone

    def after_step(self, step, total):
        pass

    @staticmethod
    def transform(size, views):
        view = views[0]
        return transforms.SimCLRTransform(input_size=size, min_scale=view.crop_scale[0],
                                          gaussian_blur=view.blur, **colours(view))  # fmt: skip


class MoCo(nn.Module):
    def __init__(self, backbone, config):
        super().__init__()
        d, queue = backbone.num_features, config.queue_size
        self.backbone, self.head = backbone, heads.MoCoProjectionHead(d, d, 128)
        self.slow = copy.deepcopy(nn.ModuleList([self.backbone, self.head]))
        utils.deactivate_requires_grad(self.slow)
        self.loss = losses.NTXentLoss(config.temperature, memory_bank_size=(queue, 128))
        self.momentum = config.key_momentum

    def forward(self, views):
        query = self.head(self.backbone(views[0]))
        with torch.no_grad():
            x, shuffle = utils.batch_shuffle(views[1])
            backbone, head = self.slow
            key = utils.batch_unshuffle(head(backbone(x)), shuffle)
        return self.loss(query, key)

    @property
    def encoder(self):
        return self.backbone

    def after_step(self, step, total):
        for fast, slow in zip((self.backbone, self.head), self.slow, strict=True):
            utils.update_momentum(fast, slow, m=self.momentum)

    @staticmethod
    def transform(size, views):
        view = views[0]
        return transforms.MoCoV2Transform(input_size=size, min_scale=view.crop_scale[0],
                                          gaussian_blur=view.blur, **colours(view))  # fmt: skip


class MAE(nn.Module):
    def __init__(self, backbone, config):
        super().__init__()
        self.patch = backbone.patch_embed.patch_size[0]
        self.backbone = masked_vision_transformer_timm.MaskedVisionTransformerTIMM(vit=backbone)
        self.length = self.backbone.sequence_length
        self.decoder = masked_autoencoder_timm.MAEDecoderTIMM(
            num_patches=self.length - 1, patch_size=self.patch, embed_dim=backbone.embed_dim,
            decoder_embed_dim=config.decoder_width, decoder_depth=config.decoder_depth,
            decoder_num_heads=config.decoder_heads,
        )  # fmt: skip

    def forward(self, views):
        (images,) = views
        size = (len(images), self.length)
        keep, masked = utils.random_token_mask(size, mask_ratio=0.75, device=images.device)
        encoded = self.decoder.embed(self.backbone.encode(images=images, idx_keep=keep))
        tokens = utils.repeat_token(self.decoder.mask_token, size)
        tokens = utils.set_at_index(tokens, keep, encoded.type_as(tokens))
        predicted = self.decoder.predict(utils.get_at_index(self.decoder.decode(tokens), masked))
        target = utils.get_at_index(utils.patchify(images, self.patch), masked - 1)
        return nn.functional.mse_loss(predicted, utils.normalize_mean_var(target, dim=-1))

    @property
    def encoder(self):
        return self.backbone.vit

    def after_step(self, step, total):
        pass

    @staticmethod
    def transform(size, views):
        (view,) = views
        return transforms.MAETransform(input_size=size, min_scale=view.crop_scale[0],
                                       normalize=colours(view)["normalize"])  # fmt: skip


class DINO(nn.Module):
    backbone_options: ClassVar = {"dynamic_img_size": True}  # crops of two sizes

    def __init__(self, backbone, config):
        super().__init__()
        d, K = backbone.num_features, config.prototypes
        # Two heads: their weight norm cannot be copied.
        head, taught = (
            heads.DINOProjectionHead(d, config.head_hidden, config.head_bottleneck, K)
            for _ in range(2)
        )
        taught.load_state_dict(head.state_dict())
        self.student = nn.Sequential(backbone, head)
        self.teacher = nn.Sequential(copy.deepcopy(backbone), taught)
        utils.deactivate_requires_grad(self.teacher)
        self.loss = losses.DINOLoss(
            K, config.warmup_teacher_temperature, config.teacher_temperature,
            config.warmup_teacher_temperature_epochs, config.student_temperature,
            config.center_momentum,
        )  # fmt: skip
        self.momentum = config.teacher_momentum

    def forward(self, views):
        with torch.no_grad():
            taught = [self.teacher(x) for x in views[:2]]
        return self.loss(taught, [self.student(x) for x in views])

    @property
    def encoder(self):
        return self.teacher[0]

    def after_step(self, step, total):
        # Rises to 1 over the run, as in the paper.
        momentum = cosine_schedule(step - 1, total, self.momentum, 1.0)
        utils.update_momentum(self.student, self.teacher, m=momentum)

    @staticmethod
    def transform(size, views):
        blur = tuple(view.blur for view in (views[0], views[1], views[-1]))
        return transforms.DINOTransform(
            global_crop_size=size, global_crop_scale=views[0].crop_scale,
            local_crop_size=views[-1].size, local_crop_scale=views[-1].crop_scale,
            n_local_views=len(views) - 2, gaussian_blur=blur, **colours(views[0]),
        )  # fmt: skip


STEPS = {"simclr": SimCLR, "moco": MoCo, "mae": MAE, "dino": DINO}
