"""Ctrl-C and SIGTERM as requests that the loop answers between two steps."""

import signal
from contextlib import contextmanager


@contextmanager
def stop_requests(accelerator):
    """A list that fills when Ctrl-C or SIGTERM asks to stop; the second one stops at once.

    It stays empty in a run of several processes, whose signals keep their usual meaning: some
    processes would stop a step earlier and leave the others waiting.
    """
    requests, old = [], {}

    def remember(number, frame):
        requests.append(number)
        signal.signal(number, old[number])

    if accelerator.num_processes == 1:
        for number in (signal.SIGINT, signal.SIGTERM):
            old[number] = signal.signal(number, remember)
    try:
        yield requests
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
