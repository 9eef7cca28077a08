"""One rank of test_key_queue_distributed.py; importable by name, as spawn needs it.

Every check compares with one process that sees the keys of all ranks in rank order.
"""

import torch
import torch.distributed as dist

import sslops

SIZE, D = 11, 4  # 11: shards of 6 and 5 slots


def batches(step, ranks):
    """The keys of all ranks at one step: uneven, one of them empty, one larger than the queue."""
    generator = torch.Generator().manual_seed(step)
    sizes = [(3, 5), (4, 4), (0, 6), (20, 2)][step % 4][:ranks]
    return [torch.randn(n, D, generator=generator) for n in sizes]


def make(**options):
    torch.manual_seed(1)
    return sslops.KeyQueue(SIZE, D, **options)


def check_keys_enter_in_rank_order(rank, ranks, group, sharded):
    # pytorch-metric-learning #642: ranks that gather on their own disagree on the order.
    single, ours = make(), make(group=group, sharded=sharded)
    assert torch.equal(ours.keys, single.keys)
    for step in range(8):
        keys = batches(step, ranks)
        single.enqueue_(torch.cat(keys))
        known = [len(k) for k in keys] if step % 2 else None
        ours.enqueue_(keys[rank], batch_sizes=known)
        assert torch.equal(ours.keys, single.keys)
        assert torch.equal(ours.pointer, single.pointer)
    if sharded:
        assert len(ours.stored) == (6, 5)[rank]


def check_state_loads_at_another_world_size(rank, ranks, group, folder):
    sharded = make(group=group, sharded=True)
    for step in range(3):
        sharded.enqueue_(batches(step, ranks)[rank])
    state = sharded.state_dict()  # together: it gathers
    single = make()
    single.load_state_dict(state)
    assert torch.equal(single.keys, sharded.keys)

    single.enqueue_(torch.ones(2, D))
    again = make(group=group, sharded=True)
    again.load_state_dict(single.state_dict())
    assert torch.equal(again.keys, single.keys)
    assert torch.equal(again.pointer, single.pointer)
    if rank == 0:
        torch.save(state, f"{folder}/state.pt")


def check_ddp_leaves_the_shards_alone(rank, ranks, group):
    model = torch.nn.Module()
    model.layer, model.queue = torch.nn.Linear(D, D), make(group=group, sharded=True)
    model.forward = model.layer.forward
    before = model.queue.keys.clone()
    wrapped = torch.nn.parallel.DistributedDataParallel(model, broadcast_buffers=True)
    for _ in range(2):
        wrapped(torch.randn(2, D)).sum().backward()
    assert torch.equal(model.queue.keys, before)


def main(rank, ranks, folder):
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    group = dist.group.WORLD
    for sharded in (False, True):
        check_keys_enter_in_rank_order(rank, ranks, group, sharded)
    check_state_loads_at_another_world_size(rank, ranks, group, folder)
    check_ddp_leaves_the_shards_alone(rank, ranks, group)
    dist.barrier()
    dist.destroy_process_group()
