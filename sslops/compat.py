"""Drop-in classes: the names, arguments, defaults and values of losses people already use.

    from lightly.loss import NTXentLoss     ->  from sslops.compat import NTXentLoss
    from open_clip import ClipLoss          ->  from sslops.compat import ClipLoss
    from info_nce import InfoNCE            ->  from sslops.compat import InfoNCE

None of these packages is needed. Where they are known to be wrong, these classes are right, and
each says so. Every loss is float32, also under autocast.
"""

import torch
import torch.nn.functional as F
from torch import nn

from sslops import arguments, distributed
from sslops.ops.info_nce import info_nce
from sslops.ops.nt_xent import nt_xent
from sslops.unit_rows import at_least_float32

__all__ = ["ClipLoss", "InfoNCE", "NTXentLoss"]


class MemoryBank(nn.Module):
    """The last `size[0]` keys of width `size[1]`; part of the state_dict, exact at the wrap.

    lightly's own bank drops the keys that do not fit before its end, and is not saved: a resumed
    run starts with random negatives.
    """

    def __init__(self, size):
        super().__init__()
        self.size = (size,) if isinstance(size, int) else tuple(size)
        if any(n < 0 for n in self.size):
            raise ValueError(f"memory_bank_size must not be negative; got {size!r}")
        if self.size != (0,) and len(self.size) != 2:
            raise ValueError(
                f"memory_bank_size must be 0 (no bank) or (number of keys, width); got {size!r}"
            )
        if self.size[0] > 0:
            self.register_buffer("bank", F.normalize(torch.randn(self.size), dim=-1))
            self.register_buffer("bank_ptr", torch.zeros(1, dtype=torch.long))

    @torch.no_grad()
    def enqueue_(self, keys):
        """Overwrite the oldest keys with these, [n, width]; of more than fit, the last stay."""
        size, n = self.size[0], len(keys)
        kept = min(n, size)
        # The position stays on the device: reading it would wait for the GPU.
        slots = torch.arange(n - kept, n, device=keys.device)
        self.bank[(self.bank_ptr + slots) % size] = keys[n - kept :].to(self.bank.dtype)
        self.bank_ptr.add_(n).remainder_(size)


class NTXentLoss(nn.Module):
    """lightly's NTXentLoss: SimCLR's loss, or with a memory bank MoCo's.

    Without a bank it equals `sslops.nt_xent(out0, out1, temperature)`; with one
    `sslops.info_nce(out0, out1, bank, temperature)`, after which the bank takes the normalised
    rows of out1, if out0 requires grad.

    Args:
        temperature: float > 0.
        memory_bank_size: 0 for none, or (number of keys, width).
        gather_distributed: use the other ranks' views as negatives too, with gradient; the bank
            takes the keys of all ranks, in rank order.

    Differs from lightly: the bank loses no keys at its end and is part of the state_dict; a
    negative temperature is an error.

    Example:
        >>> import torch
        >>> from sslops.compat import NTXentLoss
        >>> loss = NTXentLoss(temperature=1.0)(torch.eye(8), torch.eye(8))
        >>> print(f"{loss.item():.4f}")  # log(e + 14) - 1
        1.8165
    """

    def __init__(self, temperature=0.5, memory_bank_size=0, gather_distributed=False):
        super().__init__()
        if temperature < 1e-8:
            raise ValueError(f"temperature must be at least 1e-8; got {temperature!r}")
        if gather_distributed and not distributed.is_available():
            raise ValueError("gather_distributed=True needs a torch built with torch.distributed")
        self.temperature = temperature
        self.gather_distributed = gather_distributed
        self.memory_bank = MemoryBank(memory_bank_size)

    def forward(self, out0, out1):
        """The loss of two views, [N, D] each: a float32 scalar."""
        group = distributed.default_group() if self.gather_distributed else None
        if self.memory_bank.size[0] == 0:
            return nt_xent(out0, out1, self.temperature, group=group)
        bank = self.memory_bank.bank.to(out0.device, out0.dtype)
        if not (out0.requires_grad and torch.is_grad_enabled()):
            return info_nce(out0, out1, bank, self.temperature)
        # A copy, because the backward pass needs the bank as it was before these keys.
        loss = info_nce(out0, out1, bank.clone(), self.temperature)
        keys = F.normalize(out1.detach().float(), dim=-1)
        if group is not None:
            keys = distributed.gather_rows(keys[None], group)[0][0]
        self.memory_bank.enqueue_(keys.to(self.memory_bank.bank.device))
        return loss


class ClipLoss(nn.Module):
    """open_clip's ClipLoss: image to text and text to image, of features of unit length.

    On one process it equals `sslops.info_nce(image_features, text_features,
    temperature=1 / logit_scale, symmetric=True, normalize=False)`.

    Args:
        local_loss: on several processes, return the loss of this rank's rows instead of the mean
            over all ranks' rows. The gradients are the same.
        gather_with_grad: accepted; gradients always flow through the gather.
        cache_labels: accepted; there are no labels.
        rank, world_size: of the default process group.

    Differs from open_clip on several processes: averaged over ranks, as DDP does, the gradient is
    that of the one-process loss whatever the arguments. open_clip's is 1 / world_size of it with
    local_loss=False, gather_with_grad=False, and lacks terms with local_loss=True,
    gather_with_grad=False.

    Example:
        >>> import torch
        >>> from sslops.compat import ClipLoss
        >>> loss = ClipLoss()(torch.eye(4), torch.eye(4), logit_scale=1.0)
        >>> print(f"{loss.item():.4f}")  # log(e + 3) - 1
        0.7437
    """

    def __init__(
        self, local_loss=False, gather_with_grad=False, cache_labels=False, rank=0, world_size=1
    ):
        super().__init__()
        self.local_loss = local_loss
        self.gather_with_grad = gather_with_grad
        self.cache_labels = cache_labels
        self.rank = rank
        self.world_size = world_size

    def forward(
        self, image_features, text_features, logit_scale, logit_bias=None, output_dict=False
    ):
        """The loss, a float32 scalar, or {"contrastive_loss": loss} with output_dict.

        A bias of all logits changes no softmax: logit_bias only gets its gradient, zero.
        """
        group = None
        if self.world_size > 1:
            group = distributed.default_group(self.rank, self.world_size)
        if isinstance(logit_scale, torch.Tensor):  # 1 / 100 loses digits in float16
            logit_scale = at_least_float32(logit_scale)
        loss = info_nce(image_features, text_features, temperature=1 / logit_scale,
                        symmetric=True, normalize=False, group=group)  # fmt: skip
        if group is not None and not self.local_loss:
            loss = loss + (distributed.mean_over_ranks(loss.detach(), group) - loss.detach())
        if isinstance(logit_bias, torch.Tensor):
            loss = loss + 0.0 * logit_bias.sum()
        return {"contrastive_loss": loss} if output_dict else loss


class InfoNCE(nn.Module):
    """info-nce-pytorch's InfoNCE: `sslops.info_nce` of 2-dimensional queries.

    Args:
        temperature: float > 0, or a 0-d tensor.
        reduction: "mean", "sum" or "none".
        negative_mode: "unpaired" (negative_keys [M, D]) or "paired" ([N, M, D]).

    Example:
        >>> import torch
        >>> from sslops.compat import InfoNCE
        >>> loss = InfoNCE(temperature=1.0)(torch.eye(4), torch.eye(4))
        >>> print(f"{loss.item():.4f}")  # log(e + 3) - 1
        0.7437
    """

    def __init__(self, temperature=0.1, reduction="mean", negative_mode="unpaired"):
        super().__init__()
        self.temperature = temperature
        self.reduction = reduction
        self.negative_mode = negative_mode

    def forward(self, query, positive_key, negative_keys=None):
        """The loss of query and positive_key, [N, D] each: float32, a scalar or [N]."""
        for name, rows in (("query", query), ("positive_key", positive_key)):
            arguments.check_rows(name, rows)
            if rows.ndim != 2:
                raise ValueError(f"{name} must be [N, D]; got {arguments.describe(rows)}")
        return info_nce(query, positive_key, negative_keys, self.temperature, self.reduction,
                        self.negative_mode)  # fmt: skip
