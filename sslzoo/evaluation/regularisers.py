"""What keeps a fine-tuned network from learning its few images by heart, as MAE's recipe has it.

Everything random comes from torch's generator: the same seed mixes, distorts and erases alike.
"""

import torch
from timm.layers import DropPath
from torchvision.transforms import InterpolationMode, v2

OPERATIONS = 2  # of RandAugment, for each image
STRONGEST = 10  # magnitude of RandAugment
SPREAD = 0.5  # standard deviation of an image's magnitude


def mixing(mixup, cutmix, classes):
    """A function (images, labels) -> (images, labels or soft labels): mixup or CutMix of a batch.

    Args:
        mixup, cutmix: alpha of each; 0 is off. With both, each batch gets one of them.
        classes: number of classes.
    """
    kinds = [cls(alpha=alpha, num_classes=classes)
             for cls, alpha in ((v2.MixUp, mixup), (v2.CutMix, cutmix)) if alpha]  # fmt: skip
    return v2.RandomChoice(kinds) if kinds else lambda x, y: (x, y)


class RandAugment:
    """Two random operations on each image of a normalised batch, float [B, C, S, S].

    Args:
        magnitude: 0 to 10, 0 is off; an image's own is drawn around it with deviation 0.5.
        mean, std: of the normalisation, one value for each channel.

    Source:
        Cubuk et al., "RandAugment", 2020; magnitude and spread as `rand-m9-mstd0.5` in MAE.
    """

    def __init__(self, magnitude, mean, std):
        self.magnitude = magnitude
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (mean, std))
        grey = [128.0] * len(mean)
        self.by_magnitude = [
            v2.RandAugment(OPERATIONS, m, STRONGEST + 1, InterpolationMode.BILINEAR, grey)
            for m in range(STRONGEST + 1)
        ]

    def __call__(self, x):
        if not self.magnitude:
            return x
        mean, std = self.mean.to(x), self.std.to(x)
        pixels = ((x * std + mean) * 255).round().clamp(0, 255).byte()
        drawn = (self.magnitude + SPREAD * torch.randn(len(x))).round().clamp(0, STRONGEST)
        changed = [self.by_magnitude[int(m)](image)
                   for m, image in zip(drawn, pixels, strict=True)]  # fmt: skip
        return (torch.stack(changed).to(x.dtype) / 255 - mean) / std


class RandomErasing:
    """A random rectangle of some images of a normalised batch becomes noise.

    Args:
        share: of the images; 0 is off.

    Source:
        Zhong et al., "Random Erasing Data Augmentation", 2020.
    """

    def __init__(self, share):
        self.share = share
        self.erase = v2.RandomErasing(share, scale=(0.02, 1 / 3), ratio=(0.3, 1 / 0.3),
                                      value="random")  # fmt: skip

    def __call__(self, x):
        return torch.stack([self.erase(image) for image in x]) if self.share else x


def set_drop_path(backbone, rate):
    """Stochastic depth of a ViT's blocks, in place: 0 at the first, `rate` at the last."""
    blocks = [block for block in getattr(backbone, "blocks", ()) if hasattr(block, "drop_path1")]
    for i, block in enumerate(blocks if rate else ()):
        share = rate * i / max(len(blocks) - 1, 1)
        block.drop_path1, block.drop_path2 = DropPath(share), DropPath(share)
