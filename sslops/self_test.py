"""Every op once, on this machine, by the backend that is taken here: do its numbers agree?

Small inputs, values and gradients against the specification in float64: seconds, not a test suite.
"""

import math
import sys
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import sslops
from sslops.ops.logit_blocks import block_gradients, block_statistics
from sslops.registry import default_device

# Largest error in float32, relative to the largest value or gradient; the tests allow less.
ALLOWED = 1e-3


@dataclass
class Result:
    """What became of one op."""

    op: str
    error: float  # largest relative error of values and gradients; inf for nan, or where it raised
    message: str = ""  # of the error that it raised

    @property
    def is_right(self):
        return self.error <= ALLOWED


def self_test(device=None):
    """Run every op against its specification.

    Args:
        device: "cpu" or "cuda"; None takes CUDA where there is one.

    Returns:
        A list of Result, one per op. An op that raises has an error of inf and the message.

    Example:
        >>> all(result.is_right for result in self_test("cpu"))
        True
    """
    device = device or default_device()
    return [run(name, make, device) for name, make in CALLS.items()]


def run(name, make, device):
    """One op as it is used, beside the specification."""
    generator = torch.Generator().manual_seed(0)
    call, tensors = make(lambda *shape: torch.randn(*shape, generator=generator))
    try:
        ours = outcome(lambda *x: call(*x, None), [t.to(device) for t in tensors])
    except failures() as error:  # evaluated only once something was raised
        return Result(name, float("inf"), (str(error) or type(error).__name__).splitlines()[0])
    exact = outcome(lambda *x: call(*x, "reference"), [t.double() for t in tensors])
    pairs = zip(ours, exact, strict=True)
    return Result(name, max(relative_error(own.cpu().double(), wanted) for own, wanted in pairs))


def failures():
    """What an op raises where its kernel cannot be built, loaded or launched."""
    triton = sys.modules.get("triton.errors")
    return (RuntimeError, OSError, ImportError, *([triton.TritonError] if triton else []))


def outcome(call, tensors):
    """The values of a call and the gradients of all inputs, for a fixed upstream gradient."""
    tensors = [t.detach().requires_grad_() for t in tensors]
    value = call(*tensors)
    if not value.requires_grad:
        return [value]
    return [value.detach(), *torch.autograd.grad(value, tensors, torch.ones_like(value))]


def relative_error(own, wanted):
    error = ((own - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12)).item()
    return float("inf") if math.isnan(error) else error  # `max` would pass over a nan


def info_nce(draw):
    return lambda q, k, backend: sslops.info_nce(q, k, backend=backend), [
        draw(65, 24),
        draw(65, 24),
    ]


def nt_xent(draw):
    return lambda a, b, backend: sslops.nt_xent(a, b, backend=backend), [draw(33, 24), draw(33, 24)]


def masking(draw):
    noise, ids = draw(2, 16), torch.stack([torch.arange(16).roll(3), torch.arange(16).flip(0)])

    def call(x, token, backend):
        kept, _, restore = sslops.random_masking(x, 0.75, noise=noise.to(x.device), backend=backend)
        back = sslops.restore_tokens(kept, restore, token, backend=backend)
        return back + sslops.gather_tokens(x, ids.to(x.device), backend=backend)

    return call, [draw(2, 16, 24), draw(24)]


def gather_patches(draw):
    ids = torch.tensor([[5, 0, 9], [1, 15, 2]])
    return (
        lambda x, backend: sslops.gather_patches(x, ids.to(x.device), 4, backend=backend),
        [draw(2, 3, 16, 16)],
    )


def key_queue(draw):
    def call(first, second, backend):
        first, second = first.detach(), second.detach()
        if backend == "reference":  # the ring by hand: the second batch wraps after two keys
            rows = F.normalize(torch.cat([first, second]), dim=1)
            return torch.cat([rows[5:], rows[2:5]])
        queue = sslops.KeyQueue(5, 24).to(first.device)
        queue.enqueue_(first)
        queue.enqueue_(second)
        return queue.keys

    return call, [draw(3, 24), draw(4, 24)]


def color_attention(draw):
    return (
        lambda f, g, v, backend: sslops.color_attention(
            f, g, v, grid=(5, 6), radius=2, topk=4, backend=backend
        ),
        [draw(1, 30, 16), draw(1, 60, 16), draw(1, 60, 3)],
    )


def color_attention_loss(draw):
    labels = torch.arange(90) % 7

    def call(f, g, backend):
        colors = labels[None, :30].to(f.device), labels[None, 30:].to(f.device)
        return sslops.color_attention_loss(f, g, *colors, backend=backend)

    return call, [draw(1, 30, 16), draw(1, 60, 16)]


def dino_loss(draw):
    teacher, center = draw(2, 9, 40), draw(40)
    options = dict(teacher_temperature=0.04)
    return (
        lambda s, backend: sslops.dino_loss(
            s, teacher.to(s), center=center.to(s), backend=backend, **options
        ),
        [draw(4, 9, 40)],
    )


def sinkhorn_knopp(draw):
    return (
        lambda x, backend: sslops.sinkhorn_knopp(x.detach(), 0.07, backend=backend),
        [draw(12, 40)],
    )


def koleo(draw):
    return lambda x, backend: sslops.koleo(x, backend=backend), [draw(20, 24)]


def augment(draw):
    spec = sslops.ViewSpec(size=12, blur=0.5)
    images = (60 * draw(8, 3, 20, 16) + 128).clamp(0, 255).to(torch.uint8)
    drawn = sslops.sample_parameters(spec, 0, 0, torch.arange(8), height=20, width=16)

    def call(like, backend):  # an empty tensor says on what device and of what dtype
        return sslops.augment(images.to(like.device), drawn, spec.size, blur_kernel=5,
                              dtype=like.dtype, backend=backend)  # fmt: skip

    return call, [draw(0)]


def logit_blocks(draw):
    def call(q, k, backend):
        q, k, T = q.detach(), k.detach(), q.new_tensor(0.2)
        options = dict(normalize=True, positive_at=torch.arange(9, device=q.device))
        found = block_statistics(backend, q, k, T, columns=True, **options)
        sums = [torch.cat([x, torch.ones_like(x[..., :1])], -1) for x in found[:2]]
        gradients = block_gradients(backend, q, k, T, *sums, **options)
        return torch.cat([x.flatten() for x in (*found[:3], *gradients)])

    return call, [draw(1, 9, 24), draw(1, 13, 24)]


CALLS = {
    function.__name__: function
    for function in (
        info_nce, nt_xent, masking, gather_patches, key_queue, color_attention,
        color_attention_loss, dino_loss, sinkhorn_knopp, koleo, augment, logit_blocks,
    )
}  # fmt: skip
