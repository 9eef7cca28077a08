"""Where an encoder looks: attention of a vision transformer's heads, or activation of maps."""

import torch

from sslzoo.backbones import dense_features
from sslzoo.data import DataError

MASS = 0.6  # of the attention that a mask keeps


@torch.no_grad()
def attention_weights(model, x, block=-1):
    """Attention of a block of timm's vision transformer, [B, heads, N, N]; each row sums to 1.

    `softmax(q k^T / sqrt(d))`, computed anew from what the block's attention was given, because
    fused kernels do not return it. What the weights give is compared with what the block gave.

    Args:
        model: vision transformer, in eval mode.
        x: images [B, C, S, S].
        block: number of the block.

    Raises:
        DataError: the model has no such blocks, or their attention is not the plain one.
    """
    attn = getattr(model.blocks[block], "attn", None) if hasattr(model, "blocks") else None
    if not all(hasattr(attn, name) for name in ("qkv", "num_heads", "proj")):
        raise DataError(f"{type(model).__name__} has no attention heads that can be read")
    seen = []
    handle = attn.register_forward_hook(lambda m, inputs, out: seen.append((inputs[0], out)))
    try:
        model(x)
    finally:
        handle.remove()
    (tokens, output), norms = (
        seen[0],
        (getattr(attn, "q_norm", None), getattr(attn, "k_norm", None)),
    )
    B, N, _ = tokens.shape
    q, k, v = attn.qkv(tokens).reshape(B, N, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    q, k = (norm(t) if norm is not None else t for norm, t in zip(norms, (q, k), strict=True))
    weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
    again = attn.proj((weights @ v).transpose(1, 2).reshape(B, N, -1))
    if again.shape != output.shape or not torch.allclose(again, output, rtol=1e-3, atol=1e-4):
        raise DataError(f"the attention of {type(model).__name__} is not q k^T / sqrt(d) alone")
    return weights


def head_maps(model, x, block=-1):
    """Attention of the class token to the patches, [B, heads, h, w]; each map sums to 1.

    Class token and registers are left out and the rest is divided by its sum. Without a class
    token, the mean over the patches' attention.
    """
    weights, prefix = attention_weights(model, x, block), getattr(model, "num_prefix_tokens", 0)
    has_class = getattr(model, "cls_token", None) is not None
    rows = weights[:, :, 0] if has_class else weights[:, :, prefix:].mean(2)
    rows = rows[..., prefix:]
    rows = rows / rows.sum(-1, keepdim=True)
    (H, W), (p, q) = x.shape[-2:], model.patch_embed.patch_size
    return rows.unflatten(-1, (H // p, W // q))


@torch.no_grad()
def activation_map(model, x, layer=None):
    """Mean over channels of a map, negative values as 0: [B, 1, h, w], which sums to 1."""
    maps = dense_features(model, x, layer).float().mean(1, keepdim=True).clamp(min=0)
    total = maps.sum((2, 3), keepdim=True)
    flat = torch.full_like(maps, 1 / maps[0].numel())
    return torch.where(total > 0, maps / total.clamp(min=1e-30), flat)


def top_mass(maps, mass=MASS):
    """The least set of cells that holds this share of each map, bool, the shape of the maps.

    Args:
        maps: [..., h, w], not negative.
        mass: 0 to 1.

    Source:
        Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", 2021, figure 4.

    Example:
        >>> import torch
        >>> top_mass(torch.tensor([[[0.1, 0.2], [0.3, 0.4]]]), 0.6).tolist()
        [[[False, False], [True, True]]]
    """
    flat = maps.double().flatten(-2)
    ordered, order = flat.sort(dim=-1)
    share = ordered.cumsum(-1) / ordered.sum(-1, keepdim=True)
    kept = share > 1 - mass + 1e-12
    return torch.zeros_like(kept).scatter_(-1, order, kept).unflatten(-1, maps.shape[-2:])


def jaccard(found, truth, counted=None):
    """Intersection over union of masks bool [..., H, W] with one, bool [H, W]; 1 where both are
    empty.

    Args:
        counted: pixels that count, bool [H, W]; None is all.

    Example:
        >>> import torch
        >>> jaccard(torch.tensor([[True, True]]), torch.tensor([[True, False]])).item()
        0.5
    """
    counted = torch.ones_like(truth) if counted is None else counted
    both, either = ((m & counted).sum((-2, -1)).double() for m in (found & truth, found | truth))
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)


def enlarge(maps, size):
    """Nearest cell of each pixel: [..., h, w] to [..., S, S]."""
    rows, columns = (torch.arange(size) * n // size for n in maps.shape[-2:])
    return maps[..., rows, :][..., columns]
