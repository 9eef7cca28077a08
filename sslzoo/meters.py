"""Averages between two log steps, taken without a wait for the device."""

import time

import torch


class Meters:
    """Averages of the scalars that a method returns, images per second and time spent waiting.

    Args:
        images_per_step: images of one optimizer step, over all processes.
    """

    def __init__(self, images_per_step):
        self.images_per_step = images_per_step
        self._started = time.perf_counter()
        self.all_seconds = self.all_waited = 0.0  # of the whole run, as far as it was taken
        self._clear()

    def _clear(self):
        self.sums, self.counts, self.steps, self.seconds, self.waited = {}, {}, 0, 0.0, 0.0

    def add(self, outputs):
        """Take in the 0-d tensors of one forward pass; they stay on the device."""
        for name, value in outputs.items():
            if value.ndim == 0:
                value = value.detach().float()
                self.sums[name] = self.sums[name] + value if name in self.sums else value
                self.counts[name] = self.counts.get(name, 0) + 1

    def count_step(self, waited):
        """One optimizer step is done, after `waited` seconds without data."""
        self.steps += 1
        self.waited += waited

    def start(self):
        """Start the clock: what happens now is training."""
        self._started = time.perf_counter()

    def stop(self):
        """Stop the clock: what follows (a measurement, a checkpoint) is not training."""
        self.seconds += time.perf_counter() - self._started

    def take(self, average=lambda tensor: tensor):
        """The averages since the last call, as floats; the one place that waits for the device.

        Args:
            average: averages a tensor over processes.
        """
        means = torch.stack([self.sums[name] / self.counts[name] for name in self.sums])
        row = dict(zip(self.sums, average(means).tolist(), strict=True))
        row["images_per_second"] = self.steps * self.images_per_step / self.seconds
        row["data_wait_share"] = self.waited / self.seconds
        self.all_seconds += self.seconds
        self.all_waited += self.waited
        self._clear()
        return row

    def summary(self):
        """What share of the whole training was spent waiting for data, as lines of text."""
        if self.all_seconds:
            share = self.all_waited / self.all_seconds
            yield f"{100 * share:.1f} % of the training time was spent waiting for data"
