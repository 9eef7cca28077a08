"""What the tests of masking share: the backends that run here, mae's algorithm, gradients."""

import pytest
import torch

from sslops import registry
from sslops.ops.masking.cases import CASES

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
BACKENDS = [b for b in registry.OPS["random_masking"].backends if b != "cuda"]
COMPILED = [b for b in BACKENDS if b != "reference"]
by_name = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
by_backend = pytest.mark.parametrize("backend", BACKENDS)
compiled = pytest.mark.parametrize("backend", COMPILED)


def mae_random_masking(x, mask_ratio, noise):
    """The algorithm of facebookresearch/mae with a stable sort, written afresh."""
    B, L, D = x.shape
    n_keep = int(L * (1 - mask_ratio))
    ids_shuffle = torch.argsort(noise, dim=1, stable=True)
    ids_restore = torch.argsort(ids_shuffle, dim=1, stable=True)
    x_kept = torch.gather(x, 1, ids_shuffle[:, :n_keep, None].repeat(1, 1, D))
    mask = torch.ones(B, L)
    mask[:, :n_keep] = 0
    return x_kept, torch.gather(mask, 1, ids_restore), ids_restore


def mae_patchify(images, p):
    """[B, C, H, W] -> [B, L, p p C], pixel by pixel."""
    B, C, H, W = images.shape
    out = torch.empty(B, (H // p) * (W // p), p * p * C, dtype=images.dtype)
    for y in range(H):
        for x in range(W):
            first = ((y % p) * p + x % p) * C
            out[:, y // p * (W // p) + x // p, first : first + C] = images[:, :, y, x]
    return out


def gradients(function, tensors, seed=3):
    """The value and the gradients of all tensors under a random upstream gradient."""
    tensors = [t.detach().clone().requires_grad_() for t in tensors]
    value = function(*tensors)
    upstream = torch.randn(value.shape, generator=torch.Generator().manual_seed(seed))
    return value.detach(), *torch.autograd.grad(value, tensors, upstream.to(value))


def assert_same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
