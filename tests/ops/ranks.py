"""What each process of test_distributed.py runs: it computes everything and saves it, asserts
nothing, so that no rank waits for one that has failed. Importable by name, as spawn needs it."""

import importlib.util

import torch
import torch.distributed as dist
from backends import is_interpreted
from torch import nn

import sslops
from sslops import compat, registry

LOSSES = {
    "info_nce": (sslops.info_nce, {}),
    "symmetric": (sslops.info_nce, {"symmetric": True}),
    "nt_xent": (sslops.nt_xent, {}),
    "info_nce ring": (sslops.info_nce, {"exchange": "ring"}),
    "symmetric ring": (sslops.info_nce, {"exchange": "ring", "symmetric": True}),
    "nt_xent ring": (sslops.nt_xent, {"exchange": "ring"}),
}


class Model(nn.Module):
    """Two linear maps and a temperature: enough for every path a gradient can take."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.a, self.b = (
            nn.Parameter(torch.randn(6, 5, generator=generator).to(dtype)) for _ in range(2)
        )
        self.temperature = nn.Parameter(torch.tensor(0.3, dtype=dtype))

    def forward(self, x, y):
        return x @ self.a, y @ self.b, self.temperature


def inputs(rows):
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(rows, 6, generator=generator)
    return x, x + torch.randn(rows, 6, generator=generator)


def sizes(world, kind):
    """Rows of each rank."""
    if kind == "even":
        return [3] * world
    return [4, 1, 2, 3][:world] if kind == "uneven" else [4, 0, 2, 3][:world]


def own_inputs(rank, rows):
    start = sum(rows[:rank])
    return [x[start : start + rows[rank]] for x in inputs(sum(rows))]


def averaged_gradients(model):
    """As DDP does."""
    gradients = []
    for p in model.parameters():
        gradient = torch.zeros_like(p) if p.grad is None else p.grad.clone()
        dist.all_reduce(gradient)
        gradients.append(gradient / dist.get_world_size())
    return gradients


def loss_and_gradients(model, loss_of, x, y):
    loss = loss_of(*model(x, y))
    loss.backward()
    return {"loss": loss.detach(), "gradients": averaged_gradients(model)}


def of_backend(name, backend, x, y):
    """One loss with the keys of all ranks, or why this backend cannot run."""
    op, options = LOSSES[name]
    options = {**options, "group": dist.group.WORLD, "backend": backend}
    model = Model()
    try:
        found = loss_and_gradients(model, lambda q, k, T: op(q, k, temperature=T, **options), x, y)
    except RuntimeError as error:
        if "cannot run here" not in str(error):
            raise
        return str(error)
    with torch.no_grad():
        q, k, T = model(x, y)
        found["rows"], stats = op(q, k, temperature=T, reduction="none", return_stats=True,
                                  **options)  # fmt: skip
        found["ranks"] = stats.positive_rank
        found["sum"] = op(q, k, temperature=T, reduction="sum", **options)
    return found


def clip(loss_class, x, y, **options):
    """A ClipLoss of either package on features of unit length."""
    options.update(rank=dist.get_rank(), world_size=dist.get_world_size())
    loss = loss_class(**options)
    unit = nn.functional.normalize
    model = Model()
    return loss_and_gradients(
        model, lambda q, k, T: loss(unit(q, dim=-1), unit(k, dim=-1), 1 / T), x, y
    )


def ntxent(loss_class, x, y):
    loss = loss_class(temperature=0.3, gather_distributed=True)
    return loss_and_gradients(Model(), lambda q, k, T: loss(q, k), x, y)


def with_ddp(x, y):
    """The gradients that DistributedDataParallel itself leaves."""
    model = Model()
    wrapped = nn.parallel.DistributedDataParallel(model)
    q, k, T = wrapped(x, y)
    sslops.info_nce(q, k, temperature=T, symmetric=True, group=dist.group.WORLD).backward()
    return [p.grad for p in model.parameters()]


def memory_bank(x):
    loss = compat.NTXentLoss(0.3, memory_bank_size=(64, 6), gather_distributed=True)
    loss(x.clone().requires_grad_(), x)
    return loss.memory_bank.bank, loss.memory_bank.bank_ptr


def compute(rank, world):
    found = {}
    for kind in ("even", "uneven", "empty"):
        x, y = own_inputs(rank, sizes(world, kind))
        for name, (op, _) in LOSSES.items():
            for backend in registry.OPS[op.__name__].backends:
                if kind == "even" and is_interpreted(backend):
                    found[name, backend, kind] = "interpreted, for uneven batches only"
                    continue
                found[name, backend, kind] = of_backend(name, backend, x, y)
        found["ntxent", kind] = ntxent(compat.NTXentLoss, x, y)
        for local in (True, False):
            found["clip", local, kind] = clip(compat.ClipLoss, x, y, local_loss=local)
    found["memory bank"] = memory_bank(own_inputs(rank, sizes(world, "uneven"))[0])
    found["ddp"] = with_ddp(*own_inputs(rank, sizes(world, "uneven")))
    found["theirs"] = of_packages(*own_inputs(rank, sizes(world, "even")))
    return found


def of_packages(x, y):
    """The packages' own losses, where they are installed and right."""
    found = {}
    if importlib.util.find_spec("lightly"):
        from lightly.loss import NTXentLoss

        found["ntxent"] = ntxent(NTXentLoss, x, y)
    if importlib.util.find_spec("open_clip"):
        from open_clip import ClipLoss

        for local in (True, False):
            found["clip", local] = clip(ClipLoss, x, y, local_loss=local, gather_with_grad=True)
    return found


def main(rank, world, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
    )
    torch.save(compute(rank, world), f"{folder}/{rank}.pt")
    dist.destroy_process_group()
