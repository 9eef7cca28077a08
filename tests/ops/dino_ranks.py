"""What each process of test_dino_distributed.py runs: it computes everything and saves it, asserts
nothing, so that no rank waits for one that has failed. Importable by name, as spawn needs it."""

import torch
import torch.distributed as dist

import sslops
from sslops import registry

KINDS = {"even": [3, 3], "uneven": [4, 1], "empty": [5, 0]}
D, K, CROPS = 6, 10, 4


def inputs(rows):
    """Crops of all ranks' images [CROPS, rows, D], and the weights that make logits of them."""
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(CROPS, rows, D, generator=generator)
    return x, torch.randn(D, K, generator=generator)


def losses(x, w, group, backends):
    """Every loss of this module, from the crops of this rank."""
    logits = x @ w
    teacher = logits[:2].detach()
    options = dict(teacher_temperature=0.3, center=w[0], group=group)
    yield "dino", sslops.dino_loss(logits, teacher, **options, backend=backends[0])
    yield "koleo", sslops.koleo((x @ w)[:2], group=group, backend=backends[1])


def of_rank(x, w, group, backends):
    found = {}
    for name in ("dino", "koleo"):
        leaf = w.clone().requires_grad_()
        loss = dict(losses(x, leaf, group, backends))[name]
        (gradient,) = torch.autograd.grad(loss, leaf, allow_unused=True)
        if group is not None:  # as DDP does
            dist.all_reduce(gradient)
            gradient /= dist.get_world_size()
        found[name] = (loss.detach(), gradient)
    return found


def backends_here():
    """(dino_loss, koleo) backends to try together."""
    pairs = [("chunked", "chunked"), ("reference", "reference"), ("cpu", "cpu"), ("cpu", "triton")]
    return [(dino, koleo) for dino, koleo in pairs if dino in registry.OPS["dino_loss"].backends
            and koleo in registry.OPS["koleo"].backends]  # fmt: skip


def main(rank, world, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
    )
    group, found = dist.group.WORLD, {}
    for kind, sizes in KINDS.items():
        x, w = inputs(sum(sizes))
        start = sum(sizes[:rank])
        own = x[:, start : start + sizes[rank]]
        for backends in backends_here():
            found[kind, backends[1]] = of_rank(own, w, group, backends)
        logits = (own @ w).flatten(0, 1)
        for backend in registry.OPS["sinkhorn_knopp"].backends:
            for dtype in (torch.float32, torch.float16):
                found[kind, "sinkhorn", backend, dtype] = sslops.sinkhorn_knopp(
                    logits.to(dtype), 0.1, group=group, backend=backend
                )
        found[kind, "center"] = sslops.updated_center(w[0], logits, group=group)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
