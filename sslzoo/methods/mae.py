"""MAE: an image is rebuilt from a quarter of its patches; only that quarter is ever encoded.

He, Chen, Xie, Li, Dollár, Girshick, "Masked Autoencoders Are Scalable Vision Learners", CVPR
2022. Modules have the names of the official code. In shapes: B images, L patches of
n = p * p * channels values, K of them kept, D and Dd the widths of encoder and decoder.
"""

import functools
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

import sslops
from sslzoo.draws import Draws
from sslzoo.patch_targets import make_target, patchify, unpatchify
from sslzoo.pictures import grid, to_uint8
from sslzoo.positions import resize_positions, sincos_positions
from sslzoo.views import ViewSpec

# The small setting, images of 32 x 32 in patches of 4 x 4.
DEFAULTS = {
    "backbone": "vit_tiny_p4",
    "epochs": 400,
    "batch_size": 512,
    "optimizer": "adamw",
    "betas": (0.9, 0.95),
    "base_lr": 1.5e-4,
    "weight_decay": 0.05,
    "warmup_epochs": 20,
}


@dataclass
class Config:
    """Options of MAE. The defaults suit images of 32 x 32; recipes hold the paper's."""

    mask_ratio: float = 0.75
    """Share of the patches that is removed, 0 to 1, 1 excluded."""
    sampling: Literal["random", "block", "grid"] = "random"
    """Which patches are removed: any, rectangles of them, or three in every cell of 2 x 2."""
    mask_token_in_encoder: bool = False
    """Encode all patches, a learned token in place of the removed ones; costs 3 to 4 times more."""
    target: Literal["norm_pixel", "pixel", "pca"] = "norm_pixel"
    """What is predicted of a patch: its pixels normalised, as they are, or their components."""
    pca_components: int = 0
    """Components of the target "pca"; 0 is 96, for patches of up to 96 values half as many."""
    decoder_width: int = 128
    """Width of the decoder's tokens, a multiple of 4 and of decoder_heads. Paper: 512."""
    decoder_depth: int = 4
    """Blocks of the decoder. Paper: 8."""
    decoder_heads: int = 4
    """Attention heads of the decoder. Paper: 16."""
    augmentation: Literal["none", "fixed_crop", "random_crop", "color_jitter"] = "random_crop"
    """none; crops of one size, flipped; crops of random size; the latter with colour jitter."""
    crop_min_scale: float = 0.2
    """Smallest random crop, as a share of the image's area."""
    flip: float = 0.5
    """Probability of a horizontal flip; 0 where left and right mean something (digits, text)."""

    def __post_init__(self):
        if not 0 <= self.mask_ratio < 1:
            raise ValueError(f"mask_ratio must be from 0 to below 1; got {self.mask_ratio}")
        if self.decoder_width % 4 or self.decoder_width % self.decoder_heads:
            raise ValueError(
                f"decoder_width must be a multiple of 4 and of decoder_heads "
                f"{self.decoder_heads}; got {self.decoder_width}"
            )
        if self.pca_components < 0 or self.decoder_depth < 0:
            raise ValueError("pca_components and decoder_depth must be 0 or more")


def views(config, image_size):
    """One view: crop and flip, no colour (section 4, table 1e)."""
    scale, ratio = {
        "none": ((1.0, 1.0), (1.0, 1.0)),
        "fixed_crop": (((224 / 256) ** 2,) * 2, (1.0, 1.0)),
    }.get(config.augmentation, ((config.crop_min_scale, 1.0), (3 / 4, 4 / 3)))
    strength = 0.4 if config.augmentation == "color_jitter" else 0.0
    return [
        ViewSpec(
            size=image_size,
            crop_scale=scale,
            crop_ratio=ratio,
            flip=0.0 if config.augmentation == "none" else config.flip,
            jitter=1.0 if strength else 0.0,
            brightness=strength,
            contrast=strength,
            saturation=strength,
            hue=strength / 4,
            grayscale=0.0,
            interpolation="bicubic",
        )
    ]


class MAE(nn.Module):
    """The encoder (a ViT of timm with a class token), the decoder and the loss between them.

    Args:
        backbone: timm's VisionTransformer with one class token.
        config: Config.
    """

    def __init__(self, backbone, config):
        super().__init__()
        check_encoder(backbone)
        self.backbone, self.config, self.draws = backbone, config, Draws()
        self.patch_size, self.side = (
            backbone.patch_embed.patch_size[0],
            backbone.patch_embed.grid_size[0],
        )
        self.normalisation = (0.0, 1.0)
        D, Dd = backbone.embed_dim, config.decoder_width
        channels = backbone.patch_embed.proj.in_channels
        check_count(self.side**2, config.mask_ratio)

        backbone.pos_embed.requires_grad_(False)
        backbone.pos_embed.data.copy_(sincos_positions(self.side, self.side, D))
        if config.mask_token_in_encoder:
            self.encoder_mask_token = nn.Parameter(torch.zeros(1, 1, D))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, Dd))
        positions = sincos_positions(self.side, self.side, Dd)
        self.decoder_pos_embed = nn.Parameter(positions, requires_grad=False)
        self.decoder_embed = nn.Linear(D, Dd)
        norm = functools.partial(nn.LayerNorm, eps=1e-6)
        self.decoder_blocks = nn.Sequential(*(
            Block(Dd, config.decoder_heads, qkv_bias=True, norm_layer=norm)
            for _ in range(config.decoder_depth)
        ))  # fmt: skip
        self.decoder_norm = norm(Dd)
        self.target = make_target(
            config.target, self.patch_size**2 * channels, config.pca_components
        )
        self.decoder_pred = nn.Linear(Dd, self.target.size)
        initialise(self)

    def normalised_by(self, mean, std):
        self.normalisation = (mean, std)

    def forward(self, views, step, noise=None):
        """One step of the paper's section 3.

        Args:
            views: one tensor [B, C, S, S].
            step: of the optimizer.
            noise: None, or [B, L], which decides as in the official code: small noise is kept.
        """
        x = views[0]
        ids = self.sample(x, noise, None if noise is not None else self.draws(step, len(x)))
        latent = self.encode(x, ids)
        tokens = self.decode(latent, ids)
        loss = self.loss(x, tokens, ids_removed(ids))
        return {
            "loss": loss,
            "mask_ratio": ids.mask.mean(),
            "features": latent[:, 0].detach(),
            "images": x.detach(),
            "tokens": tokens.detach(),
            "ids_keep": ids.ids_keep,
        }

    def sample(self, x, noise=None, generator=None):
        """Which patches each image keeps."""
        L, config = self.side**2, self.config
        return sslops.sample_mask(len(x), L, config.mask_ratio, noise=noise, generator=generator,
                                  device=x.device, strategy=config.sampling)  # fmt: skip

    def encode(self, x, ids):
        """The class token and the kept patches, encoded: [B, 1 + K, D].

        With `mask_token_in_encoder` all L patches, in their places.
        """
        vit = self.backbone
        cls, pos = vit.pos_embed.split([1, self.side**2], 1)
        if self.config.mask_token_in_encoder:
            h = self.embed(patchify(x, self.patch_size))
            h = torch.where(ids.mask[:, :, None] > 0, self.encoder_mask_token, h) + pos
        else:
            kept = sslops.gather_patches(x, ids.ids_keep, self.patch_size)
            h = self.embed(kept) + pos[0, ids.ids_keep]
        h = torch.cat([(vit.cls_token + cls).expand(len(x), -1, -1), h], 1)
        return vit.norm(vit.blocks(vit.norm_pre(vit.pos_drop(h))))

    def embed(self, patches):
        """The patch embedding, a convolution, of patches that lie apart: [B, K, n] to [B, K, D]."""
        projection = self.backbone.patch_embed.proj
        weight = projection.weight.permute(0, 2, 3, 1).flatten(1)  # row, column, channel
        return self.backbone.patch_embed.norm(F.linear(patches, weight, projection.bias))

    def decode(self, latent, ids):
        """The decoder's tokens before the last layer, class token first: [B, 1 + L, Dd]."""
        y = self.decoder_embed(latent)
        if self.config.mask_token_in_encoder:
            y = y + self.decoder_pos_embed
        else:
            y = sslops.restore_tokens(y, ids.ids_restore, self.mask_token, self.decoder_pos_embed,
                                      num_prefix_tokens=1)  # fmt: skip
        return self.decoder_norm(self.decoder_blocks(y))

    def loss(self, x, tokens, ids):
        """Mean squared error of the patches that ids name; others are neither predicted nor read.

        Every image has equally many of them, so this is the official ratio of sums over the batch.
        """
        pred = self.decoder_pred(sslops.gather_tokens(tokens, ids, num_prefix_tokens=1)[:, 1:])
        target = self.target(sslops.gather_patches(x, ids, self.patch_size))
        return F.mse_loss(pred.to(target.dtype), target)

    def survey(self, batches):
        """Fit the target to the training images, where it needs them."""
        if self.config.target == "pca":
            self.target.fit(patchify(x, self.patch_size).flatten(0, 1) for x in batches)

    def test_scores(self, views, step):
        """The losses on removed and on kept patches of images that were not trained on."""
        outputs = self(views, step)
        return outputs | {"visible_loss": self.meters(outputs)["visible_loss"]}

    def meters(self, outputs):
        """The loss on the patches that were seen, and how flat the patches are.

        visible_loss             the same error on the kept patches, which nothing trains
        target_variance_min      variance of the flattest patch, in squared units of the view
        target_variance_median   and of the median patch
        """
        x = outputs["images"]
        variance = patchify(x, self.patch_size).var(-1)
        return {
            "visible_loss": self.loss(x, outputs["tokens"], outputs["ids_keep"]),
            "target_variance_min": variance.min(),
            "target_variance_median": variance.median(),
        }

    def pictures(self, views):
        """What was seen, the prediction in the places of the removed patches, and the original."""
        x, p = views[0], self.patch_size
        # The same patches at every epoch, so that pictures of a run can be compared.
        ids = self.sample(x, generator=sslops.CounterGenerator(0))
        tokens = self.decode(self.encode(x, ids), ids)
        patches = patchify(x, p)
        pred = self.target.invert(self.decoder_pred(tokens[:, 1:]).float(), patches)
        removed = ids.mask[:, :, None] > 0
        original, filled = (to_uint8(unpatchify(rows, p), *self.normalisation)
                            for rows in (patches, torch.where(removed, pred, patches)))  # fmt: skip
        is_grey = unpatchify(removed.expand_as(patches), p).cpu()
        columns = [original.masked_fill(is_grey, 128), filled, original]
        return {"reconstruction": grid(columns)}

    def official_state_dict(self):
        """The weights under the names of facebookresearch/mae: the encoder's carry no prefix."""
        state = self.state_dict()
        return {name.removeprefix("backbone."): v for name, v in state.items()
                if not name.startswith("target.")}  # fmt: skip

    def load_official_state_dict(self, state):
        """Load a checkpoint of facebookresearch/mae, with or without the decoder.

        Args:
            state: its state_dict, or a dict that holds it as "model". Positions of another number
                of patches are interpolated.

        Raises:
            ValueError: the names are not those of this encoder, or this encoder and decoder.
        """
        state = dict(state.get("model", state))
        own = self.official_state_dict()
        encoder = {n.removeprefix("backbone.") for n in self.state_dict() if "backbone." in n}
        wanted = set(own) if "mask_token" in state else encoder
        if set(state) != wanted:
            raise ValueError(
                f"no checkpoint of this MAE: missing {sorted(wanted - set(state))[:3]}, "
                f"unknown {sorted(set(state) - wanted)[:3]}"
            )
        for name in {"pos_embed", "decoder_pos_embed"} & set(state):
            state[name] = resize_positions(state[name], self.side)
        renamed = {f"backbone.{n}" if n in encoder else n: v for n, v in state.items()}
        self.load_state_dict(renamed, strict=False)


def ids_removed(ids):
    """[B, L - K], the patches that a mask removes."""
    return ids.ids_restore.argsort(1)[:, ids.ids_keep.shape[1] :]


def check_encoder(backbone):
    """MAE needs a ViT of square patches and one class token that has a position."""
    if not isinstance(backbone, VisionTransformer):
        raise ValueError(f"mae needs a ViT such as vit_tiny_p4; got {type(backbone).__name__}")
    side = backbone.patch_embed.grid_size
    tokens = 0 if backbone.pos_embed is None else backbone.pos_embed.shape[1]
    if backbone.num_prefix_tokens != 1 or side[0] != side[1] or tokens != side[0] ** 2 + 1:
        raise ValueError("mae needs a ViT with one class token, square images and positions")


def check_count(length, mask_ratio):
    """The official count int(L (1 - r)) may be one off what was meant: L = 100, r = 0.9 keeps 9."""
    kept, meant = int(length * (1 - mask_ratio)), round(length * (1 - mask_ratio), 6)
    if kept < 1 or kept != int(meant):
        raise ValueError(
            f"mask_ratio {mask_ratio} keeps {kept} of {length} patches, not {meant:g}: "
            f"try {mask_ratio - 1e-4:.4f}"
        )


def initialise(mae):
    """Weights as in the official code; timm's own start differs."""
    for module in mae.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.xavier_uniform_(mae.backbone.patch_embed.proj.weight.view(mae.backbone.embed_dim, -1))
    nn.init.normal_(mae.backbone.cls_token, std=0.02)
    nn.init.normal_(mae.mask_token, std=0.02)
    if mae.config.mask_token_in_encoder:
        nn.init.normal_(mae.encoder_mask_token, std=0.02)
