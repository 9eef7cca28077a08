"""Starts several processes of one machine, each with its rank."""

import torch
import torch.multiprocessing


def start(world, function, *args):
    """Run `function(rank, *args)` in `world` processes; raises what one of them raises.

    They are forks where no GPU is: a spawned process imports torch first, for seconds.
    """
    method = "spawn" if torch.cuda.is_available() else "fork"
    torch.multiprocessing.start_processes(function, args, nprocs=world, start_method=method)
