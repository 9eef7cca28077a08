"""Batches of random views, the same for any number of workers and processes.

The order of an epoch is a function of (seed, epoch), a view one of (seed, epoch, sample, view
number). Global batch b is the b-th slice of the order; a process takes its contiguous share.
"""

import time
import weakref
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader

from sslzoo.counter_random import stream_keys
from sslzoo.data import DataError
from sslzoo.torchvision_views import TorchvisionViews
from sslzoo.views import FileCrops, HeldViews, make_view


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
        workers: processes that decode and crop images that are not held in memory, and make the
            views of those held in the CPU's; 0 is none.
        rank, world_size: this process and their number.
        drop_last: leave out the last batch if it is smaller; one with fewer samples than
            processes is always left out.
        maker: "sslops" makes views by sslops.augment; "torchvision" by torchvision's functions, on
            the CPU and image by image.

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
                 world_size=1, drop_last=True, maker="sslops"):  # fmt: skip
        if not batch_size > 0 or batch_size % world_size:
            raise ValueError(
                f"batch_size must be a positive multiple of the {world_size} processes; "
                f"got {batch_size}"
            )
        self.data, self.specs, self.seed, self.maker = data, list(specs), seed, maker
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
        """(epoch, first step, whether here and not by workers) -> batches."""
        parts = self.specs, self.seed
        if self.maker == "torchvision":
            return MadeByWorkers(self, workers, TorchvisionViews(self.data, *parts))
        if self.data.images is None:
            return MadeByWorkers(self, workers, FileCrops(self.data, *parts), make_view)
        workers = workers if self.device.type == "cpu" else 0  # a GPU makes them at once
        return MadeByWorkers(self, workers, HeldViews(self.data.images.to(self.device), *parts))

    def epoch(self, epoch, first_step=0, here=False):
        """The batches of an epoch from `first_step` on, as if those before had been consumed.

        Workers are at one epoch at a time: an earlier iterator is at its end, unless this one is
        made `here`, in this process.
        """
        batches = self._make(epoch, first_step, here)
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

    def batch(self, views, indices):
        indices = torch.from_numpy(indices)
        if self.labels is None:
            return Batch(views, indices, None)
        # A copy that blocks would wait for all that the device still has to do.
        return Batch(views, indices, self.labels[indices.to(self.device, non_blocking=True)])


class MadeByWorkers:
    """Batches whose samples worker processes make, or this process; the device does the rest.

    Args:
        loader: ViewLoader.
        workers: their number; 0 makes all in this process.
        samples: (epoch, sample numbers) -> crops of every view, their parameters, and what went
            wrong: in words, or {sample: words} where it was skipped, or None.
        finish: (crops, spec, parameters) -> one view on the loader's device; None where the crops
            are finished views.
    """

    def __init__(self, loader, workers, samples, finish=None):
        self.loader = weakref.proxy(loader)  # no cycle: workers end with the last reference
        self.samples, self.finish = samples, finish
        self.plan, self.batches = _Plan(), None
        if workers:
            self.batches = DataLoader(
                samples,
                sampler=self.plan,
                batch_size=None,
                num_workers=workers,
                persistent_workers=True,
                pin_memory=loader.device.type == "cuda",
                # Its own, or starting an epoch would draw from that which a resumed run needs.
                generator=torch.Generator(),
            )
            # Where a cycle holds this object, the garbage collector would clear the queues through
            # which workers are told to end, and torch wait 5 s for each: it must not reach them.
            weakref.finalize(self, lambda kept: None, self.batches)

    def __call__(self, epoch, first_step, here):
        items = [(epoch, indices) for indices in self.loader.shares(epoch, first_step)]
        if here or self.batches is None:
            made = (self.samples[item] for item in items)
        else:
            self.plan.items = items
            made = iter(self.batches)
        for _, indices in items:
            views, drawn, wrong = next(made)
            if isinstance(wrong, str):
                raise DataError(wrong)
            if wrong:
                self.loader.data.unreadable.add(wrong)
            views = [view.to(self.loader.device, non_blocking=True) for view in views]
            if self.finish:
                views = [self.finish(*v) for v in zip(views, self.loader.specs, drawn, strict=True)]
            yield self.loader.batch(views, indices)


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
