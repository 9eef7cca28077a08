"""Masking in plain PyTorch: the specification. Any floating dtype, any device."""

import torch

# B samples, L tokens, P prefix tokens in front of them (always kept), K kept tokens, D width


def unsupported(*arguments):
    return None


def random_masking(x, noise, generator, n_keep, num_prefix_tokens):
    """Sort the tokens by noise and keep the first; equal noise keeps its order (MAE, section 3)."""
    B, L = x.shape[0], x.shape[1] - num_prefix_tokens
    if noise is None:
        noise = generator.uniform(B, L, device=x.device)
    ids_shuffle_BL = noise.argsort(dim=1, stable=True)
    ids_restore_BL = ids_shuffle_BL.argsort(dim=1)
    ids_keep_BK = ids_shuffle_BL[:, :n_keep].contiguous()
    mask_BL = (ids_restore_BL >= n_keep).float()
    return gather_tokens(x, ids_keep_BK, num_prefix_tokens), mask_BL, ids_restore_BL, ids_keep_BK


def gather_tokens(x, ids_keep, num_prefix_tokens):
    prefix, tokens = x[:, :num_prefix_tokens], x[:, num_prefix_tokens:]
    kept = tokens.gather(1, ids_keep[..., None].expand(-1, -1, x.shape[2]))
    return torch.cat([prefix, kept], dim=1)


def restore_tokens(x_kept, ids_restore, mask_token, pos_embed, num_prefix_tokens):
    """Kept tokens back in their places, the mask token in all others, plus positions."""
    (B, L), D = ids_restore.shape, x_kept.shape[2]
    x_kept = x_kept.to(mask_token.dtype)
    prefix, kept_BKD = x_kept[:, :num_prefix_tokens], x_kept[:, num_prefix_tokens:]
    n_masked = L - kept_BKD.shape[1]
    shuffled_BLD = torch.cat([kept_BKD, mask_token.expand(B, n_masked, D)], dim=1)
    tokens_BLD = shuffled_BLD.gather(1, ids_restore[..., None].expand(-1, -1, D))
    restored = torch.cat([prefix, tokens_BLD], dim=1)
    return restored if pos_embed is None else restored + pos_embed


def gather_patches(images, ids_keep, patch_size):
    """Patches flattened in the order row, column, channel (mae's patchify), kept ones only."""
    B, C, H, W = images.shape
    p = patch_size
    patches = images.reshape(B, C, H // p, p, W // p, p).permute(0, 2, 4, 3, 5, 1)
    patches_BLE = patches.reshape(B, (H // p) * (W // p), p * p * C)
    return gather_tokens(patches_BLE, ids_keep, 0)
