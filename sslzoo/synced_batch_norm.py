"""Batch norm over the samples of all processes, on any device: nn.SyncBatchNorm needs a GPU."""

import torch
from timm.layers import BatchNormAct2d, SyncBatchNormAct, convert_sync_batchnorm
from torch import nn

from sslops.distributed import default_group, sum_over_ranks
from sslops.unit_rows import at_least_float32


class _SumOverRanks(torch.autograd.Function):
    """The sum over the processes, whose gradient is the sum of the gradients that it got."""

    @staticmethod
    def forward(ctx, x, group):
        ctx.group = group
        return sum_over_ranks(x, group)

    @staticmethod
    def backward(ctx, gradient):
        return sum_over_ranks(gradient, ctx.group), None


class _SyncedBatchNorm:
    """Mixed into nn.BatchNorm1d, 2d and 3d; parameters, buffers and their names are those."""

    def forward(self, x):
        group = default_group()
        if not self.training or group is None:
            return super().forward(x)
        # Sums and counts of half-precision numbers, as autocast brings them, are no such numbers.
        x, dtype = at_least_float32(x), x.dtype
        # C channels, n samples of a channel over all processes
        C, axes = x.shape[1], [0, *range(2, x.ndim)]
        sums = torch.cat([x.sum(axes), x.new_tensor([x.numel() / C])])
        sums = _SumOverRanks.apply(sums, group)
        n, mean_C = sums[C].detach(), sums[:C] / sums[C].detach()
        centred = x - _over_channels(mean_C, x)
        var_C = _SumOverRanks.apply(centred.square().sum(axes), group) / n
        if self.track_running_stats:
            self._remember(mean_C.detach(), var_C.detach() * n / (n - 1))
        y = centred * _over_channels((var_C + self.eps).rsqrt(), x)
        if self.weight is not None:
            y = y * _over_channels(self.weight, x)
        y = y if self.bias is None else y + _over_channels(self.bias, x)
        return y.to(dtype)

    @torch.no_grad()
    def _remember(self, mean, var):
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var, self.momentum)
        self.num_batches_tracked += 1


class SyncedBatchNorm1d(_SyncedBatchNorm, nn.BatchNorm1d):
    """nn.BatchNorm1d over all processes, made by `sync_batch_norm`."""


class SyncedBatchNorm2d(_SyncedBatchNorm, nn.BatchNorm2d):
    """nn.BatchNorm2d over all processes, made by `sync_batch_norm`."""


class SyncedBatchNorm3d(_SyncedBatchNorm, nn.BatchNorm3d):
    """nn.BatchNorm3d over all processes, made by `sync_batch_norm`."""


SYNCED = {
    nn.BatchNorm1d: SyncedBatchNorm1d,
    nn.BatchNorm2d: SyncedBatchNorm2d,
    nn.BatchNorm3d: SyncedBatchNorm3d,
}


class _BatchNormOfAnyShape(nn.modules.batchnorm._BatchNorm):
    """nn.SyncBatchNorm does not know of how many dimensions it was made."""

    def _check_input_dim(self, x):
        pass


ALONE = {
    **{synced: plain for plain, synced in SYNCED.items()},
    nn.SyncBatchNorm: _BatchNormOfAnyShape,
    SyncBatchNormAct: BatchNormAct2d,
}


def sync_batch_norm(module, device):
    """Let every batch norm inside `module` take its statistics over all processes.

    The gradient goes through the statistics, as in one process with the samples of all.

    Args:
        module: changed in place; its state_dict keeps names and shapes.
        device: torch.device; on CUDA this is nn.SyncBatchNorm.

    Returns:
        module, or its copy.

    Raises:
        ValueError: a batch norm of a kind that cannot be synchronised on this device.
    """
    on_gpu = device.type == "cuda"
    known = (*SYNCED, BatchNormAct2d) if on_gpu else SYNCED
    for name, layer in module.named_modules():
        if not isinstance(layer, nn.modules.batchnorm._BatchNorm):
            continue
        if type(layer) not in known or (layer.momentum is None and not on_gpu):
            raise ValueError(f"{name or 'the module'} is a {type(layer).__name__} of a kind that "
                             f"several processes cannot share on {device.type}")  # fmt: skip
        if not on_gpu:
            layer.__class__ = SYNCED[type(layer)]
    # timm's: torch's own would drop the activation of a norm that has one.
    return convert_sync_batchnorm(module) if on_gpu else module


def batch_norm_alone(module):
    """Undo `sync_batch_norm`: statistics are those of this process, which others do not wait for.

    Args:
        module: changed in place; its state_dict keeps names and shapes.

    Returns:
        module.
    """
    for layer in module.modules():
        if type(layer) in ALONE:
            layer.__class__ = ALONE[type(layer)]
    return module


def _over_channels(values, x):
    """[C] to the shape that broadcasts over x [N, C, ...]."""
    return values.view(1, -1, *[1] * (x.ndim - 2))
