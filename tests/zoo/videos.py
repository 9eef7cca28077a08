"""Videos made for tests: a textured square that moves over a texture, with its masks."""

import numpy as np
import torch

from sslzoo.data.video import Video, VideoData


class Frames:
    """Frames in memory as the source of a Video."""

    def __init__(self, frames):
        self.images = frames

    def __len__(self):
        return len(self.images)

    def read(self, index):
        return self.images[index]

    def key(self, index):
        return str(int(self.images[index].sum()))


def sprite_video(seed, frames=12, size=64, side=20):
    """(uint8 [T, 3, size, size], masks int64 [T, size, size]) of a square with a colour of its own.

    Textures are patches of 4 pixels: in grey, square and background differ by their pattern only.
    """
    rng = np.random.default_rng(seed)
    images = np.empty((frames, size, size, 3), np.uint8)
    masks = np.zeros((frames, size, size), np.int64)
    background, sprite = texture(rng, size), texture(rng, side)
    place, step = rng.uniform(8, size - side - 8, 2), rng.uniform(-2.5, 2.5, 2)
    for t in range(frames):
        step = np.where((place + step < 0) | (place + step > size - side), -step, step)
        place = place + step
        y, x = place.round().astype(int)
        images[t] = background
        images[t, y : y + side, x : x + side] = sprite
        masks[t, y : y + side, x : x + side] = 1
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(masks)


def texture(rng, size):
    """uint8 [size, size, 3]: random light and dark patches around a random colour."""
    color = rng.uniform(60, 190, 3)
    cells = rng.uniform(0.6, 1.3, (size // 4 + 1, size // 4 + 1, 1))
    light = cells.repeat(4, 0).repeat(4, 1)[:size, :size]
    return np.clip(color * light, 0, 255).astype(np.uint8)


def sprite_data(count, **options):
    """VideoData of `count` sprite videos."""
    return VideoData("sprites", [
        Video(f"sprites/{seed}", Frames(sprite_video(seed, **options)[0])) for seed in range(count)
    ])  # fmt: skip
