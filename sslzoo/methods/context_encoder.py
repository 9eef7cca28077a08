"""Context encoder: a region of the image is removed; the encoder-decoder paints it in again.

Pathak, Krähenbühl, Donahue, Darrell, Efros, "Context Encoders: Feature Learning by Inpainting",
CVPR 2016. G generator (backbone and decoder), D discriminator, y the removed region in the range
-1 to 1, w the weight of its reconstruction.

Both optimizers are here: D has its own, and steps inside forward, before it judges G(x); the loop
trains G alone, by the loss L_G. D's optimizer is part of the state_dict, so a run resumes.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from sslops.distributed import default_group, mean_over_ranks
from sslzoo.draws import Draws
from sslzoo.normalisation import Normalisation
from sslzoo.pictures import grid, to_uint8
from sslzoo.views import ViewSpec

BETAS = (0.5, 0.999)  # of both Adams; AdamW without weight decay is Adam
# The rate of G, which stays constant.
DEFAULTS = {"optimizer": "adamw", "betas": BETAS, "base_lr": 1e-3, "min_lr": 1e-3,
            "lr_rule": "none", "weight_decay": 0.0, "batch_size": 128, "epochs": 200,
            "warmup_epochs": 0}  # fmt: skip

CANDIDATES = 16  # sets of blocks, of which the first with a fitting area is taken
MOST_BLOCKS = 4
BLOCK_SIDES = (0.2, 0.5)  # of the image's side
SHARE = (0.2, 0.3)  # of the area that is removed
PICTURED = 16


@dataclass
class Config:
    """Options of inpainting. The defaults suit images of 32 x 32."""

    region: Literal["center", "random"] = "center"
    """What is removed: the central half of each side, or 2 to 4 random blocks of 20 to 30 %."""
    overlap: int = 1
    """Border of the central region that is shown and predicted all the same, in pixels. 128: 4."""
    overlap_weight: float = 10.0
    """Weight of that border in the reconstruction."""
    adversarial: bool = True
    """Train a discriminator too; off for features, as in the paper's experiments with them."""
    reconstruction_weight: float = 0.999
    """w; the adversarial loss has 1 - w."""
    discriminator_lr: float = 2e-4
    """Learning rate of D, without unit; G's is base_lr, officially ten times as much."""
    bottleneck: Literal["channelwise", "dense"] = "channelwise"
    """How places of the map are mixed: each channel by a matrix of its own, or all together."""
    bottleneck_features: int = 4000
    """Width of the dense bottleneck."""
    crop_padding: int = 4
    """Largest random shift of the image either way, in its pixels; 0 takes random crops instead."""
    crop_min_scale: float = 0.2
    """Smallest random crop, as a share of the image's area, where crop_padding is 0."""
    flip: float = 0.5
    """Probability of a horizontal flip."""

    def __post_init__(self):
        if not 0 < self.reconstruction_weight <= 1:
            raise ValueError(
                f"reconstruction_weight must be in (0, 1]; got {self.reconstruction_weight}"
            )


def views(config, image_size):
    """One view, shifted or cropped, and flipped."""
    if image_size % 4 or image_size // 2 <= 2 * config.overlap:
        raise ValueError(f"image_size must be a multiple of 4, above 4 x overlap; got {image_size}")
    return [
        ViewSpec(
            size=image_size,
            crop_padding=config.crop_padding,
            crop_scale=(config.crop_min_scale, 1.0),
            flip=config.flip,
            grayscale=0.0,
        )
    ]


class ContextEncoder(nn.Module):
    """The backbone's last map, a decoder to the removed region, and a discriminator of regions.

    Args:
        backbone: from sslzoo.backbones.build, with a method forward_features(x) -> [B, d, s, s].
        config: Config.
    """

    def __init__(self, backbone, config):
        super().__init__()
        self.config, self.backbone = config, backbone
        S, C = backbone.image_size, backbone.in_channels
        self.is_center = config.region == "center"
        side = S // 2 if self.is_center else S
        d, s = map_shape(backbone)
        self.decoder = decoder(d, s, side, C, config)
        self.discriminator = None
        if config.adversarial:
            self.whole_only = "the discriminator has an optimizer of its own, which needs it whole"
            self.discriminator = Discriminator(discriminator(C, side), config.discriminator_lr)
        self.normalisation = Normalisation()
        self.draws = Draws()

    def normalised_by(self, mean, std):
        """The channel statistics of the views."""
        self.normalisation.set(mean, std)

    def forward(self, views, step):
        """D's step and L_G for a batch of B images; views: one tensor [B, C, S, S]."""
        (x,) = views
        w = self.config.reconstruction_weight if self.config.adversarial else 1.0
        y, hidden, weight = self.task(x, step)
        h, G = self.paint(x, hidden)
        # Two names for the same values, so that meters can tell the gradients of both terms.
        rec, adv = G.view_as(G), G.view_as(G)
        L_rec = (weight * (rec - y).square()).mean()
        outputs = {"reconstruction": L_rec, **errors(G.detach(), y, weight > 0)}
        loss = w * L_rec
        if self.discriminator is not None:
            region = (weight > 0).to(y.dtype)  # D sees the removed region and nothing around it
            outputs |= self.discriminator.learn(y * region, G.detach() * region)
            outputs["adversarial"] = L_adv = self.discriminator.judge(adv * region)
            loss = loss + (1 - w) * L_adv
        self.terms = {"reconstruction": rec, "adversarial": adv}
        if G.requires_grad:
            for term in self.terms.values():
                term.retain_grad()
        return {"loss": loss, **outputs, "features": h.detach().mean((2, 3))}

    def task(self, x, step):
        """The target y [B, C, H, W] in -1 to 1, what is hidden [B, 1, S, S], and loss weights.

        The weights, which broadcast to y, are above 0 in the removed region; their mean there is
        1 without a border.
        """
        y = 2 * self.normalisation.pixels(x) - 1  # new memory: filling x later does not change it
        S, o = x.shape[-1], self.config.overlap
        if not self.is_center:
            hidden = random_blocks(self.draws(step, len(x)), len(x), S, x.device)
            return y, hidden, hidden / hidden.float().mean()
        first, last = S // 4, S - S // 4
        hidden = torch.zeros(1, 1, S, S, dtype=torch.bool, device=x.device)
        hidden[..., first + o : last - o, first + o : last - o] = True
        weight = torch.full((1, 1, S // 2, S // 2), self.config.overlap_weight, device=x.device)
        weight[..., o : S // 2 - o, o : S // 2 - o] = 1.0
        return y[..., first:last, first:last], hidden.expand(len(x), 1, S, S), weight

    def paint(self, x, hidden):
        """The last map of the backbone and G(x) [B, C, H, W], from what is not hidden."""
        h = self.backbone.forward_features(x.masked_fill(hidden, 0))  # 0 is the data's mean
        return h, self.decoder(h)

    def meters(self, outputs):
        """Norms of the gradients that both terms send to G's output, their weights included."""
        return {
            f"{name}_gradient": term.grad.float().norm()
            for name, term in self.terms.items()
            if term.grad is not None
        }

    def test_scores(self, views, step):
        """Errors on images that were not trained on."""
        return self(views, step)

    def pictures(self, views):
        """Of each image: what the encoder sees, G(x), the image with G(x) in its place, itself."""
        x = views[0][:PICTURED]
        _, hidden, weight = self.task(x, 0)
        _, G = self.paint(x, hidden)
        G, image = (G + 1) / 2, self.normalisation.pixels(x)
        if self.is_center:
            inset = x.shape[-1] // 4
            G = F.pad(G, [inset] * 4)
            weight = F.pad(weight, [inset] * 4)
        whole = torch.where(weight > 0, G, image)
        context = self.normalisation.pixels(x.masked_fill(hidden, 0))
        return {"inpainting": grid([to_uint8(column) for column in (context, G, whole, image)])}


def errors(G, y, removed):
    """Errors over the removed region; L1, L2 and PSNR with pixels in the range 0 to 1.

    mean_image_mse is that of painting the batch's mean image: the baseline to beat.
    """
    share = removed.float().mean()

    def mean(values):
        return (values * removed).mean() / share

    mse = mean((G - y).square())
    return {
        "mse": mse,
        "mean_image_mse": mean((y.mean(0) - y).square()),
        "l1_percent": 50 * mean((G - y).abs()),
        "l2_percent": 25 * mse,
        "psnr": -10 * (mse / 4).clamp(min=1e-10).log10(),
    }


def map_shape(backbone):
    """(channels, side) of the backbone's last map at its image size."""
    S, C = backbone.image_size, backbone.in_channels
    was_training = backbone.training
    with torch.no_grad():
        shape = backbone.eval().forward_features(torch.zeros(1, C, S, S)).shape
    backbone.train(was_training)
    if len(shape) != 4 or shape[2] != shape[3]:
        raise ValueError(f"context_encoder needs a backbone with a square map; got {tuple(shape)}")
    return shape[1], shape[2]


class ChannelWise(nn.Module):
    """A matrix over places for each channel: d n² weights, where a dense layer has d² n²."""

    def __init__(self, channels, places):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, places, places))
        nn.init.normal_(self.weight, std=places**-0.5)

    def forward(self, h):
        mixed = torch.einsum("dqp,bdp->bdq", self.weight, h.flatten(2))
        return mixed.view_as(h)


def decoder(d, s, side, channels, config):
    """From a map [d, s, s] to [channels, side, side] in -1 to 1, doubling it step by step."""
    doublings = int(math.log2(side / s))
    if s * 2**doublings != side or doublings < 1:
        raise ValueError(f"the region of {side} pixels must be 2, 4, 8 ... times the backbone's "
                         f"map of {s}")  # fmt: skip
    if config.bottleneck == "dense":
        n = config.bottleneck_features
        layers = [nn.Conv2d(d, n, s, bias=False), nn.BatchNorm2d(n), nn.LeakyReLU(0.2)]
        layers += up(n, d, kernel=s, stride=1, padding=0)
    else:
        layers = [ChannelWise(d, s * s), nn.Conv2d(d, d, 1, bias=False), nn.BatchNorm2d(d)]
        layers.append(nn.ReLU(inplace=True))
    # The official decoder ends in a transposed convolution, the small one in a plain one.
    is_official = config.bottleneck == "dense"
    for _ in range(doublings - is_official):
        layers += up(d, max(d // 2, 32))
        d = max(d // 2, 32)
    last = (nn.ConvTranspose2d(d, channels, 4, 2, 1, bias=False) if is_official
            else nn.Conv2d(d, channels, 3, 1, 1, bias=False))  # fmt: skip
    return initialised(nn.Sequential(*layers, last, nn.Tanh()))


def up(inputs, outputs, kernel=4, stride=2, padding=1):
    convolution = nn.ConvTranspose2d(inputs, outputs, kernel, stride, padding, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def discriminator(channels, side):
    """4 x 4 convolutions of stride 2 down to 4 x 4, then one number for each image."""
    layers, width = [], channels
    for depth in range(int(math.log2(side / 4))):
        wide = 64 * 2 ** min(depth, 3)
        layers.append(nn.Conv2d(width, wide, 4, 2, 1, bias=False))
        layers += [nn.BatchNorm2d(wide)] * bool(depth) + [nn.LeakyReLU(0.2)]
        width = wide
    layers.append(nn.Conv2d(width, 1, side // 2 ** int(math.log2(side / 4)), bias=False))
    return initialised(nn.Sequential(*layers, nn.Flatten(0)))


class Discriminator(nn.Module):
    """D and its own Adam.

    Its parameters want a gradient during its own step alone: so neither the loop's optimizer nor
    DDP takes them for theirs, and L_adv sends them none.

    Args:
        network: maps regions [B, C, H, W] to [B], large where they look true.
        lr: learning rate.
    """

    def __init__(self, network, lr):
        super().__init__()
        self.network = network.requires_grad_(False)
        self.optimizer = torch.optim.Adam(network.parameters(), lr, BETAS)

    def learn(self, y, G):
        """One step on L_D, in training; returns L_D before it and what D thought, by name."""
        is_training = self.training and torch.is_grad_enabled()
        self.network.requires_grad_(is_training)
        # In full precision: these gradients pass no scaler. Real and fake pass batch norm apart.
        with torch.autocast(y.device.type, enabled=False):
            real, fake = self.network(y), self.network(G.float())
            L_D = bce(real, torch.ones_like(real)) + bce(fake, torch.zeros_like(fake))
        if is_training:
            self.step(L_D)
        self.network.requires_grad_(False)
        return {
            "discriminator": L_D.detach(),
            "d_real": real.detach().sigmoid().mean(),
            "d_fake": fake.detach().sigmoid().mean(),
            "d_accuracy": ((real > 0).float().mean() + (fake <= 0).float().mean()) / 2,
        }

    def step(self, L_D):
        parameters, group = list(self.network.parameters()), default_group()
        for p, gradient in zip(parameters, torch.autograd.grad(L_D, parameters), strict=True):
            p.grad = mean_over_ranks(gradient, group) if group else gradient
        self.optimizer.step()
        self.optimizer.zero_grad()

    def judge(self, G):
        """L_adv: how far G is from passing for true, with gradient to G alone."""
        # Copies of the buffers: the running statistics have seen G already.
        buffers = {name: buffer.clone() for name, buffer in self.network.named_buffers()}
        with torch.autocast(G.device.type, enabled=False):
            judged = functional_call(self.network, buffers, (G.float(),))
            return bce(judged, torch.ones_like(judged))

    def get_extra_state(self):
        return self.optimizer.state_dict()

    def set_extra_state(self, state):
        self.optimizer.load_state_dict(state)


def initialised(network):
    """Convolutions from N(0, 0.02), scales of batch norm from N(1, 0.02), as officially."""
    for layer in network:
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(layer.weight, std=0.02)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, 0.02)
    return network


def random_blocks(generator, B, S, device):
    """bool [B, 1, S, S]: 2 to 4 rectangles that cover 20 to 30 % of each image."""
    u = generator.uniform(B, CANDIDATES * (1 + 4 * MOST_BLOCKS), device=device)
    u = u.unflatten(1, (CANDIDATES, -1))
    count = 2 + (u[..., :1] * (MOST_BLOCKS - 1)).long()  # [B, candidates, 1]
    box = u[..., 1:].unflatten(2, (MOST_BLOCKS, 4))
    low, high = BLOCK_SIDES
    size = (S * (low + (high - low) * box[..., :2])).long().clamp(min=1)
    start = (box[..., 2:] * (S - size + 1)).long()
    line = torch.arange(S, device=device)
    inside = (line >= start[..., None]) & (line < (start + size)[..., None])  # [B, c, blocks, 2, S]
    is_used = torch.arange(MOST_BLOCKS, device=device) < count
    block = inside[..., 0, :, None] & inside[..., 1, None, :] & is_used[..., None, None]
    mask = block.any(2)
    share = mask.float().mean((-1, -2))
    off = (share - sum(SHARE) / 2).abs() - (SHARE[1] - SHARE[0]) / 2
    first = off.clamp(min=0).argmin(1)  # the first that fits, or the nearest
    return mask[torch.arange(B, device=device), first][:, None]
