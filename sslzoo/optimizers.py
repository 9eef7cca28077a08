"""Optimizers by name, which parameters they decay, and LARS."""

import torch

from sslzoo import sharding


def parameter_groups(module, weight_decay):
    """Split trainable parameters: matrices and kernels decay, biases and norms do not.

    Tensors of one dimension (biases, scales of norms) get no weight decay, and under LARS no
    adaptation either ("adapt": False).
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    return [
        {
            "params": [p for p in parameters if p.ndim > 1],
            "weight_decay": weight_decay,
            "adapt": True,
        },
        {
            "params": [p for p in parameters if p.ndim <= 1],
            "weight_decay": 0.0,
            "adapt": False,
        },
    ]


def of_run(method, config, lr):
    """The optimizer of a method: its own groups, or those of `parameter_groups`.

    Args:
        method: a method's nn.Module.
        config: sslzoo.training_config.TrainingConfig.
        lr: learning rate.
    """
    if hasattr(method, "parameter_groups"):
        groups = method.parameter_groups(config.weight_decay)
    else:
        groups = parameter_groups(method, config.weight_decay)
    return build(config.optimizer, groups, lr=lr, momentum=config.momentum,
                 nesterov=config.nesterov, betas=config.betas)  # fmt: skip


def build(name, groups, *, lr, momentum=0.9, nesterov=False, betas=(0.9, 0.999)):
    """The optimizer `name` ("sgd", "adamw" or "lars") over parameter groups."""
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=tuple(betas))
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov)
    if name == "lars":
        return LARS(groups, lr=lr, momentum=momentum)
    raise ValueError(f"optimizer must be sgd, adamw or lars; got {name!r}")


class LARS(torch.optim.Optimizer):
    """Momentum SGD whose step on each tensor is proportional to the tensor's norm.

    For a tensor w with gradient g, in a group with "adapt": True,

        g <- g + weight_decay w
        g <- g trust ||w|| / ||g||        where both norms are above 0
        v <- momentum v + g
        w <- w - lr v

    A group with "adapt": False skips the second line (biases and norms; see parameter_groups).
    google-research/simclr multiplies by lr before the momentum instead of after it; the two agree
    as long as lr is constant.

    Args:
        params: parameters or groups.
        lr: learning rate.
        momentum: factor of the momentum buffer, 0 to 1.
        weight_decay: factor of the decay, for groups without their own.
        trust: length of a step relative to the tensor's norm, at lr 1.

    Source:
        You, Gitman, Ginsburg, "Large Batch Training of Convolutional Networks", 2017, algorithm 1;
        the exclusions: Chen et al., SimCLR, 2020, appendix B.6.

    Example:
        >>> import torch
        >>> w = torch.tensor([[3.0, 4.0]], requires_grad=True)
        >>> w.grad = torch.tensor([[0.0, 2.0]])
        >>> LARS([w], lr=1.0, trust=0.1).step()
        >>> w.detach()  # the step has a tenth of the length of w
        tensor([[3.0000, 3.5000]])
    """

    def __init__(self, params, lr, *, momentum=0.9, weight_decay=0.0, trust=0.001):
        defaults = dict(lr=lr, momentum=momentum, weight_decay=weight_decay, trust=trust)
        super().__init__(params, {**defaults, "adapt": True})

    @torch.no_grad()
    def step(self, closure=None):
        """One step; `closure`, if given, recomputes and returns the loss."""
        with torch.enable_grad():
            loss = closure() if closure is not None else None
        for group in self.param_groups:
            weights = [w for w in group["params"] if w.grad is not None]
            if weights:
                self._step_group(weights, group)
        return loss

    def _step_group(self, weights, group):
        parts = sharding.local(weights)
        gradients = [w.grad for w in weights]
        if group["weight_decay"]:
            gradients = torch._foreach_add(gradients, weights, alpha=group["weight_decay"])
        if group["adapt"]:
            w_norm, g_norm = sharding.norms(weights), sharding.norms(gradients)
            ratio = group["trust"] * w_norm / g_norm
            ratio = torch.where((w_norm > 0) & (g_norm > 0), ratio, 1.0)
            gradients = torch._foreach_mul(sharding.local(gradients), ratio.unbind())
        for w in weights:
            if "momentum_buffer" not in self.state[w]:
                self.state[w]["momentum_buffer"] = torch.zeros_like(w)
        v = sharding.local(self.state[w]["momentum_buffer"] for w in weights)
        torch._foreach_mul_(v, group["momentum"])
        torch._foreach_add_(v, sharding.local(gradients))
        torch._foreach_add_(parts, v, alpha=-group["lr"])
