"""Hold every loss, at several numbers of processes, to one process in float64.

    python -m sslops.verify --world-size 4              # starts 4 processes on this machine
    torchrun --nproc-per-node 8 -m sslops.verify        # uses the processes that are there
    python -m sslops.verify --loss my_package.losses:my_loss

Every loss runs as in training: through DistributedDataParallel around a small module, on even and
uneven batches (one rank without any row included), with ranks that arrive in random order. Its
value, averaged over ranks, and the gradients that DDP leaves must be those of the one-process loss
in float64 on the concatenated batch. Ends with code 1 if one is not, and says which and by how
much.
"""

import argparse
import contextlib
import datetime
import functools
import importlib
import os
import random
import sys
import tempfile
import time
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn

import sslops
from sslops import distributed

WIDTH, FEATURES = 12, 16
# Relative to the norm of the expected; rounding to bfloat16 is 2^-9 a number, gradients too.
ALLOWED = {torch.float32: 2e-5, torch.bfloat16: 2**-7}
BATCHES = {"even": [4, 4, 4, 4], "uneven": [5, 2, 4, 1], "empty": [5, 3, 4, 0]}


class Model(nn.Module):
    """Two linear maps and a temperature: every path that a gradient of a loss can take."""

    def __init__(self, dtype, unused=()):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        first, noise = torch.randn(2, WIDTH, FEATURES, generator=generator) / 3
        # Views resemble each other, as in training: else the temperature's gradient cancels.
        weights = first, first + noise / 2
        self.first, self.second = (nn.Parameter(w.to(dtype)) for w in weights)
        self.temperature = nn.Parameter(torch.tensor(0.25, dtype=dtype))
        for name in unused:  # DDP would wait for their gradients
            self.get_parameter(name).requires_grad_(False)

    def forward(self, x, y, rounded):
        features = (_rounded(v @ w, rounded) for v, w in ((x, self.first), (y, self.second)))
        return *features, self.temperature


def _rounded(x, dtype):
    """Features in the dtype of the loss; in float64, the values that they have in that dtype."""
    if x.dtype != torch.float64:
        return x.to(dtype)
    return x + (x.float().to(dtype).double() - x).detach()


def inputs(rows):
    """Two views of every row of the whole batch."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(rows, WIDTH, generator=generator)
    return x, x + torch.randn(rows, WIDTH, generator=generator) / 2


# The losses: of two features [n, D], a temperature and a group


def _queue(sharded, a, b, T, group):
    """A queue that has taken the keys of all ranks before."""
    torch.manual_seed(3)
    sharded = sharded and group is not None
    queue = sslops.KeyQueue(37, FEATURES, group=group, sharded=sharded).to(a.device)
    queue.enqueue_(b.detach().float())
    return sslops.info_nce(a, b, queue, T, group=group)


def _negatives(a, b, T, group):
    return sslops.info_nce(a, b, -b.flip(0), T, group=group)


def _dino(targets, a, b, T, group):
    student, teacher = torch.stack([a, b, a]), torch.stack([b, a]).detach()
    if targets == "sinkhorn_knopp":
        P = sslops.sinkhorn_knopp(teacher.flatten(0, 1), 0.5, group=group).view(teacher.shape)
        return sslops.dino_loss(student, P, group=group)
    center = sslops.updated_center(torch.zeros(FEATURES, device=a.device), teacher, group=group)
    return sslops.dino_loss(student, teacher, teacher_temperature=0.3, center=center, group=group)


def _koleo(a, b, T, group):
    return sslops.koleo(torch.stack([a, b]), group=group)


def _pair(op, options, a, b, T, group):
    return op(a, b, temperature=T, group=group, **options)


def _own(function, a, b, T, group):
    return function(a, b, group=group)


LOSSES = {
    **{
        name + suffix: functools.partial(_pair, op, {**options, "exchange": exchange})
        for suffix, exchange in (("", "gather"), (", ring", "ring"))
        for name, op, options in (
            ("info_nce", sslops.info_nce, {}),
            ("info_nce symmetric", sslops.info_nce, {"symmetric": True}),
            ("nt_xent", sslops.nt_xent, {}),
        )
    },
    "info_nce symmetric, blocks": functools.partial(
        _pair, sslops.info_nce, {"symmetric": True, "backend": "chunked"}
    ),
    "info_nce, given negatives": _negatives,
    "info_nce, KeyQueue": functools.partial(_queue, False),
    "info_nce, KeyQueue sharded": functools.partial(_queue, True),
    "dino_loss, updated_center": functools.partial(_dino, "updated_center"),
    "dino_loss, sinkhorn_knopp": functools.partial(_dino, "sinkhorn_knopp"),
    "koleo": _koleo,
}


class Found(NamedTuple):
    """One comparison, of the rank where it is worst."""

    loss: str
    ranks: int
    batch: str
    dtype: str
    quantity: str
    error: float  # relative to the norm of the expected
    allowed: float
    rank: int

    @property
    def held(self):
        return self.error <= self.allowed  # false for nan


def sizes_of(batch, ranks):
    """Rows of every rank."""
    pattern = BATCHES[batch]
    last = pattern[-1:] if ranks > 1 else []
    return ([pattern[i % 3] for i in range(ranks - len(last))] + last)[:ranks]


def relative_error(found, expected):
    expected = torch.zeros_like(found, dtype=torch.float64) if expected is None else expected
    error = torch.linalg.vector_norm(found.double().cpu() - expected.cpu())
    return (error / torch.linalg.vector_norm(expected).cpu().clamp(min=1e-12)).item()


def expected(loss, rows, dtype):
    """Value and gradients of one process in float64."""
    model = Model(torch.float64)
    x, y = (v.double() for v in inputs(rows))
    value = loss(*model(x, y, dtype), None)
    names = dict(model.named_parameters())
    gradients = torch.autograd.grad(value, list(names.values()), allow_unused=True)
    return value.detach(), dict(zip(names, gradients, strict=True))


def compare(loss, batch, dtype, group, device, pause):
    """(quantity, relative error) of this rank, which has waited a while before each pass."""
    rank, ranks = distributed.rank_and_size(group)
    sizes = sizes_of(batch, ranks)
    value, gradients = expected(loss, sum(sizes), dtype)
    own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    unused = [name for name, gradient in gradients.items() if gradient is None]
    model = Model(torch.float32, unused).to(device)
    wrapped = nn.parallel.DistributedDataParallel(model, process_group=group)
    pause()
    x, y = (v[own].to(device) for v in inputs(sum(sizes)))
    found = loss(*wrapped(x, y, dtype), group)
    pause()
    found.backward()
    average = distributed.mean_over_ranks(found.detach(), group)
    yield "value", relative_error(average, value)
    for name, parameter in model.named_parameters():
        if name not in unused:
            yield f"gradient of {name}", relative_error(parameter.grad, gradients[name])


@contextlib.contextmanager
def _named(rank, what):
    """Say where a rank was when it failed; the others wait for it until their time-out."""
    done = False
    try:
        yield
        done = True
    finally:
        if not done:
            print(f"rank {rank} failed in {what}", file=sys.stderr, flush=True)


def run(losses, worlds, batches, device, seconds):
    """Every comparison, on every rank; returns those of all ranks, the worst rank of each."""
    rank, found = dist.get_rank(), []
    random_of_rank = random.Random(rank)

    def pause():
        time.sleep(random_of_rank.uniform(0, seconds))

    for ranks in worlds:
        group = dist.new_group(list(range(ranks)))
        for name, loss in losses.items() if rank < ranks else ():
            for batch in batches if ranks > 1 else ("even",):
                for dtype, allowed in ALLOWED.items():
                    case = name, ranks, batch, str(dtype).removeprefix("torch.")
                    with _named(rank, case):
                        for quantity, error in compare(loss, batch, dtype, group, device, pause):
                            found.append(Found(*case, quantity, error, allowed, rank))
    return worst_ranks(found)


def worst_ranks(found):
    everything = [None] * dist.get_world_size()
    dist.all_gather_object(everything, [tuple(f) for f in found])
    worst = {}
    for f in (Found(*f) for of_rank in everything for f in of_rank):
        if f[:5] not in worst or not f.error <= worst[f[:5]].error:
            worst[f[:5]] = f
    return list(worst.values())


def report(found):
    """Print the table and what failed; returns the exit code."""
    rows = {}
    for f in found:
        kind = "value" if f.quantity == "value" else "gradient"
        rows.setdefault((f.loss, f.ranks), {}).setdefault((kind, f.dtype), []).append(f)
    columns = [(kind, d) for d in ("float32", "bfloat16") for kind in ("value", "gradient")]
    heads = [f"{kind} {d}" for kind, d in columns]
    print("Largest relative error against one process in float64, over batches and parameters")
    print(f"{'loss':<28}{'ranks':>6}" + "".join(f"{h:>20}" for h in heads))
    for (loss, ranks), cells in rows.items():
        errors = (max(cells[c], key=lambda f: (f.error != f.error, f.error)) for c in columns)
        text = (f"{f.error:.1e}{' ' if f.held else '!'}" for f in errors)
        print(f"{loss:<28}{ranks:>6}" + "".join(f"{t:>20}" for t in text))
    failed = [f for f in found if not f.held]
    for f in failed:
        print(
            f"FAILED {f.loss}: {f.ranks} processes, {f.batch} batches, {f.dtype}: {f.quantity} "
            f"is off by {f.error:.1e} of its norm (allowed {f.allowed:.1e}), most on rank {f.rank}"
        )
    print(f"{len(found) - len(failed)} of {len(found)} comparisons held")
    return 1 if failed else 0


def chosen_losses(own):
    """All losses of sslops, or those that the user names as module:function."""
    if not own:
        return LOSSES
    losses = {}
    for name in own:
        module, _, function = name.partition(":")
        loss = getattr(importlib.import_module(module), function)
        losses[name] = functools.partial(_own, loss)
    return losses


def device_of_rank(backend):
    if backend == "gloo":
        torch.set_num_threads(1)
        return torch.device("cpu")
    local = dist.get_rank() % torch.cuda.device_count()
    device = torch.device("cuda", dist.get_node_local_rank(fallback_rank=local))
    torch.cuda.set_device(device)
    return device


def main_of_rank(rank, options, folder=None):
    """What each process does; with a folder, rank 0 leaves there what was found."""
    where = {}
    if folder is not None:
        where = dict(init_method=f"file://{folder}/store", rank=rank, world_size=options.world_size)
    timeout = datetime.timedelta(seconds=options.timeout)
    dist.init_process_group(options.backend, timeout=timeout, **where)
    device = device_of_rank(options.backend)
    size = dist.get_world_size()
    worlds = sorted({2**i for i in range(size.bit_length()) if 2**i <= size} | {size})
    batches = ("uneven",) if options.quick else tuple(BATCHES)
    seconds = 0.002 if options.quick else 0.02
    found = run(chosen_losses(options.loss), worlds, batches, device, seconds)
    if folder is not None and dist.get_rank() == 0:
        torch.save([tuple(f) for f in found], f"{folder}/found.pt")
    code = report(found) if folder is None and dist.get_rank() == 0 else 0
    dist.destroy_process_group()
    return code if folder is not None else int(any(not f.held for f in found))


def parse(arguments=None):
    parser = argparse.ArgumentParser("python -m sslops.verify", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--world-size", type=int, default=4, help="processes to start (default 4), of which the "
        "powers of two below are tried too; under torchrun, those that are there")  # fmt: skip
    add("--backend", choices=["gloo", "nccl"], help="nccl takes one GPU a process; the default "
        "where there are enough GPUs")  # fmt: skip
    add("--loss", action="append", metavar="MODULE:FUNCTION", help="check function(z0, z1, "
        "group=group) instead, scaled as the losses of sslops are; repeatable")  # fmt: skip
    add("--timeout", type=float, default=120, help="seconds a rank waits for others (default 120)")
    add("--quick", action="store_true", help="uneven batches only")
    options = parser.parse_args(arguments)
    if options.world_size < 1:
        parser.error("--world-size must be at least 1")
    return options


def main(arguments=None):
    """Returns the exit code: 0 if everything held."""
    options = parse(arguments)
    rendezvous = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    if options.backend is None:
        needed = 1 if rendezvous else options.world_size
        options.backend = "nccl" if torch.cuda.device_count() >= needed else "gloo"
    if rendezvous:
        return main_of_rank(None, options)
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(main_of_rank, (options, folder), nprocs=options.world_size)
        return report([Found(*f) for f in torch.load(f"{folder}/found.pt", weights_only=True)])


if __name__ == "__main__":
    sys.exit(main())
