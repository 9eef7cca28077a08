"""A method divided among the processes (FSDP2): each keeps a slice of every parameter, of its
gradient and of the optimizer's state.

The weights of a unit (a block of a ViT, a stage of a convolutional encoder) are gathered when it
computes, forward and backward, and freed after; what is in no unit (embeddings, heads) stays whole
from the begin of a step's forward pass to the end of its backward pass. A sharded parameter is a
torch DTensor; this file is the only one that knows.
"""

import copy
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from sslops.distributed import default_group, sum_over_ranks


def check(method):
    """A ValueError, for the user, where a method can not be sharded."""
    reason = getattr(method, "whole_only", None)
    if reason is not None:
        raise ValueError(f"shard is not for this run: {reason}")


def spread(model, setup):
    """What the loop calls: a model over all processes, by DDP or, where the run says so, in shards.

    Args:
        model: setup.method, or what wraps it.
        setup: sslzoo.training.Setup, whose `whole` becomes a copy where weights are divided.
    """
    is_sharded = setup.config.shard and setup.accelerator.num_processes > 1
    if is_sharded:
        setup.whole = copy_for_main(setup.method) if setup.is_main else None
        model = shard(model, setup.device)
    return setup.accelerator.prepare_model(model, evaluation_mode=is_sharded)  # True: no DDP


def shard(model, device):
    """Divide the parameters of `model` among all processes, in place.

    Args:
        model: what the loop calls; nothing may use its weights outside of that call but
            `whole_roots` and `gathered`. Optimizers are made afterwards, of its new parameters.
        device: torch.device that it is on.

    Returns:
        model.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.contiguous()  # convolutions may be channels last: rows are cut
        dist.broadcast(tensor.detach(), 0)  # as DDP does
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for unit in units(model):
        fully_shard(unit, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def units(model):
    """The blocks and stages inside a module, of encoders, teachers and decoders, inner ones first.

    Example:
        >>> from torch import nn
        >>> blocks = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
        >>> units(nn.ModuleDict({"embed": nn.Linear(1, 1), "blocks": blocks})) == [*blocks][::-1]
        True
    """
    found = [module for name, module in model.named_modules() if is_unit(name.split("."))]
    return [unit for unit in reversed(found) if any(True for _ in unit.parameters())]


def is_unit(path):
    """Whether a submodule is a block of `blocks` or `decoder_blocks`, or one of `stages`; or layer1
    to layer4 of a ResNet."""
    *_, container, name = ("", *path)
    is_numbered = container.endswith("blocks") or container == "stages"
    return is_numbered or (name[:-1] == "layer" and name[-1].isdigit())


def is_sharded(model):
    return isinstance(model, FSDPModule)


@contextmanager
def whole_roots(model):
    """Inside, weights that are in no unit are whole, in all processes, which must enter together.

    For what is called beside the training step, such as meters.
    """
    if not is_sharded(model):
        yield
        return
    model.unshard()
    try:
        yield
    finally:
        model.reshard()


def copy_for_main(method):
    """A whole copy of a method that will be sharded, on the CPU, where `gathered` puts weights."""
    group = default_group()  # a queue's, which has no copy
    return copy.deepcopy(method, {id(group): group}).cpu()


@contextmanager
def gathered(setup):
    """Inside, the main process's setup.whole has the weights of setup.method.

    All processes must enter together. Outside, the copy waits on the CPU.

    Args:
        setup: sslzoo.training.Setup.
    """
    if setup.whole is setup.method:
        yield
        return
    state = full(setup.method.state_dict(), keep=setup.is_main)
    if setup.is_main:
        setup.whole.load_state_dict(state)
        setup.whole.to(setup.device)
    try:
        yield
    finally:
        if setup.is_main:
            setup.whole.cpu()


def full(state, keep=True):
    """A nested state in which all tensors are whole; all processes must call together.

    Args:
        state: tensors in dicts and lists.
        keep: False, in processes that have no use for them, leaves None in the place of tensors
            that were sharded.
    """
    if isinstance(state, dict):
        return {key: full(value, keep) for key, value in state.items()}
    if isinstance(state, list):
        return [full(value, keep) for value in state]
    if isinstance(state, DTensor):
        whole = state.full_tensor()
        return whole.cpu() if keep else None
    return state


def sharded_like(state, tensors):
    """`state` with each whole tensor divided as the one of the same key in `tensors` is."""
    return {key: _divide(value, tensors.get(key)) for key, value in state.items()}


def optimizer_state_like(state, groups):
    """An optimizer's whole state_dict, divided as the parameters of its groups are."""
    parameters = [p for group in groups for p in group["params"]]
    per_parameter = {
        index: {name: _divide(value, parameters[index]) for name, value in values.items()}
        for index, values in state["state"].items()
    }
    return {**state, "state": per_parameter}


def _divide(value, like):
    if not isinstance(like, DTensor) or getattr(value, "shape", None) != like.shape:
        return value
    # Every process has the whole tensor and takes its part.
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements,
                             src_data_rank=None)  # fmt: skip


def local(tensors):
    """Of each tensor this process's slice, with the same memory; tensors that are whole as they
    are. For operations on every element alike, on many tensors at once."""
    return [t.to_local() if isinstance(t, DTensor) else t for t in tensors]


def norms(tensors):
    """The Euclidean norm of each tensor, [n], as of whole tensors; no gradient is tracked."""
    tensors = [t.detach() for t in tensors]
    found = torch.stack(torch._foreach_norm(local(tensors)))
    parts = [isinstance(t, DTensor) for t in tensors]
    if not any(parts):
        return found
    of_all = sum_over_ranks(found.square(), default_group()).sqrt()
    return torch.where(torch.tensor(parts, device=found.device), of_all, found)
