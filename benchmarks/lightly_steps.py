"""Training steps put together from lightly's parts, around the same backbone as ours.

Each is an nn.Module, made from a backbone and the configuration of our method: forward(views) ->
loss, after_step(), and transform(size, views) for PIL images, blurred as often as our views.
"""

import copy
from typing import ClassVar

import torch
from lightly import loss as losses
from lightly import transforms
from lightly.models import utils
from lightly.models.modules import heads, masked_autoencoder_timm, masked_vision_transformer_timm
from torch import nn


class SimCLR(nn.Module):
    def __init__(self, backbone, config):
        super().__init__()
        d = backbone.num_features
        self.backbone, self.head = backbone, heads.SimCLRProjectionHead(d, d, 128)
        self.loss = losses.NTXentLoss(temperature=0.5)

    def forward(self, views):
        # As its example does: the network sees one view after the other.
        z0, z1 = (self.head(self.backbone(x)) for x in views)
        return self.loss(z0, z1)

    def after_step(self):
        pass

    @staticmethod
    def transform(size, views):
        return transforms.SimCLRTransform(input_size=size, gaussian_blur=views[0].blur)


class MoCo(nn.Module):
    def __init__(self, backbone, config):
        super().__init__()
        d, queue = backbone.num_features, config.queue_size
        self.backbone, self.head = backbone, heads.MoCoProjectionHead(d, d, 128)
        self.slow = copy.deepcopy(nn.ModuleList([self.backbone, self.head]))
        utils.deactivate_requires_grad(self.slow)
        self.loss = losses.NTXentLoss(config.temperature, memory_bank_size=(queue, 128))

    def forward(self, views):
        query = self.head(self.backbone(views[0]))
        with torch.no_grad():
            x, shuffle = utils.batch_shuffle(views[1])
            backbone, head = self.slow
            key = utils.batch_unshuffle(head(backbone(x)), shuffle)
        return self.loss(query, key)

    def after_step(self):
        for fast, slow in zip((self.backbone, self.head), self.slow, strict=True):
            utils.update_momentum(fast, slow, m=0.999)

    @staticmethod
    def transform(size, views):
        return transforms.MoCoV2Transform(input_size=size, gaussian_blur=views[0].blur)


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

    def after_step(self):
        pass

    @staticmethod
    def transform(size, views):
        return transforms.MAETransform(input_size=size)


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
        self.loss = losses.DINOLoss(output_dim=K)

    def forward(self, views):
        with torch.no_grad():
            taught = [self.teacher(x) for x in views[:2]]
        return self.loss(taught, [self.student(x) for x in views], epoch=0)

    def after_step(self):
        utils.update_momentum(self.student, self.teacher, m=0.996)

    @staticmethod
    def transform(size, views):
        blur = tuple(view.blur for view in (views[0], views[1], views[-1]))
        return transforms.DINOTransform(
            global_crop_size=size, local_crop_size=views[-1].size, n_local_views=len(views) - 2,
            gaussian_blur=blur,
        )  # fmt: skip


STEPS = {"simclr": SimCLR, "moco": MoCo, "mae": MAE, "dino": DINO}
