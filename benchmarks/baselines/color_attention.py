"""What people run for colour attention today, and the bare matrix products as the floor.

A case with `classes` is color_attention_loss, the others are color_attention. Every variant takes
the tensors that want gradients; labels and other options come from the case.
"""

import functools

import torch
import torch.nn.functional as F
from torch.nn.attention import flex_attention as flex

import sslops
from benchmarks.measure import Variant, peer

EPSILON = 1e-8


def ours(op, backend, case):
    function = getattr(sslops, case.op)
    options = functools.cache(lambda device: case.inputs(device)[1])

    def call(*tensors):
        return function(*tensors, **options(tensors[0].device), backend=backend)

    return Variant("sslops", call)


def form(case):
    """The key of data/floors.json; None for a window or top-k, whose work it does not count."""
    return None if {"radius", "topk"} & case.options.keys() else case.op


def in_window(case, device):
    """bool [Nt, Nr], or None where every reference cell is a candidate."""
    radius = case.options.get("radius")
    if radius is None:
        return None
    radii = [radius] * case.frames if isinstance(radius, int) else radius
    y, x = torch.meshgrid(*(torch.arange(n, device=device) for n in case.grid), indexing="ij")
    y, x = y.flatten(), x.flatten()
    distance = torch.maximum((y[:, None] - y).abs(), (x[:, None] - x).abs())
    return torch.cat([distance <= (max(case.grid) if r is None else r) for r in radii], dim=1)


def as_loss(case, device, attend):
    """The op of the case from any attention with values: copies of one-hot colours for labels."""
    if case.classes is None:
        return attend
    labels = case.inputs(device)[1]

    def loss(target, reference):
        one_hot = F.one_hot(labels["reference_labels"], case.classes).to(target.dtype)
        p = attend(target, reference, one_hot).float()
        return F.nll_loss(torch.log(p + EPSILON).mT, labels["target_labels"])

    return loss


def full_matrix(case, device):
    """The published way: scores, mask, top-k and softmax each of size Nt x Nr, in memory."""
    keep, temperature = in_window(case, device), case.options.get("temperature", 1.0)
    topk = case.options.get("topk")

    def attend(target, reference, values):
        scores = target @ reference.mT / temperature
        if keep is not None:
            scores = scores.masked_fill(~keep, -torch.inf)
        if topk is None:
            return scores.softmax(-1) @ values
        best, index = scores.topk(topk)
        copied = values.gather(1, index.flatten(1)[..., None].expand(-1, -1, values.shape[2]))
        copied = copied.view(*index.shape, -1)
        return (best.softmax(-1)[..., None] * copied).sum(2)

    return as_loss(case, device, attend)


def padded(case, device):
    """scaled_dot_product_attention: its fast kernels want values as wide as the embeddings."""
    name = "SDPA, values padded"
    if case.options.get("topk"):
        return Variant(name, absent="it has no top-k")
    keep, scale = in_window(case, device), 1 / case.options.get("temperature", 1.0)

    def attend(target, reference, values):
        C = values.shape[2]
        values = F.pad(values, (0, case.D - C))[:, None]
        out = F.scaled_dot_product_attention(
            target[:, None], reference[:, None], values, attn_mask=keep, scale=scale
        )
        return out[:, 0, :, :C]

    return Variant(name, as_loss(case, device, attend))


def compiled_flex(case, device):
    name = "flex_attention"
    if case.options.get("topk"):
        return Variant(name, absent="it has no top-k")
    if device == "cpu":
        return Variant(name, absent="it has no backward on a CPU")
    keep, scale = in_window(case, device), 1 / case.options.get("temperature", 1.0)
    mask = None
    if keep is not None:
        mask = flex.create_block_mask(
            lambda b, h, i, j: keep[i, j], None, None, *keep.shape, device
        )
    attention = torch.compile(flex.flex_attention)

    def attend(target, reference, values):
        C = values.shape[2]
        values = F.pad(values, (0, max(16, 1 << (C - 1).bit_length()) - C))[:, None]
        out = attention(target[:, None], reference[:, None], values, block_mask=mask, scale=scale)
        return out[:, 0, :, :C]

    return Variant(name, as_loss(case, device, attend))


def flash_attention_4(case, dtype):
    """It takes values of another width than the embeddings; no window of our kind, no top-k."""
    name = "FlashAttention-4, narrow values"
    if {"radius", "topk"} & case.options.keys():
        return Variant(name, absent="it has neither this window nor top-k")
    if dtype == torch.float32:
        return Variant(name, absent="it takes bfloat16 and float16 alone")

    def make():
        from flash_attn.cute import flash_attn_func

        scale = 1 / case.options.get("temperature", 1.0)

        def attend(target, reference, values):
            C = values.shape[2]
            values = F.pad(values, (0, -C % 8))[:, :, None]  # whole vectors of 16 bytes
            heads = target[:, :, None], reference[:, :, None]
            out = flash_attn_func(*heads, values, softmax_scale=scale)
            out = out[0] if isinstance(out, tuple) else out  # some versions return the LSE too
            return out[:, :, 0, :C]

        return as_loss(case, "cuda", attend)

    return peer(name, make)


def floor(case, device, dtype):
    """The products of forward and backward over all cells, with nothing between them."""
    (Nt, Nr), D, C = case.cells, case.D, case.C
    f, g, v, dout = (
        torch.randn(shape, device=device, dtype=dtype)
        for shape in ((Nt, D), (Nr, D), (Nr, C), (Nt, C))
    )
    scores, df, dg = f.new_empty(Nt, Nr), torch.empty_like(f), torch.empty_like(g)
    out, dv = torch.empty_like(dout), torch.empty_like(v)

    def products(*_):
        for _ in range(case.B):
            torch.mm(f, g.T, out=scores)
            if case.classes is None:
                torch.mm(scores, v, out=out)
                torch.mm(scores.T, dout, out=dv)
                torch.mm(dout, v.T, out=scores)
            torch.mm(scores, g, out=df)
            torch.mm(scores.T, f, out=dg)

    return Variant("bare products, no window", products)


def baselines(case, device, dtype):
    """The floor first, then the peers that compute this case."""
    plain = full_matrix(case, device)
    return [
        floor(case, device, dtype),
        Variant("eager PyTorch", plain),
        Variant("torch.compile", torch.compile(plain)),
        padded(case, device),
        compiled_flex(case, device),
        flash_attention_4(case, dtype),
    ]
