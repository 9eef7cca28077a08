"""gather_patches: every backend against mae's patchify, pixel by pixel."""

import pytest
import torch
from masking_helpers import assert_same, by_backend, by_dtype, compiled, gradients, mae_patchify

import sslops

IMAGES = [(2, 3, 8, 8, 4), (1, 3, 6, 10, 2), (2, 1, 4, 4, 1), (1, 4, 28, 14, 14), (2, 3, 32, 16, 8)]


@by_backend
@by_dtype
@pytest.mark.parametrize("B, C, H, W, p", IMAGES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gather_patches_is_the_patchify_of_mae(B, C, H, W, p, layout, dtype, backend):
    images = torch.randn(B, C, H, W).to(dtype).contiguous(memory_format=layout)
    L = (H // p) * (W // p)
    ids_keep = torch.rand(B, L).argsort(dim=1)[:, : max(1, L // 4)]
    expected = mae_patchify(images, p).gather(1, ids_keep[..., None].expand(-1, -1, p * p * C))
    assert torch.equal(sslops.gather_patches(images, ids_keep, p, backend=backend), expected)


@compiled
@by_dtype
@pytest.mark.parametrize("B, C, H, W, p", IMAGES)
def test_gather_patches_agrees_with_the_reference_exactly(B, C, H, W, p, dtype, backend):
    images = torch.randn(B, C, H, W).to(dtype)
    ids_keep = torch.rand(B, (H // p) * (W // p)).argsort(dim=1)[:, : H // p]

    def run(backend):
        gather = lambda x: sslops.gather_patches(x, ids_keep, p, backend=backend)  # noqa: E731
        return gradients(gather, [images])

    assert_same(run(backend), run("reference"))


@by_backend
def test_patches_before_the_embedding_equal_tokens_after_it(backend):
    images, p = torch.randn(2, 3, 8, 8), 4
    ids_keep = sslops.sample_mask(2, 4, 0.5).ids_keep
    embed = torch.nn.Conv2d(3, 5, p, stride=p)
    tokens = embed(images).flatten(2).mT
    weight = embed.weight.permute(0, 2, 3, 1).reshape(5, -1)  # row, column, channel
    patches = sslops.gather_patches(images, ids_keep, p, backend=backend)
    ours = torch.nn.functional.linear(patches, weight, embed.bias)
    torch.testing.assert_close(ours, sslops.gather_tokens(tokens, ids_keep, backend=backend))
