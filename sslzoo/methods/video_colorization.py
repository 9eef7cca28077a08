"""Video colourisation: grey frames take their colours from other frames by pointing at them.

Vondrick, Shrivastava, Fathi, Guadarrama, Murphy, "Tracking Emerges by Colorizing Videos", ECCV
2018. The letters are the paper's: f_j embedding of cell j of the target frame, f_i of cell i of the
reference frames, c colours, A attention from target to reference cells.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from torch import nn

import sslops
from sslzoo import backbones
from sslzoo.clips import ClipSpec
from sslzoo.lab import rgb_to_lab
from sslzoo.video_pictures import attention_picture, color_picture

DATA = "video"
IS_NORMALISED = False  # clips are RGB from 0 to 1: colours are quantised, lightness is the input

DEFAULTS = {
    "backbone": "resnet18_stride4",
    "image_size": 64,
    "batch_size": 32,
    "optimizer": "adamw",
    "base_lr": 1e-3,
    "lr_rule": "none",
    "weight_decay": 0.0,
    "warmup_epochs": 0.0,
}

EMBEDDING_FEATURES = 64
CONV3D_FEATURES = 256  # between the layers of the 3D network
# Pixels for the colour centroids, and how many of one image.
CENTROID_PIXELS, IMAGE_PIXELS = 200_000, 1024
VIDEO_BLOCK = 8  # frames of a video that the 3D network embeds at once
METER_CLIPS = 4  # of a batch, for meters that store the attention


@dataclass
class Config:
    """Options of video colourisation. The defaults suit clips of 64 x 64 pixels."""

    colors: int = 16
    """K, colours that frames are reduced to, found by k-means on a and b; 2 to 64."""
    references: int = 3
    """R, frames that colours are copied from; the frame after them is the target."""
    gap: tuple[int, int] = (1, 4)
    """Smallest and largest step from a frame of a clip to the next, in frames, from 1."""
    clips_per_video: int = 1
    """Clips drawn from each video in an epoch."""
    temperature: float = 1.0
    """T of the attention in training; no unit, above 0. For normalised embeddings 0.05 to 0.07."""
    test_temperature: float = 0.5
    """T when masks and keypoints are carried by the paper's protocol, above 0."""
    normalize: bool = False
    """Embeddings of length 1, which the paper does not have."""
    conv3d_layers: int = 0
    """Layers of the 3D network over the frames' features and coordinates. Paper: 5."""
    drop_lr_after: float = 1.0
    """Share of the steps after which the learning rate is a tenth; 1 is never. Paper: 0.15."""
    crop_min_scale: float = 0.3
    """Smallest random crop, as a share of the frame's area."""
    crop_max_scale: float = 1.0
    """Largest random crop, as a share of the frame's area."""
    flip: float = 0.5
    """Probability of a horizontal flip of a clip."""

    def __post_init__(self):
        if not 2 <= self.colors <= 64:
            raise ValueError(f"colors must be 2 to 64; got {self.colors}")
        if self.references < 1 or self.clips_per_video < 1 or self.conv3d_layers < 0:
            raise ValueError("references and clips_per_video must be at least 1, conv3d_layers 0")
        if not 1 <= self.gap[0] <= self.gap[1]:  # identical frames make the task trivial
            raise ValueError(f"gap must rise from at least 1 frame; got {list(self.gap)}")
        if not (self.temperature > 0 and self.test_temperature > 0):
            raise ValueError("temperature and test_temperature must be above 0")


def views(config, image_size):
    """One view: a clip of R reference frames and the target, cropped and flipped alike."""
    return [ClipSpec(
        size=image_size,
        frames=config.references + 1,
        gap=tuple(config.gap),
        clips_per_video=config.clips_per_video,
        crop_scale=(config.crop_min_scale, config.crop_max_scale),
        flip=config.flip,
    )]  # fmt: skip


def build_backbone(name, *, image_size, channels):
    """An encoder of lightness; RGB images are what it is given, so that it can be judged alike."""
    backbone = backbones.build(name, image_size=image_size, channels=1)
    backbone.register_forward_pre_hook(see_lightness)
    return backbone


def see_lightness(module, inputs):
    """RGB [B, 3, H, W] from 0 to 1 becomes L from -1 to 1, [B, 1, H, W]: no colour goes on."""
    lightness = rgb_to_lab(inputs[0])[:, :1]
    return lightness / 50 - 1


class VideoColorization(nn.Module):
    """The backbone, the embedding on its last map, and the colours.

    Args:
        backbone: maps RGB frames to features and has a last map of features.
        config: Config.
    """

    def __init__(self, backbone, config):
        super().__init__()
        self.backbone, self.config = backbone, config
        self.embedding = embedding(backbone.num_features, config.conv3d_layers)
        # Until `survey` has seen the data: a square grid of the middle colours.
        line = torch.linspace(-60, 60, math.ceil(config.colors**0.5))
        self.register_buffer("centroids", torch.cartesian_prod(line, line)[: config.colors])
        self.total_steps = 0

    def forward(self, views, step):
        """The loss of a batch of clips; views: one tensor [B, R + 1, 3, S, S], RGB, 0 to 1."""
        clips = views[0]
        f, h = self.embed_with_features(clips)  # [B, R + 1, D, h, w]
        c = self.quantise(clips, f.shape[-2:])  # [B, R + 1, h, w]
        f_j, f_i = split(f)
        c_j, c_i = (x.squeeze(-1) for x in split(c[:, :, None]))
        T = self.config.temperature
        loss = sslops.color_attention_loss(f_j, f_i, c_j, c_i, temperature=T)
        return {
            "loss": loss,
            "features": h.detach(),
            "embeddings": f.detach(),
            "labels": c,
        }

    def embed(self, clips):
        """Embeddings [B, F, D, h, w] of clips [B, F, 3, H, W], RGB from 0 to 1."""
        return self.embed_with_features(clips)[0]

    def embed_video(self, frames):
        """Embeddings [D, h, w] of a video's frames, as if it were one clip, in little memory.

        Args:
            frames: an iterator of RGB frames [3, H, W] from 0 to 1.
        """
        reach = self.config.conv3d_layers  # frames that the 3D network sees to each side
        block = VIDEO_BLOCK if reach else 1
        held, first, done = [], 0, 0  # maps from frame `first` on; frames embedded so far
        for frame in frames:
            held.append(backbones.dense_features(self.backbone, frame[None])[0])
            if first + len(held) == done + block + reach:
                yield from self.embed_maps(torch.stack(held)[None])[0, done - first :][:block]
                done += block
                held, first = held[max(done - reach, 0) - first :], max(done - reach, 0)
        if first + len(held) > done:
            yield from self.embed_maps(torch.stack(held)[None])[0, done - first :]

    def embed_with_features(self, clips):
        """Embeddings, and the backbone's features of every frame, [B F, d]."""
        maps = backbones.dense_features(self.backbone, clips.flatten(0, 1))
        return self.embed_maps(maps.unflatten(0, clips.shape[:2])), maps.mean((2, 3))

    def embed_maps(self, maps):
        """Embeddings [B, F, D, h, w], float32, of the backbone's maps [B, F, C, h, w]."""
        f = self.embedding(maps).float()
        return F.normalize(f, dim=2) if self.config.normalize else f

    def quantise(self, clips, cells):
        """The nearest centroid of each cell's colour, int64 [B, F, h, w]."""
        small = F.interpolate(clips.flatten(0, 1), tuple(cells), mode="bilinear", antialias=True)
        ab = rgb_to_lab(small)[:, 1:].movedim(1, -1)
        nearest = torch.cdist(ab.flatten(0, 2), self.centroids).argmin(-1)
        return nearest.reshape(*clips.shape[:2], *cells)

    def survey(self, batches):
        """Find the K colours by k-means on a and b of pixels drawn from the data."""
        draw = torch.Generator().manual_seed(0)
        pixels = []
        for x in batches:
            ab = rgb_to_lab(x)[:, 1:].flatten(2).cpu()  # [B, 2, pixels]
            chosen = torch.randint(ab.shape[-1], (len(ab), IMAGE_PIXELS), generator=draw)
            pixels.append(ab.gather(2, chosen[:, None].expand(-1, 2, -1)).mT.reshape(-1, 2))
        pixels = torch.cat(pixels)
        pixels = pixels[torch.randperm(len(pixels), generator=draw)[:CENTROID_PIXELS]]
        means = KMeans(self.config.colors, n_init=3, random_state=0).fit(pixels.double().numpy())
        self.centroids.copy_(torch.from_numpy(means.cluster_centers_))

    def plan(self, total_steps, steps_per_epoch):
        self.total_steps = total_steps

    def schedule(self, step, groups):
        """A tenth of the learning rate after `drop_lr_after` of the steps."""
        is_late = step >= self.config.drop_lr_after * self.total_steps
        for group in groups:
            group["lr_scale"] = 0.1 if is_late else 1.0

    def meters(self, outputs):
        """How well colours are copied, beside what needs no learning; for some clips of the batch.

        colour_top1         share of cells whose most probable colour is right
        copied_top1         the same for the colour at the same place of the last reference
        excess_loss         loss minus that of the references' histogram of colours, in nats:
                            0 is what uniform attention gives
        attention_entropy   mean over target cells, in nats; log(R h w) is uniform
        displacement        mean distance from a cell to the one it looks at most, in cells
        """
        f, c = outputs["embeddings"][:METER_CLIPS], outputs["labels"][:METER_CLIPS]
        h, w = c.shape[-2:]
        f_j, f_i = split(f)
        c_j, c_i = (x.squeeze(-1) for x in split(c[:, :, None]))
        A = (f_j @ f_i.mT / self.config.temperature).softmax(-1)
        colors = F.one_hot(c_i, self.config.colors).float()
        p, histogram = A @ colors, colors.mean(1)
        loss = -torch.log(p.gather(2, c_j[..., None]) + 1e-8).mean()
        of_histogram = -torch.log(histogram.gather(1, c_j) + 1e-8).mean()
        seen, own = A.argmax(-1) % (h * w), torch.arange(h * w, device=A.device)
        dy, dx = seen // w - own // w, seen % w - own % w
        return {
            "color_top1": (p.argmax(-1) == c_j).float().mean(),
            "copied_top1": (c[:, -2].flatten(1) == c_j).float().mean(),
            "excess_loss": loss - of_histogram,
            "attention_entropy": torch.special.entr(A).sum(-1).mean(),
            "displacement": torch.hypot(dy.float(), dx.float()).mean(),
        }

    def pictures(self, views):
        """Colours copied to grey targets, and where a target pixel looks."""
        clips = views[0][:8]
        f = self.embed(clips)
        f_j, f_i = split(f)
        h, w = f.shape[-2:]
        T = self.config.temperature
        ab = F.interpolate(rgb_to_lab(clips.flatten(0, 1))[:, 1:], (h, w), mode="area")
        values = split(ab.unflatten(0, clips.shape[:2]))[1]
        copied = sslops.color_attention(f_j, f_i, values, temperature=T)
        copied = copied.mT.unflatten(-1, (h, w))
        cell = h // 2 * w + w // 2
        A = (f_j[:, cell : cell + 1] @ f_i.mT / T).softmax(-1)
        A = A.reshape(len(clips), -1, h, w)
        return {
            "colors": color_picture(clips[:, -2], clips[:, -1], copied),
            "attention": attention_picture(clips, A, cell),
        }


def split(x):
    """[B, R + 1, D, h, w] to the target's cells [B, h w, D] and the references' [B, R h w, D]."""
    x = x.flatten(3).transpose(2, 3)  # [B, R + 1, cells, D]
    return x[:, -1].contiguous(), x[:, :-1].flatten(1, 2).contiguous()


def embedding(channels, conv3d_layers):
    """The layers from maps [B, F, C, h, w] to embeddings [B, F, 64, h, w]."""
    if conv3d_layers:
        return Conv3dNetwork(channels, conv3d_layers)
    return FrameEmbedding(channels)


class FrameEmbedding(nn.Module):
    """A linear layer on every cell, each frame on its own."""

    def __init__(self, channels):
        super().__init__()
        self.layer = nn.Conv2d(channels, EMBEDDING_FEATURES, 1)
        # Small embeddings: attention begins uniform, the loss at that of the histogram.
        nn.init.normal_(self.layer.weight, std=0.01)
        nn.init.zeros_(self.layer.bias)

    def forward(self, maps):
        return self.layer(maps.flatten(0, 1)).unflatten(0, maps.shape[:2])


class Conv3dNetwork(nn.Module):
    """3 x 3 x 3 convolutions over the frames' features and each cell's coordinates x, y."""

    def __init__(self, channels, layers):
        super().__init__()
        widths = [channels + 2, *[CONV3D_FEATURES] * (layers - 1)]
        hidden = [
            nn.Sequential(nn.Conv3d(c, d, 3, padding=1, bias=False), nn.BatchNorm3d(d), nn.ReLU())
            for c, d in pairwise(widths)
        ]
        last = nn.Conv3d(widths[-1], EMBEDDING_FEATURES, 3, padding=1)
        nn.init.normal_(last.weight, std=0.001)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*hidden, last)

    def forward(self, maps):
        B, T, _, h, w = maps.shape
        y, x = (torch.linspace(-1, 1, n, device=maps.device, dtype=maps.dtype) for n in (h, w))
        place = torch.stack(torch.meshgrid(y, x, indexing="ij")).expand(B, T, 2, h, w)
        return self.layers(torch.cat([maps, place], 2).transpose(1, 2)).transpose(1, 2)
