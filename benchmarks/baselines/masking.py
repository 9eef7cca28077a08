"""What people run for masking today, and the bare copies as the floor.

The op is a folder of functions: a case says which one is measured (`case.function`).
"""

import sys

import torch

import sslops
from benchmarks.measure import Variant, peer


def mae_random_masking(x, noise, mask_ratio):
    """The published algorithm of facebookresearch/mae, written afresh."""
    B, L, D = x.shape
    n_keep = int(L * (1 - mask_ratio))
    ids_shuffle = torch.argsort(noise, dim=1)
    ids_restore = torch.argsort(ids_shuffle, dim=1)
    ids_keep = ids_shuffle[:, :n_keep]
    x_kept = torch.gather(x, 1, ids_keep.unsqueeze(-1).repeat(1, 1, D))
    mask = torch.ones(B, L, device=x.device)
    mask[:, :n_keep] = 0
    return x_kept, torch.gather(mask, 1, ids_restore), ids_restore


def mae_with_expand(x, noise, mask_ratio):
    """The same with an index that is not repeated in memory."""
    n_keep = int(x.shape[1] * (1 - mask_ratio))
    ids_shuffle = torch.argsort(noise, dim=1)
    ids_restore = torch.argsort(ids_shuffle, dim=1)
    x_kept = x.gather(1, ids_shuffle[:, :n_keep, None].expand(-1, -1, x.shape[2]))
    return x_kept, (ids_restore >= n_keep).to(x), ids_restore


def mae_restore(x_kept, ids_restore, mask_token, pos_embed):
    """The input of the published decoder: cat with mask tokens, gather, add positions."""
    B, L, D = len(x_kept), ids_restore.shape[1], x_kept.shape[2]
    tokens = torch.cat([x_kept, mask_token.repeat(B, L - x_kept.shape[1], 1)], dim=1)
    return torch.gather(tokens, 1, ids_restore.unsqueeze(-1).repeat(1, 1, D)) + pos_embed


def ours(op, backend, case):
    return Variant("sslops", functions(case, backend)[0])


def functions(case, backend=None):
    """Ours and the published one, each of the tensors that case.inputs() returns."""
    if case.function == "random_masking":

        def own(x, noise):
            return sslops.random_masking(x, case.mask_ratio, noise=noise, backend=backend)[0]

        return own, lambda x, noise: mae_random_masking(x, noise, case.mask_ratio)[0]

    def own(x_kept, mask_token, pos_embed, ids_restore):
        return sslops.restore_tokens(x_kept, ids_restore, mask_token, pos_embed, backend=backend)

    def published(x_kept, mask_token, pos_embed, ids_restore):
        return mae_restore(x_kept, ids_restore, mask_token.view(1, 1, -1), pos_embed)

    return own, published


def patch_dropout(case):
    def make():
        from timm.layers import PatchDropout

        layer = PatchDropout(case.mask_ratio, num_prefix_tokens=0)
        return lambda x, noise: layer(x)

    return peer("timm PatchDropout (no ids_restore)", make, same_loss=False)


def floor(case, device, dtype):
    """Into memory that is there already: the kept rows copied, the gradient written."""
    kept = torch.empty(case.B, case.K, case.D, device=device, dtype=dtype)
    tokens = torch.empty(case.B, case.L, case.D, device=device, dtype=dtype)

    def copies(*_):
        if case.function == "random_masking":
            kept.copy_(tokens[:, : case.K])
            tokens[:, : case.K] = kept
            tokens[:, case.K :] = 0
        else:
            tokens[:, : case.K] = kept
            tokens[:, case.K :] = 0
            kept.copy_(tokens[:, : case.K])
            torch.sum(tokens, 0)

    return Variant("bare copies", copies)


def baselines(case, device, dtype):
    """The floor first, then the published code, then the other peers."""
    _, published = functions(case)
    variants = [floor(case, device, dtype), Variant("facebookresearch/mae", published)]
    if case.function == "random_masking":
        variants += [
            Variant("mae with expand", lambda x, n: mae_with_expand(x, n, case.mask_ratio)[0]),
            patch_dropout(case),
        ]
    return [*variants, Variant("torch.compile of mae", torch.compile(published))]


def check(op, backend, own, published, case, device, dtype):
    """Stop unless values equal mae's exactly, and gradients up to the rounding of their sums."""
    tensors, _ = case.inputs(device, dtype)
    if case.function == "random_masking":  # without ties, which mae orders as it happens
        tensors[1] = tensors[1].argsort(dim=1).argsort(dim=1) / case.L
    wanted = [t for t in tensors if t.requires_grad]
    results = []
    for variant in (own, published):
        out = variant.loss(*tensors)
        upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
        results.append((out, *torch.autograd.grad(out, wanted, upstream)))
    for name, a, b in zip(("values", "gradient of rows"), *results, strict=False):
        if not torch.equal(a, b):
            sys.exit(f"wrong: {name} differ from those of mae; no speed is measured")
    for a, b in zip(*(r[2:] for r in results), strict=True):
        error = ((a - b).abs().max() / b.abs().max()).item()
        if not error < 64 * torch.finfo(dtype).eps:
            sys.exit(f"wrong: a summed gradient is {error:.1e} away; no speed is measured")
    print("correct: values and gradients of rows equal those of mae bit for bit")
