"""Batches of random views, the same for any number of workers and processes.

The order of an epoch is a function of (seed, epoch), a view one of (seed, epoch, sample, view
number). Global batch b is the b-th slice of the order; a process takes its contiguous share.
"""

import time
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader

from sslzoo import pixels
from sslzoo.counter_random import stream_keys
from sslzoo.data import DataError
from sslzoo.views import apply_cropped_views, apply_views, draw_parameters


class Batch(NamedTuple):
    """One process's share of a global batch."""

    views: list  # float32 [B, C, S, S] for each ViewSpec
    indices: torch.Tensor  # int64 [B], sample numbers, on the CPU
    labels: torch.Tensor | None  # int64 [B] on the device


class ViewLoader:
    """Iterates over an epoch's batches of views.

    Args:
        data: ImageData.
        specs: one ViewSpec for each view of a sample.
        batch_size: samples in a global batch, over all processes.
        seed: of order and views.
        device: where the views are made.
        workers: processes that decode and crop images that are not held in memory; 0 is none.
        rank, world_size: this process and their number.
        drop_last: leave out the last batch if it is smaller; one with fewer samples than
            processes is always left out.

    Attributes:
        steps_per_epoch: number of batches.
        wait_seconds: time spent so far in waiting for batches.

    Example:
        >>> from sslzoo.data import open_data
        >>> from sslzoo.views import ViewSpec
        >>> spec = ViewSpec(size=16, mean=(0.5,), std=(0.5,))
        >>> loader = ViewLoader(open_data("digits"), [spec, spec], batch_size=256, seed=0)
        >>> batch = next(loader.epoch(0))
        >>> loader.steps_per_epoch, len(batch.views), tuple(batch.views[0].shape)
        (5, 2, (256, 1, 16, 16))
    """

    things = "images"

    def __init__(self, data, specs, *, batch_size, seed=0, device="cpu", workers=0, rank=0,
                 world_size=1, drop_last=True):  # fmt: skip
        if not batch_size > 0 or batch_size % world_size:
            raise ValueError(
                f"batch_size must be a positive multiple of the {world_size} processes; "
                f"got {batch_size}"
            )
        self.data, self.specs, self.seed = data, list(specs), seed
        if drop_last and batch_size > self.samples:
            raise DataError(
                f"batch_size {batch_size} exceeds the {self.samples} {self.things} of {data.name}"
            )
        for spec in specs:
            if not len(spec.mean) == len(spec.std) == data.channels:
                raise ValueError(
                    f"mean and std must have {data.channels} values for {data.name}; "
                    f"got {spec.mean} and {spec.std}"
                )
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.device = torch.device(device)
        self.steps_per_epoch, rest = divmod(self.samples, batch_size)
        self.steps_per_epoch += not drop_last and rest >= world_size
        self.wait_seconds = 0.0
        self.labels = None if data.labels is None else data.labels.to(self.device)
        self._make = self.make(workers)

    @property
    def samples(self):
        """Samples in an epoch."""
        return len(self.data)

    def make(self, workers):
        """(epoch, first step) -> batches."""
        if self.data.images is None or self._shrinks_on_cpu():
            crops = _Crops(self.data, self.specs, self.seed)
            return MadeByWorkers(self, workers, crops, apply_cropped_views)
        return _MadeOnDevice(self)

    def _shrinks_on_cpu(self):
        # Measured: shrinking 224 to 96 image by image takes a fifth of the time of the batched
        # resampling on a CPU, decoding included.
        largest = max(self.data.images.shape[-2:])
        return self.device.type == "cpu" and largest > min(spec.size for spec in self.specs)

    def epoch(self, epoch, first_step=0):
        """The batches of an epoch from `first_step` on, as if those before had been consumed."""
        batches = self._make(epoch, first_step)
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self.wait_seconds += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def order(self, epoch):
        """int64 [N]: the sample numbers of an epoch in their order."""
        return np.argsort(stream_keys(self.seed, epoch, -1, np.arange(self.samples)))

    def shares(self, epoch, first_step):
        """This process's sample numbers, step by step."""
        order = self.order(epoch)
        for step in range(first_step, self.steps_per_epoch):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield np.array_split(batch, self.world_size)[self.rank]

    def parameters(self, epoch, indices, heights, widths):
        """The parameters of each view of some samples."""
        return [
            draw_parameters(spec, self.seed, epoch, indices, view, heights, widths)
            for view, spec in enumerate(self.specs)
        ]

    def batch(self, views, indices):
        indices = torch.from_numpy(indices)
        labels = None if self.labels is None else self.labels[indices.to(self.device)]
        return Batch(views, indices, labels)


class _MadeOnDevice:
    """Batches of a set held in memory: all of the work is batched tensor code."""

    def __init__(self, loader):
        self.loader = loader
        self.images = loader.data.images.to(loader.device)

    def __call__(self, epoch, first_step):
        loader = self.loader
        H, W = self.images.shape[-2:]
        for indices in loader.shares(epoch, first_step):
            images = self.images[torch.from_numpy(indices).to(loader.device)]
            drawn = loader.parameters(epoch, indices, H, W)
            views = [apply_views(images, s, p) for s, p in zip(loader.specs, drawn, strict=True)]
            yield loader.batch(views, indices)


class MadeByWorkers:
    """Batches of samples decoded one by one: workers decode and crop, the device does the rest.

    Args:
        loader: ViewLoader.
        workers: their number; 0 decodes in this process.
        crops: (epoch, sample numbers) -> crops of every view, their parameters, and what went
            wrong: in words, or {sample: words} where it was skipped, or None.
        finish: (crops, spec, parameters) -> one view on the loader's device.
    """

    def __init__(self, loader, workers, crops, finish):
        self.loader, self.finish = loader, finish
        self.plan = _Plan()
        self.batches = DataLoader(
            crops,
            sampler=self.plan,
            batch_size=None,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=loader.device.type == "cuda",
            # Its own, or starting an epoch would draw from the generator that a resumed run needs.
            generator=torch.Generator(),
        )

    def __call__(self, epoch, first_step):
        loader = self.loader
        self.plan.items = [(epoch, indices) for indices in loader.shares(epoch, first_step)]
        made = iter(self.batches)
        for _, indices in self.plan.items:
            crops, drawn, wrong = next(made)
            if isinstance(wrong, str):
                raise DataError(wrong)
            if wrong:
                loader.data.unreadable.add(wrong)
            crops = [c.to(loader.device, non_blocking=True) for c in crops]
            views = [
                self.finish(c, s, p) for c, s, p in zip(crops, loader.specs, drawn, strict=True)
            ]
            yield loader.batch(views, indices)


@contextmanager
def workers_named():
    """Inside, the death of a worker, which torch may report at any line, is a DataError."""
    try:
        try:
            yield
        except ConnectionError:
            time.sleep(1)  # its pipe closes first: torch's report would come when we have left
            raise
    except (RuntimeError, ConnectionError) as error:
        if "DataLoader worker" not in str(error) and not isinstance(error, ConnectionError):
            raise
        reason = str(error).splitlines()[0]
        raise DataError(f"a data loader worker died ({reason}); if memory was short, go on with "
                        "fewer --workers and --resume") from error  # fmt: skip


class _Plan:
    """What the workers are to do in this epoch: a sampler whose items can be exchanged."""

    def __init__(self):
        self.items = []

    def __len__(self):
        return len(self.items)

    def __iter__(self):
        return iter(self.items)


class _Crops(torch.utils.data.Dataset):
    """(epoch, sample numbers) -> crops of every view, their parameters, and what went wrong."""

    def __init__(self, data, specs, seed):
        self.data, self.specs, self.seed = data, specs, seed

    def __getitem__(self, item):
        epoch, indices = item
        try:
            images = [self.data.load(index) for index in indices]
        except DataError as error:  # an exception would arrive wrapped in a worker's traceback
            return [], [], str(error)
        wrong = dict(self.data.unreadable.found)
        H, W = (np.array([image.shape[side] for image in images]) for side in (-2, -1))
        crops, drawn = [], []
        for view, spec in enumerate(self.specs):
            drawn.append(draw_parameters(spec, self.seed, epoch, indices, view, H, W))
            boxes = drawn[-1]["crop"].tolist()
            crops.append(torch.stack([
                pixels.crop_resize(image, box, spec.size, spec.interpolation)
                for image, box in zip(images, boxes, strict=True)
            ]))  # fmt: skip
        return crops, drawn, wrong


def channel_statistics(data, max_images=2000):
    """Mean and standard deviation of each channel in the range 0 to 1, as two tuples.

    Sets that are not held in memory are judged by `max_images` of them, evenly spaced.
    """
    if data.images is not None:
        counts = _histogram(data.images.transpose(0, 1))
    else:
        picked = np.unique(np.linspace(0, len(data) - 1, max_images).astype(int))
        counts = sum(_histogram(data.load(index)) for index in picked)
    share = counts / counts.sum(1, keepdim=True)
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = share @ values
    std = (share @ values.square() - mean.square()).clamp(min=0).sqrt()
    return tuple(mean.tolist()), tuple(std.tolist())


def _histogram(images):
    """How often each value occurs in each channel of uint8 [C, ...]: float64 [C, 256]."""
    return torch.stack([torch.bincount(c.flatten(), minlength=256) for c in images]).double()
