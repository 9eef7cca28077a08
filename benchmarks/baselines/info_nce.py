"""What people run for InfoNCE today, and the bare matrix products as the floor."""

import torch
import torch.nn.functional as F

from benchmarks.measure import Variant, peer

TEMPERATURE = 0.1


def form(case):
    """The key of data/floors.json."""
    if case.negatives is not None:
        return "info_nce queue"
    return "info_nce symmetric" if case.options.get("symmetric") else "info_nce one-directional"


def unit(x):
    return F.normalize(x, dim=-1)


def diagonal(x):
    return torch.arange(len(x), device=x.device)


def eager(q, k, negatives=None):
    q, k = unit(q), unit(k)
    if negatives is None:
        return F.cross_entropy(q @ k.T / TEMPERATURE, diagonal(q))
    positive = (q * k).sum(-1, keepdim=True)
    logits = torch.cat([positive, q @ unit(negatives).T], dim=-1) / TEMPERATURE
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long, device=q.device))


def eager_symmetric(q, k):
    logits = unit(q) @ unit(k).T / TEMPERATURE
    return (F.cross_entropy(logits, diagonal(q)) + F.cross_entropy(logits.T, diagonal(q))) / 2


def part(case, rows, q, k, negatives=None):
    """The share of some rows in the loss: what eager code can do at any size, piece by piece."""
    if case.options.get("symmetric"):
        return (one_sided_part(rows, q, k) + one_sided_part(rows, k, q)) / 2
    if negatives is not None:
        return eager(q[rows], k[rows], negatives) * (len(q[rows]) / len(q))
    return one_sided_part(rows, q, k)


def one_sided_part(rows, q, k):
    logits = unit(q[rows]) @ unit(k).T / TEMPERATURE
    return F.cross_entropy(logits, diagonal(q)[rows], reduction="sum") / len(q)


def moco(case):
    """The published loss of facebookresearch/moco, written afresh: the queue lies in columns and
    holds unit rows, so nothing of it is normalised again."""
    columns = {}

    def run(q, k, negatives):
        key = negatives.data_ptr()
        if key not in columns:
            columns[key] = unit(negatives).T.contiguous()
        q, k = unit(q), unit(k)
        positive = torch.einsum("nc,nc->n", q, k).unsqueeze(-1)
        negative = torch.einsum("nc,ck->nk", q, columns[key])
        logits = torch.cat([positive, negative], dim=1) / TEMPERATURE
        target = torch.zeros(len(q), dtype=torch.long, device=q.device)
        return F.cross_entropy(logits, target)

    return Variant("facebookresearch/moco", run, needs_bytes=12 * case.logits)


def lightly_bank(case, device):
    def make():
        from lightly.loss import NTXentLoss

        loss = NTXentLoss(TEMPERATURE, memory_bank_size=(case.M, case.D)).to(device)
        return lambda q, k, negatives: loss(q, k)

    return peer("lightly NTXentLoss (own bank, enqueues too)", make, same_loss=False)


def info_nce_pytorch(case):
    def make():
        from info_nce import InfoNCE

        return InfoNCE(temperature=TEMPERATURE)

    return peer("info-nce-pytorch", make, needs_bytes=12 * case.logits)


def open_clip(case):
    def make():
        from open_clip.loss import ClipLoss

        loss = ClipLoss()
        return lambda q, k: loss(unit(q), unit(k), 1 / TEMPERATURE)

    return peer("open_clip ClipLoss", make, needs_bytes=12 * case.logits)


def metric_learning(case):
    def make():
        from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss

        return SelfSupervisedLoss(NTXentLoss(temperature=TEMPERATURE), symmetric=False)

    return peer("pytorch-metric-learning", make, needs_bytes=24 * case.N**3)


def as_linear(function):
    """InfoNCE from a linear layer with cross-entropy: queries are inputs, keys are the weight."""
    return lambda q, k: function(unit(q) / TEMPERATURE, unit(k), diagonal(q))


def linear_cross_entropy():
    if not hasattr(F, "linear_cross_entropy"):
        return Variant("F.linear_cross_entropy", absent=f"torch {torch.__version__} has none")
    options = torch.nn.LinearCrossEntropyOptions()
    function = as_linear(lambda x, w, t: F.linear_cross_entropy(x, w, t, options=options))
    return Variant("F.linear_cross_entropy", function)


def liger():
    def make():
        from liger_kernel.ops.fused_linear_cross_entropy import (
            LigerFusedLinearCrossEntropyFunction as Function,
        )

        def run(x, weight, target):
            loss = Function.apply(x, weight, target)
            return loss[0] if isinstance(loss, tuple) else loss

        return as_linear(run)

    return peer("liger-kernel", make)


def cut_cross_entropy(device):
    def make():
        from cut_cross_entropy import linear_cross_entropy

        impl = "cce" if device == "cuda" else "torch_compile"
        return as_linear(lambda x, w, t: linear_cross_entropy(x, w, t, impl=impl))

    name = "cut-cross-entropy" if device == "cuda" else "torch.compile by cut-cross-entropy"
    return peer(name, make)


def quack():
    def make():
        from quack.linear_cross_entropy import chunked_linear_cross_entropy

        return as_linear(chunked_linear_cross_entropy)

    return peer("quack", make)


def inf_cl(case, symmetric=False):
    def make():
        from inf_cl import cal_flash_loss

        head = min(256, case.D)

        def one_way(a, b):
            return cal_flash_loss(a, b, scale=1 / TEMPERATURE, head_dim=head).mean()

        def run(q, k):
            q, k = unit(q), unit(k)
            return (one_way(q, k) + one_way(k, q)) / 2 if symmetric else one_way(q, k)

        return run

    return peer("inf-cl", make)


def siglip(device):
    def make():
        from siglip_kernel import fused_siglip_loss

        log_scale = torch.tensor(2.3, device=device)
        bias = torch.tensor(-10.0, device=device)
        return lambda q, k: fused_siglip_loss(unit(q), unit(k), log_scale, bias)

    return peer("siglip-kernel (another loss, same FLOP)", make, same_loss=False)


def attention(case, device):
    """Flash attention whose values are its keys: all products of the loss, in a tuned kernel."""
    frozen = case.negatives is not None
    name = "SDPA with V = K" + (", forward" if frozen else " (no loss)")
    if device == "cuda" and case.D > 256:
        return Variant(name, absent="flash attention takes D of at most 256")

    def run(q, k, negatives=None):
        keys = (k if negatives is None else negatives)[None, None]
        with torch.set_grad_enabled(not frozen):
            out = F.scaled_dot_product_attention(q[None, None], keys, keys, scale=1 / TEMPERATURE)
        return None if frozen else out

    return Variant(name, run, same_loss=False)


def floor(case, device, dtype):
    """The products of forward and backward, with nothing between them."""
    q = unit(torch.randn(case.N, case.D, device=device, dtype=dtype))
    M = case.N if case.negatives is None else case.M
    k = unit(torch.randn(M, case.D, device=device, dtype=dtype))
    name = "two bare products" if case.frozen else "three bare products"
    state = []  # made at the first run: the matrix of scores may not fit

    def products(*_):
        if not state:
            state.extend([q.new_empty(case.N, M), torch.empty_like(q), torch.empty_like(k)])
        scores, dq, dk = state
        torch.mm(q, k.T, out=scores)
        torch.mm(scores, k, out=dq)
        if not case.frozen:
            torch.mm(scores.T, q, out=dk)

    return Variant(name, products, needs_bytes=dtype.itemsize * case.logits)


def baselines(case, device, dtype):
    """The floor first, then eager code, then the peers that compute this case."""
    plain = eager
    if case.options.get("symmetric"):
        plain = eager_symmetric
        peers = [open_clip(case), inf_cl(case, symmetric=True), siglip(device)]
    elif case.negatives is None:
        peers = [info_nce_pytorch(case), metric_learning(case), linear_cross_entropy(), liger(),
                 cut_cross_entropy(device), quack(), inf_cl(case), siglip(device),
                 attention(case, device)]  # fmt: skip
    else:
        peers = [moco(case), info_nce_pytorch(case), lightly_bank(case, device),
                 attention(case, device)]  # fmt: skip
    return [
        floor(case, device, dtype),
        Variant("eager PyTorch", plain, needs_bytes=12 * case.logits),
        Variant("torch.compile", torch.compile(plain), needs_bytes=8 * case.logits),
        *peers,
    ]
