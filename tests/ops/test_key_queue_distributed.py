"""KeyQueue over two processes (gloo) against one; the checks are in key_queue_ranks.py."""

import key_queue_ranks
import processes
import torch

import sslops


def test_two_ranks_hold_the_queue_of_one_process(tmp_path):
    processes.start(2, key_queue_ranks.main, 2, tmp_path)

    # What rank 0 wrote of a sharded queue is the whole queue.
    queue = sslops.KeyQueue(11, 4)
    queue.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    torch.testing.assert_close(queue.keys.norm(dim=1), torch.ones(11))
    assert queue.pointer.item() == (8 + 8 + 6) % 11
