"""Masks of rectangles over a grid of patches, as iBOT and DINOv2 draw them."""

import math
import random

import torch

SMALLEST_AREA = 4  # patches of a rectangle
SMALLEST_ASPECT = 0.3  # height / width, and its inverse
ATTEMPTS = 10


def block_mask(height, width, target, generator, largest_share=0.5):
    """A mask of at most `target` patches, made of rectangles.

    Each rectangle has an area drawn between 4 and what is left to mask, and the logarithm of its
    aspect drawn uniformly; it may overlap earlier ones but must mask something new, no more than
    what is left. When ten attempts fail, the mask stays short of the target.

    Args:
        height, width: of the grid, in patches.
        target: number of patches to mask.
        generator: random.Random.
        largest_share: of the grid that one rectangle may newly cover.

    Returns:
        Bool [height, width].

    Source:
        Bao et al., BEiT, ICLR 2022, algorithm 1; Zhou et al., iBOT, ICLR 2022.
    """
    mask = torch.zeros(height, width, dtype=torch.bool).numpy()
    masked, largest = 0, int(largest_share * height * width)
    while masked < target:
        added = _add_rectangle(mask, min(target - masked, largest), generator)
        if not added:
            break
        masked += added
    return torch.from_numpy(mask)


def _add_rectangle(mask, most, generator):
    """Mask one rectangle; returns how many patches are newly masked, 0 if no attempt fitted."""
    H, W = mask.shape
    log_aspect = math.log(SMALLEST_ASPECT)
    for _ in range(ATTEMPTS):
        area = generator.uniform(SMALLEST_AREA, most)
        aspect = math.exp(generator.uniform(log_aspect, -log_aspect))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if not (0 < h < H and 0 < w < W):
            continue
        top, left = generator.randint(0, H - h), generator.randint(0, W - w)
        new = h * w - int(mask[top : top + h, left : left + w].sum())
        if 0 < new <= most:
            mask[top : top + h, left : left + w] = True
            return new
    return 0


def stratified_masks(crops, height, width, *, seed, share=0.5, ratios=(0.1, 0.5), chosen=None):
    """Masks for a batch: some crops without, the others with ratios that cover a range evenly.

    int(crops x share) crops are masked; the i-th of these draws its ratio from the i-th of as many
    equal parts of `ratios`. Which crop gets which mask is random. All is a function of the seed, so
    processes that share a batch draw the masks of their own crops alone.

    Args:
        crops: of the whole batch.
        height, width: of a crop, in patches.
        seed: int or str.
        share: of the crops that are masked.
        ratios: smallest and largest share of a masked crop's patches.
        chosen: numbers of the crops whose masks are wanted; None is all.

    Returns:
        Bool [len(chosen), height x width], on the CPU.

    Source:
        Oquab et al., DINOv2, 2024: the official code's collation.
    """
    n, parts = int(crops * share), list(range(crops))
    random.Random(seed).shuffle(parts)
    edges = torch.linspace(*ratios, n + 1).tolist()

    def mask(part):
        if part >= n:
            return torch.zeros(height, width, dtype=torch.bool)
        generator = random.Random(f"{seed}/{part}")
        target = int(height * width * generator.uniform(edges[part], edges[part + 1]))
        return block_mask(height, width, target, generator)

    chosen = range(crops) if chosen is None else chosen
    return torch.stack([mask(parts[crop]) for crop in chosen]).flatten(1)
