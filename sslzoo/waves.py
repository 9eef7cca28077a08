"""Batches of random windows of sounds, each a pure function of (seed, epoch, sample)."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from sslzoo.counter_random import Uniform, stream_keys
from sslzoo.loader import ViewLoader

MOST_JOINED = 64  # sounds in one window; what is left is silence


@dataclass(frozen=True)
class WaveSpec:
    """How random windows are drawn.

    Attributes:
        window: samples in a window.
        fill: what follows a sound shorter than the window: "join" others of its group, or "zeros".
        same_group: whether all sounds of a batch are of one group (speaker).
        mean, std: of the samples, as one value each.
    """

    window: int
    fill: Literal["join", "zeros"] = "join"
    same_group: bool = False
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


class WaveLoader(ViewLoader):
    """Iterates over an epoch's batches of windows, float32 [B, 1, window]; as ViewLoader does.

    With `same_group` and data that has groups (speakers), the samples of a batch are of one group:
    each group is shuffled and cut into batches, and these are shuffled. What does not fill a batch
    waits for another epoch's order.

    Example:
        >>> import torch
        >>> from sslzoo.data.audio import AudioData, Waves
        >>> data = AudioData("tones", Waves([torch.ones(30), torch.ones(70)], rate=8000))
        >>> loader = WaveLoader(data, [WaveSpec(50, fill="zeros")], batch_size=2)
        >>> batch = next(loader.epoch(0))
        >>> sorted(batch.views[0].sum(-1).flatten().tolist())
        [30.0, 50.0]
    """

    def __init__(self, data, specs, *, batch_size, **options):
        super().__init__(data, specs, batch_size=batch_size, **options)
        has_groups = data.groups is not None
        self.groups = data.groups.numpy() if has_groups else np.zeros(len(data))
        self.members = {g: np.flatnonzero(self.groups == g) for g in np.unique(self.groups)}
        self.is_grouped = has_groups and any(spec.same_group for spec in self.specs)
        if self.is_grouped:
            self.steps_per_epoch = sum(len(m) // batch_size for m in self.members.values())
            if not self.steps_per_epoch:
                raise ValueError(f"no group of {data.name} has the {batch_size} sounds of a batch")

    def make(self, workers):
        return self.make_windows

    def order(self, epoch):
        order = super().order(epoch)
        if not self.is_grouped:
            return order
        batches = []
        for group in self.members:
            rows = order[self.groups[order] == group]
            batches += np.split(rows, range(self.batch_size, len(rows), self.batch_size))
        batches = [rows for rows in batches if len(rows) == self.batch_size]
        keys = stream_keys(self.seed, epoch, -2, np.arange(len(batches)))
        return np.concatenate([batches[i] for i in np.argsort(keys)])

    def make_windows(self, epoch, first_step, here):
        for indices in self.shares(epoch, first_step):
            views = []
            for view, spec in enumerate(self.specs):
                uniform = Uniform(stream_keys(self.seed, epoch, view, indices))
                place, others = uniform(), uniform(MOST_JOINED)
                windows = [self.window(spec, *draw)
                           for draw in zip(indices, place, others, strict=True)]  # fmt: skip
                x = (torch.stack(windows)[:, None] - spec.mean[0]) / spec.std[0]
                views.append(x.to(self.device, non_blocking=True))
            yield self.batch(views, indices)

    def window(self, spec, index, place, others):
        """A window [window] of sound `index`, from the random numbers of this sample."""
        wave = self.data.load(index)[0]
        spare = len(wave) - spec.window
        if spare >= 0:
            start = int(place * (spare + 1))
            return wave[start : start + spec.window]
        pieces, missing = [wave], -spare
        for u in others if spec.fill == "join" else ():
            if missing <= 0:
                break
            pieces.append(self.data.load(self.companion(index, u))[0][:missing])
            missing -= len(pieces[-1])
        return torch.cat([*pieces, wave.new_zeros(max(missing, 0))])

    def companion(self, index, u):
        """A sound of the same group; without groups, any."""
        members = self.members[self.groups[index]]
        return int(members[int(u * len(members))])
