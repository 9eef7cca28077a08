"""Ctrl-C and SIGTERM as requests that the loop answers between two steps."""

import signal
from contextlib import contextmanager

import torch

from sslops.distributed import default_group, max_over_ranks


class StopRequests:
    """The signals that asked to stop.

    Args:
        accelerator: of accelerate; its processes stop at the same step.
    """

    def __init__(self, accelerator):
        self.accelerator = accelerator
        self.numbers = []

    def agreed(self, may_wait):
        """The number of the signal to stop by now, or 0; the same in every process.

        Args:
            may_wait: whether the processes may wait for one another at this step; without that,
                several processes go on. The same in every process.
        """
        own = self.numbers[0] if self.numbers else 0
        if self.accelerator.num_processes == 1 or not may_wait:
            return own if self.accelerator.num_processes == 1 else 0
        device = self.accelerator.device
        return int(max_over_ranks(torch.tensor(own, device=device), default_group()))


@contextmanager
def stop_requests(accelerator):
    """StopRequests inside; one process stops at once by a second signal.

    Of several, a launcher may send the signal to each twice: there only SIGKILL stops at once.
    """
    requests, old = StopRequests(accelerator), {}

    def remember(number, frame):
        requests.numbers.append(number)
        if accelerator.num_processes == 1:
            signal.signal(number, old[number])

    for number in (signal.SIGINT, signal.SIGTERM):
        old[number] = signal.signal(number, remember)
    try:
        yield requests
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
