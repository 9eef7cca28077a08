"""Masking of tokens: which to keep, the kept ones, and back into their places.

What a backend of this folder receives, already checked (B samples, L tokens, D width, P prefix
tokens in front of the L tokens, K kept tokens):

    random_masking(x, noise, generator, n_keep, num_prefix_tokens)
        -> x_kept [B, P + K, D], mask [B, L], ids_restore [B, L], ids_keep [B, K]
    gather_tokens(x, ids_keep, num_prefix_tokens) -> [B, P + K, D]
    restore_tokens(x_kept, ids_restore, mask_token, pos_embed, num_prefix_tokens) -> [B, P + L, D]
    gather_patches(images, ids_keep, patch_size) -> [B, K, patch_size * patch_size * C]

    x            [B, P + L, D], floating
    noise        [B, L], float32, or None: then `generator` is a CounterGenerator
    ids_keep     [B, K], ids_restore [B, L], int64
    mask_token   [D], of the dtype of the result
    pos_embed    None, [1, P + L, D] or [B, P + L, D], of the dtype of the result
    images       [B, C, H, W], H and W multiples of patch_size

mask is 1 where a token is removed. All are differentiable in x, x_kept, images, mask_token and
pos_embed; mask and ids carry no gradient. Indices may be out of range; no backend follows them.
"""

from typing import NamedTuple

import torch

from sslops import registry
from sslops.arguments import check_choice
from sslops.ops.masking import checks, strategies

__all__ = [
    "MaskIds",
    "gather_patches",
    "gather_tokens",
    "random_masking",
    "restore_tokens",
    "sample_mask",
]

_BACKENDS = ("cuda", "cpu", "reference")
_random_masking, _gather_tokens, _restore_tokens, _gather_patches = (
    registry.load("masking", *_BACKENDS, function=name)
    for name in ("random_masking", "gather_tokens", "restore_tokens", "gather_patches")
)


class MaskIds(NamedTuple):
    """Which tokens a mask keeps, without the tokens.

    Attributes:
        ids_keep: [B, K], int64, the kept tokens in the order in which they are kept.
        ids_restore: [B, L], int64, the place of every token in the order kept, then removed.
        mask: [B, L], float32, 1 where a token is removed.
    """

    ids_keep: torch.Tensor
    ids_restore: torch.Tensor
    mask: torch.Tensor


def random_masking(x, mask_ratio, *, noise=None, generator=None, num_prefix_tokens=0, backend=None):
    """Keep a random subset of the tokens of every sample.

    With `noise = torch.rand(B, L)` and K = int(L * (1 - mask_ratio)) it equals, in one pass and
    without an index of the size of x,

        ids_shuffle = noise.argsort(dim=1, stable=True)
        ids_restore = ids_shuffle.argsort(dim=1)
        x_kept = x.gather(1, ids_shuffle[:, :K, None].expand(-1, -1, D))
        mask = (ids_restore >= K).float()

    Args:
        x: [B, num_prefix_tokens + L, D], any floating dtype.
        mask_ratio: the share of the L tokens that is removed, 0 <= mask_ratio < 1.
        noise: None, or [B, L] of float32, float16 or bfloat16; small noise is kept. Equal noise
            keeps the earlier token, a NaN counts as the largest.
        generator: None (torch's own), a torch.Generator on the device of x, or a
            sslops.CounterGenerator, which makes the mask a function of seed, step and sample.
        num_prefix_tokens: tokens in front of x that are always kept (a class token, registers).
        backend: force "cuda", "cpu" or "reference"; None takes the first that can run.

    Returns:
        (x_kept [B, num_prefix_tokens + K, D], mask [B, L] float32 with 1 = removed,
        ids_restore [B, L] int64).

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape, dtype, device or range.
        RuntimeError: the forced backend cannot run here.

    Source:
        He, Chen, Xie, Li, Dollár, Girshick, "Masked Autoencoders Are Scalable Vision Learners",
        CVPR 2022, section 3.

    Example:
        >>> import torch, sslops
        >>> x = torch.arange(4.0).reshape(1, 4, 1)
        >>> noise = torch.tensor([[0.9, 0.1, 0.5, 0.1]])
        >>> x_kept, mask, ids_restore = sslops.random_masking(x, 0.5, noise=noise)
        >>> print(x_kept.flatten().tolist(), mask.tolist(), ids_restore.tolist())
        [1.0, 3.0] [[1.0, 0.0, 1.0, 0.0]] [[3, 0, 2, 1]]
    """
    checks.check_tokens("x", x, num_prefix_tokens)
    B, L = x.shape[0], x.shape[1] - num_prefix_tokens
    n_keep = checks.count_kept(L, mask_ratio)
    noise, generator = checks.draw(noise, generator, B, L, x.device)
    outputs = _random_masking(backend, x, noise, generator, n_keep, num_prefix_tokens)
    return tuple(outputs[:3])


def sample_mask(
    batch,
    length,
    mask_ratio,
    *,
    noise=None,
    generator=None,
    device=None,
    strategy="random",
    backend=None,
):
    """Draw which tokens to keep, for tokens that are gathered later or not yet computed.

    With strategy "random" it equals the ids and the mask of `random_masking`. The other strategies
    are MAE's ablations on a square grid of tokens: "block" removes rectangles, "grid" keeps the
    upper left token of every cell of 2 x 2.

    Args:
        batch, length: B samples of L tokens.
        mask_ratio: the share of the tokens that is removed, 0 <= mask_ratio < 1; 0.75 for "grid".
        noise: as in `random_masking`; only for strategy "random".
        generator: as in `random_masking`; "grid" draws nothing.
        device: where the ids lie; None takes the device of noise, else of generator, else the CPU.
        strategy: "random", "block" or "grid".
        backend: force "cuda", "cpu" or "reference"; None takes the first that can run.

    Returns:
        MaskIds(ids_keep [B, K], ids_restore [B, L], mask [B, L]), K = int(L * (1 - mask_ratio)).

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape, dtype, device or range.
        RuntimeError: the forced backend cannot run here.

    Source:
        He et al., CVPR 2022, section 4.1 (mask sampling); the rectangles: Bao, Dong, Piao, Wei,
        "BEiT", ICLR 2022, algorithm 1, trimmed to an exact count.

    Example:
        >>> import torch, sslops
        >>> ids_keep, ids_restore, mask = sslops.sample_mask(1, 16, 0.75, strategy="grid")
        >>> print(ids_keep.tolist())
        [[0, 2, 8, 10]]
    """
    check_choice("strategy", strategy, ("random", "block", "grid"))
    for name, value in (("batch", batch), ("length", length)):
        checks.check_count(name, value)
    n_keep = checks.count_kept(length, mask_ratio)
    # Tokens of width 0: the sort alone.
    tokens = torch.empty(batch, length, 0, device=checks.device_of(device, noise, generator))
    if strategy == "random":
        noise, generator = checks.draw(noise, generator, batch, length, tokens.device)
    else:
        if noise is not None:
            raise ValueError(f'noise is for strategy "random"; got strategy {strategy!r}')
        n_remove = length - n_keep
        noise = strategies.scores(strategy, batch, length, n_remove, generator, tokens.device)
    _, mask, ids_restore, ids_keep = _random_masking(backend, tokens, noise, generator, n_keep, 0)
    return MaskIds(ids_keep, ids_restore, mask)


def gather_tokens(x, ids_keep, *, num_prefix_tokens=0, backend=None):
    """The tokens that ids name, behind the prefix tokens.

    It equals, for num_prefix_tokens = 0 and without the expanded index of its gradient,

        x.gather(1, ids_keep[:, :, None].expand(-1, -1, D))

    Args:
        x: [B, num_prefix_tokens + L, D], any floating dtype.
        ids_keep: [B, K], int64, each in [0, L), no two of a sample alike (`sample_mask`).
        num_prefix_tokens: tokens in front of x that are always kept; ids count from behind them.
        backend: force "cuda", "cpu" or "reference"; None takes the first that can run.

    Returns:
        [B, num_prefix_tokens + K, D]. On the GPU, where looking at the ids would wait for the
        device, an id out of range gives a row of NaN, and so does the gradient of a token named
        twice.

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape, dtype or device.
        IndexError: on the CPU, an id is out of range, or (in the gradient) named twice.
            In float64 an id out of range is a RuntimeError, torch's.

    Example:
        >>> import torch, sslops
        >>> x = torch.arange(4.0).reshape(1, 4, 1)
        >>> print(sslops.gather_tokens(x, torch.tensor([[3, 0]])).flatten().tolist())
        [3.0, 0.0]
    """
    checks.check_tokens("x", x, num_prefix_tokens)
    checks.check_ids("ids_keep", ids_keep, len(x), x.device)
    return _gather_tokens(backend, x, ids_keep, num_prefix_tokens)


def gather_patches(images, ids_keep, patch_size, *, backend=None):
    """The patches of images that ids name, flattened in mae's order (row, column, channel).

    Before the patch embedding this saves embedding the patches that are removed. With
    `mae.patchify` it equals `gather_tokens(patchify(images), ids_keep)`.

    Args:
        images: [B, C, H, W], any floating dtype, any strides (channels_last is not copied).
        ids_keep: [B, K], int64, each in [0, H / patch_size * W / patch_size), no two alike.
        patch_size: int that divides H and W.
        backend: force "cuda", "cpu" or "reference"; None takes the first that can run.

    Returns:
        [B, K, patch_size * patch_size * C]. Ids out of range: see `gather_tokens`.

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape, dtype or device.
        IndexError: on the CPU, an id is out of range, or (in the gradient) named twice.
            In float64 an id out of range is a RuntimeError, torch's.

    Example:
        >>> import torch, sslops
        >>> images = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> print(sslops.gather_patches(images, torch.tensor([[1]]), 2).tolist())
        [[[2.0, 3.0, 6.0, 7.0]]]
    """
    checks.check_images(images, patch_size)
    checks.check_ids("ids_keep", ids_keep, len(images), images.device)
    return _gather_patches(backend, images, ids_keep, patch_size)


def restore_tokens(
    x_kept, ids_restore, mask_token, pos_embed=None, *, num_prefix_tokens=0, backend=None
):
    """Kept tokens back in their places, the mask token in the others, plus positions: one pass.

    For num_prefix_tokens = 0 it equals (MAE's decoder input)

        tokens = torch.cat([x_kept, mask_token.expand(B, L - K, D)], dim=1)
        tokens.gather(1, ids_restore[:, :, None].expand(-1, -1, D)) + pos_embed

    Args:
        x_kept: [B, num_prefix_tokens + K, D], any floating dtype.
        ids_restore: [B, L], int64, each in [0, L), a permutation per sample; places from K on
            get the mask token.
        mask_token: [D] or [1, 1, D], any floating dtype.
        pos_embed: None, or [1, num_prefix_tokens + L, D] or [B, num_prefix_tokens + L, D].
        num_prefix_tokens: tokens in front of x_kept that are passed through.
        backend: force "cuda", "cpu" or "reference"; None takes the first that can run.

    Returns:
        [B, num_prefix_tokens + L, D] in the dtype to which torch promotes the three tensors.
        Differentiable in all three. Ids out of range: see `gather_tokens`.

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape, dtype or device.
        IndexError: on the CPU, an id is out of range, or (in the gradient) named twice.
            In float64 an id out of range is a RuntimeError, torch's.

    Source:
        He et al., CVPR 2022, section 3 (MAE decoder).

    Example:
        >>> import torch, sslops
        >>> x_kept, ids_restore = torch.tensor([[[5.0]]]), torch.tensor([[1, 0, 2]])
        >>> print(sslops.restore_tokens(x_kept, ids_restore, torch.zeros(1)).flatten().tolist())
        [0.0, 5.0, 0.0]
    """
    checks.check_tokens("x_kept", x_kept, num_prefix_tokens)
    checks.check_ids("ids_restore", ids_restore, len(x_kept), x_kept.device)
    (B, L), D = ids_restore.shape, x_kept.shape[2]
    checks.check_kept(x_kept, num_prefix_tokens, L)
    checks.check_like("mask_token", mask_token, x_kept, ((D,), (1, 1, D)))
    dtype = torch.promote_types(x_kept.dtype, mask_token.dtype)
    if pos_embed is not None:
        P = num_prefix_tokens
        checks.check_like("pos_embed", pos_embed, x_kept, ((1, P + L, D), (B, P + L, D)))
        dtype = torch.promote_types(dtype, pos_embed.dtype)
        pos_embed = pos_embed.to(dtype)
    mask_token = mask_token.reshape(D).to(dtype)
    return _restore_tokens(backend, x_kept, ids_restore, mask_token, pos_embed, num_prefix_tokens)
