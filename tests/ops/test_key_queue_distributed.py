"""KeyQueue over two processes (gloo) against one; the checks are in key_queue_ranks.py."""

import os
import subprocess
import sys
from pathlib import Path

import torch

import sslops

FOLDER = Path(__file__).parent


def test_two_ranks_hold_the_queue_of_one_process(tmp_path):
    path = os.pathsep.join([str(FOLDER.parents[1]), os.environ.get("PYTHONPATH", "")])
    ranks = [
        subprocess.Popen(
            [sys.executable, FOLDER / "key_queue_ranks.py", str(rank), "2", tmp_path],
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in ranks:
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0 and output.split()[-1] == "held", errors

    # What rank 0 wrote of a sharded queue is the whole queue.
    queue = sslops.KeyQueue(11, 4)
    queue.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    torch.testing.assert_close(queue.keys.norm(dim=1), torch.ones(11))
    assert queue.pointer.item() == (8 + 8 + 6) % 11
