"""Runs a function in several processes that meet over gloo, and tells how each ended."""

import multiprocessing
import os
import socket
import sys
import traceback

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState


def run(world, function, timeout=120):
    """Exit codes of `function(rank)` in `world` processes; a process that fails ends with 1.

    They are forks: a spawned process would import torch and timm first, for longer than it trains.
    """
    if torch.cuda.is_available():
        pytest.skip("forks of a process that sees a GPU run no autograd; `make test` shows it none")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_main, args=(rank, world, port, function))
                 for rank in range(world)]  # fmt: skip
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(timeout)
        assert all(process.exitcode is not None for process in processes), "some still run"
    finally:
        for process in processes:
            process.kill()
    return [process.exitcode for process in processes]


def _main(rank, world, port, function):
    if world > 1:
        os.environ |= dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world),
                           MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))  # fmt: skip
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    torch.set_num_threads(1)
    code = 1
    try:
        function(rank)
        code = 0
    except SystemExit as end:
        code = end.code
    finally:
        if code == 1:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(code)  # no teardown of the test session in a fork
