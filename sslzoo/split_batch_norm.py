"""Batch norm that does not give away which key belongs to which query (MoCo's shuffling BN).

If a query and its key are normalised with the statistics of the same images, a network can
recognise the pair by these statistics. Several processes: each normalises its own share, and keys
are shuffled over all of them. One process: the batch is normalised in groups, and keys are
shuffled over the groups; shuffling alone would change nothing, for the statistics of a whole batch
do not depend on its order.
"""

import torch
import torch.nn.functional as F
from torch import nn

from sslops import CounterGenerator
from sslops.distributed import gather_rows, rank_and_size


class _SplitBatchNorm:
    """Mixed into nn.BatchNorm1d, 2d and 3d; parameters, buffers and their names are those."""

    splits: int

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        N, C, g = x.shape[0], x.shape[1], self.splits
        if N % g:
            raise ValueError(f"a batch of {N} cannot be normalised in {g} equal groups: choose "
                             f"another batch_size or bn_splits")  # fmt: skip
        # Sample n is in group n mod g: the groups become channels, g times as many.
        grouped = x.reshape(N // g, g * C, *x.shape[2:])
        mean, var = (v.repeat(g) for v in (self.running_mean, self.running_var))
        weight, bias = (v.repeat(g) for v in (self.weight, self.bias))
        y = F.batch_norm(grouped, mean, var, weight, bias, True, self.momentum, self.eps)
        with torch.no_grad():  # what evaluation sees is the mean over the groups
            self.running_mean.copy_(mean.view(g, C).mean(0))
            self.running_var.copy_(var.view(g, C).mean(0))
            self.num_batches_tracked += 1
        return y.view_as(x)

    def extra_repr(self):
        return f"{super().extra_repr()}, splits={self.splits}"


class SplitBatchNorm1d(_SplitBatchNorm, nn.BatchNorm1d):
    """nn.BatchNorm1d over `splits` groups of the batch, made by `split_batch_norm`."""


class SplitBatchNorm2d(_SplitBatchNorm, nn.BatchNorm2d):
    """nn.BatchNorm2d over `splits` groups of the batch, made by `split_batch_norm`."""


class SplitBatchNorm3d(_SplitBatchNorm, nn.BatchNorm3d):
    """nn.BatchNorm3d over `splits` groups of the batch, made by `split_batch_norm`."""


SPLIT = {
    nn.BatchNorm1d: SplitBatchNorm1d,
    nn.BatchNorm2d: SplitBatchNorm2d,
    nn.BatchNorm3d: SplitBatchNorm3d,
}


def split_batch_norm(module, splits):
    """Let every batch norm inside `module` normalise `splits` groups of the batch on their own.

    In training mode and for splits = 2 a layer equals

        torch.cat([bn(x[0::2]), bn(x[1::2])])    # in the order of x

    Args:
        module: changed in place; its state_dict keeps names and shapes.
        splits: groups; 1 changes nothing.

    Returns:
        module.

    Raises:
        ValueError: a batch norm of a kind that cannot be split.

    Source:
        He, Fan, Wu, Xie, Girshick, "Momentum Contrast for Unsupervised Visual Representation
        Learning", CVPR 2020, section 3.3, brought to one device.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> norm = split_batch_norm(nn.BatchNorm1d(1), 2)
        >>> print(norm(torch.tensor([[0.0], [5.0], [2.0], [7.0]])).round().tolist())
        [[-1.0], [-1.0], [1.0], [1.0]]
    """
    for name, layer in module.named_modules() if splits > 1 else ():
        if not isinstance(layer, nn.modules.batchnorm._BatchNorm):
            continue
        plain = type(layer) in SPLIT and layer.affine and layer.momentum is not None
        if not plain or not layer.track_running_stats:
            raise ValueError(f"{name or 'the module'} is a {type(layer).__name__} of a kind that "
                             "cannot be split in groups: set bn_splits to 1")  # fmt: skip
        layer.__class__ = SPLIT[type(layer)]
        layer.splits = splits
    return module


class Shuffle:
    """One permutation of the samples of all processes, the same in each of them.

    `shuffle(x)` gives this process other samples than its own, in another order; `undo(y)` brings
    what was computed from them back. The permutation is a function of the step: nothing is sent
    but the samples.

    Args:
        step: number of the step.
        samples: of this process; the same in all.
        group: None, or the torch.distributed process group to shuffle over.
        device: of the samples.

    Example:
        >>> import torch
        >>> shuffle = Shuffle(step=3, samples=5)
        >>> x = torch.arange(5)
        >>> shuffle.undo(shuffle(x)).tolist()
        [0, 1, 2, 3, 4]
    """

    def __init__(self, step, samples, group=None, device=None):
        self.group, self.samples = group, samples
        self.rank, self.ranks = (0, 1) if group is None else rank_and_size(group)
        noise = CounterGenerator(seed=0, step=step).uniform(1, samples * self.ranks, device=device)
        self.order = noise[0].argsort()

    def __call__(self, x):
        """This process's share of the shuffled samples of all."""
        return self._all(x)[self._share(self.order)]

    def undo(self, y):
        """This process's own samples of what all processes computed from shuffled ones."""
        return self._all(y)[self._share(self.order.argsort())]

    def _share(self, order):
        return order[self.rank * self.samples :][: self.samples]

    def _all(self, x):
        if self.group is None:
            return x
        rows = gather_rows(x.flatten(1)[None], self.group, [self.samples] * self.ranks)[0][0]
        return rows.view(-1, *x.shape[1:])
