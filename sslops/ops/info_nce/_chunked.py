"""InfoNCE in plain PyTorch, a chunk of rows at a time: on any device, in O(N D) memory.

The fallback where nothing faster runs. When all rows share their upstream gradient (uniform), the
forward pass computes the gradients too, while it has the logits of a chunk: 6 N M D FLOP in all.
Otherwise, and for the symmetric loss, whose columns are complete only after the last row, the
logits are computed twice: 8 N M D.
"""

from typing import NamedTuple

import torch

from sslops.ops.info_nce.reference import InfoNCERows
from sslops.unit_rows import at_least_float32, unit_rows, unit_rows_backward

# B batch, N queries, M keys, D width; a chunk holds the logits [b, n, M] of n rows of b batches.

# Fewer rows make the products, and the sums of key gradients between them, slow.
SMALLEST_CHUNK = 128
# Columns beside the negatives' logits: the positive's, and padding that keeps the rows aligned.
PADDING = 8
# float16 holds a softmax weight below 6e-8 only when it is scaled up.
FLOAT16_SCALE = 2.0**14


def unsupported(*args, **kwargs):
    return None


def info_nce(
    query, positive_key, negative_keys, temperature, *, symmetric, normalize,
    positive_offset, exclude_offset, return_stats, uniform,
):  # fmt: skip
    """See sslops.ops.info_nce for the arguments of a backend."""
    T = as_tensor(temperature, query)
    wants = [torch.is_grad_enabled() and t is not None and t.requires_grad
             for t in (query, positive_key, negative_keys, T)]  # fmt: skip
    # A query with negatives of its own reads each once a pass: cheaper to repeat than to keep.
    in_forward = uniform and any(wants) and query.shape[1] > 1
    if negative_keys is not None and any(wants) and not (wants[2] or in_forward):
        negative_keys = negative_keys.clone()  # a queue: it may be written to before backward
    loss, lse, positive, rank, *_ = _forward(
        query, positive_key, negative_keys, T, symmetric, normalize,
        positive_offset, exclude_offset, wants, in_forward, return_stats,
    )  # fmt: skip
    rank = rank if return_stats else None
    return InfoNCERows(loss, lse, positive, rank)


def as_tensor(temperature, like):
    """The temperature as a 0-d tensor in the dtype of the logits."""
    if isinstance(temperature, torch.Tensor):
        return temperature.to(wide(like.dtype))
    return torch.full((), temperature, dtype=wide(like.dtype), device=like.device)


def wide(dtype):
    """The dtype of logits, sums and losses."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def chunk_logits(query):
    """How many logits make a chunk: what the caches of a CPU hold, or what fills a GPU."""
    return 2**26 if query.is_cuda else 2**22


def slices(size, step):
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


def operand_dtype(x):
    """Half-precision rows stay so where a product of them can come out in float32."""
    return x.dtype if x.is_cuda and torch.version.hip is None else wide(x.dtype)


def product(a, b, out=None):
    """a @ b of [B, ., .], in float32 at least."""
    if a.dtype == wide(a.dtype):
        return torch.bmm(a, b, out=out)
    return torch.bmm(a, b, out_dtype=torch.float32, out=out)


def add_product(out, a, b):
    """out += a @ b, kept in the dtype of `out`."""
    if a.dtype == out.dtype:
        out.baddbmm_(a, b)
    else:
        out += product(a, b)


def bounded(weights, dtype):
    """Row weights that `dtype` can hold times a softmax, and the factor that undoes the scaling."""
    if dtype != torch.float16 or not weights.numel():
        return weights, 1.0
    largest = weights.abs().nan_to_num(0.0, 0.0, 0.0).amax()
    factor = largest.clamp_min(torch.finfo(weights.dtype).tiny) / FLOAT16_SCALE
    return weights / factor, factor


class Options(NamedTuple):
    """What the loss is, beside its tensors; `wants` says which of them want a gradient."""

    symmetric: bool
    normalize: bool
    positive_offset: int
    exclude_offset: int | None
    wants: list[bool]


class Part:
    """A few batches: their rows as operands of products, and the gradients that gather."""

    def __init__(self, query, positive_key, negative_keys, T, options):
        self.inputs = (query, positive_key, negative_keys)
        self.T, self.options = T, options
        self.in_batch = negative_keys is None
        self.q, self.p = self.operand(query), self.operand(positive_key)
        self.k = self.p if self.in_batch else self.operand(negative_keys)
        wants = (options.wants[0] or options.wants[3], *options.wants[1:3])
        self.dq, self.dp, self.dk = (
            torch.zeros_like(x, dtype=T.dtype) if wanted else None
            for x, wanted in zip((self.q, self.p, self.k), wants, strict=True)
        )

    def full(self, x):
        return unit_rows(x) if self.options.normalize else at_least_float32(x)

    def operand(self, x):
        return self.full(x).to(operand_dtype(x))

    def chunks(self):
        rows = chunk_logits(self.q) // max(1, self.k.shape[1])
        return slices(self.q.shape[1], max(SMALLEST_CHUNK, rows))

    def logits(self, rows):
        """Logits of some rows: [b, n, M], or [b, n, M + PADDING] beside given negatives."""
        q_bnD, M = self.q[:, rows], self.k.shape[1]
        width = M if self.in_batch else M + PADDING
        logits = q_bnD.new_empty(*q_bnD.shape[:2], width, dtype=self.T.dtype)
        product(q_bnD, self.k.mT, out=logits[..., :M])
        if not self.in_batch:
            logits[..., M] = (q_bnD.to(self.T.dtype) * self.p[:, rows]).sum(-1)
            logits[..., M + 1 :] = -torch.inf
        elif self.options.exclude_offset is not None:
            self.diagonal(logits, rows, self.options.exclude_offset).fill_(-torch.inf)
        # Not in the queries: float16 might overflow, and sums of equal products would differ.
        return logits.div_(self.T)

    def positives(self, x, rows):
        """The view of the positives' entries, [b, n], of a chunk of logits."""
        if self.in_batch:
            return self.diagonal(x, rows, self.options.positive_offset)
        return x[..., self.k.shape[1]]

    @staticmethod
    def diagonal(x, rows, offset):
        return x.diagonal(rows.start + offset, dim1=-2, dim2=-1)

    def losses(self, some, outputs, weights, return_stats):
        """Fill the outputs of these batches; with weights, gather the gradients too."""
        loss, lse, positive, rank = (x[some] for x in outputs[:4])
        columns, symmetric = outputs[4][:, some], self.options.symmetric
        for rows in self.chunks():
            logits = self.logits(rows)
            positive[:, rows] = self.positives(logits, rows)
            if return_stats:
                rank[:, rows] = (logits > positive[:, rows, None]).sum(-1)
            if symmetric:
                self.merge_columns(columns, logits)
            log_p = logits.log_softmax(-1)
            loss[:, rows] = 0.0 - self.positives(log_p, rows)  # a minus sign would give -0.0
            if weights is not None and not symmetric:
                self.add_gradients(rows, logits, log_p, weights, columns)
        torch.add(positive, loss, out=lse)
        if symmetric:
            # Relative to the positive, so that a loss near 0 keeps its digits beside large logits.
            loss.add_(columns[0] - positive).add_(columns[1].log()).mul_(0.5)
            if weights is not None:
                self.add_all_gradients(weights, columns)

    def merge_columns(self, columns, logits):
        """Largest logit of each column, and sum of exponentials relative to it, so far."""
        largest = torch.maximum(columns[0], logits.amax(-2))
        columns[1] *= (columns[0] - largest).exp()
        columns[1] += (logits - largest[:, None]).exp_().sum(-2)
        columns[0] = largest

    def add_gradients(self, rows, logits, log_p, weights, columns):
        """Add what the rows of a chunk send to queries and keys; overwrites log_p."""
        g = log_p.exp_()
        self.positives(g, rows).sub_(1.0)
        g.mul_(weights[:, rows, None])
        if self.options.symmetric:  # the other direction: a softmax over the queries
            largest, total = columns[:, :, None]
            g_column = (logits - largest).exp_().div_(total)
            self.positives(g_column, rows).sub_(1.0)
            g.add_(g_column.mul_(weights[:, None])).mul_(0.5)
        self.add_products(rows, g.to(self.q.dtype)[..., : self.k.shape[1]])
        if not self.in_batch:
            self.add_positives(rows, self.positives(g, rows)[..., None])

    def add_products(self, rows, g_bnM):
        dk = self.dp if self.in_batch else self.dk
        if self.dq is not None:
            add_product(self.dq[:, rows], g_bnM, self.k)
        if dk is not None:
            add_product(dk, g_bnM.mT, self.q[:, rows])

    def add_positives(self, rows, g_bn1):
        if self.dq is not None:
            self.dq[:, rows] += g_bn1 * self.p[:, rows]
        if self.dp is not None:
            self.dp[:, rows] = g_bn1 * self.q[:, rows]

    def add_all_gradients(self, weights, columns):
        for rows in self.chunks():
            logits = self.logits(rows)
            self.add_gradients(rows, logits, logits.log_softmax(-1), weights, columns)

    def finish(self, factor, some, out):
        """Undo the scaling of the weights, go back through 1/T and the unit length, and store."""
        for i, (x, gradient) in enumerate(
            zip(self.inputs, (self.dq, self.dp, self.dk), strict=True)
        ):
            if gradient is None:
                continue
            gradient = gradient * (factor / self.T)
            if i == 0 and self.options.wants[3]:  # logit = <q, k> / T, so no sum over logits
                out[3].sub_((self.full(x) * gradient).sum() / self.T)
            if self.options.wants[i]:
                gradient = unit_rows_backward(x, gradient) if self.options.normalize else gradient
                out[i][some] = gradient


def parts(query, positive_key, negative_keys, T, options):
    """Batches in groups whose keys and logits make a chunk, each prepared when its turn comes."""
    keys = positive_key if negative_keys is None else negative_keys
    size = max(1, keys.shape[1]) * max(1, *query.shape[1:])
    for some in slices(query.shape[0], max(1, chunk_logits(query) // size)):
        negatives = None if negative_keys is None else negative_keys[some]
        yield some, Part(query[some], positive_key[some], negatives, T, options)


def gradient_space(query, positive_key, negative_keys, T, wants, dtype=None):
    """Where gradients go; empty where none is wanted."""
    return [
        *(
            query.new_empty(x.shape if wanted else 0, dtype=dtype or query.dtype)
            for x, wanted in zip((query, positive_key, negative_keys), wants, strict=False)
        ),
        torch.zeros_like(T),
    ]


def output_space(query, T, symmetric):
    """Where loss, lse, positive logit, its rank and the columns' largest and sum go."""
    B, N = query.shape[:2]
    rank = query.new_empty(B, N, dtype=torch.int64)
    columns = query.new_zeros(2, B, N if symmetric else 0, dtype=T.dtype)
    columns[0].fill_(-torch.inf)
    return [*(query.new_empty(B, N, dtype=T.dtype) for _ in range(3)), rank, columns]


ARGUMENTS = (
    "Tensor query, Tensor positive_key, Tensor? negative_keys, Tensor temperature, bool symmetric, "
    "bool normalize, SymInt positive_offset, SymInt? exclude_offset, bool[] wants"
)


@torch.library.custom_op(
    "sslops::info_nce_chunked",
    mutates_args=(),
    schema=f"({ARGUMENTS}, bool in_forward, bool return_stats) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _forward(
    query, positive_key, negative_keys, temperature, symmetric, normalize,
    positive_offset, exclude_offset, wants, in_forward, return_stats,
):  # fmt: skip
    tensors = (query, positive_key, negative_keys, temperature)
    wants = wants if in_forward else [False] * 4
    options = Options(symmetric, normalize, positive_offset, exclude_offset, wants)
    outputs = output_space(query, temperature, symmetric)
    gradients = gradient_space(*tensors, wants, temperature.dtype)
    with torch.autocast(query.device.type, enabled=False):
        for some, part in parts(*tensors, options):
            ones = outputs[0].new_ones(part.q.shape[:2])
            weights, factor = bounded(ones, operand_dtype(query))
            part.losses(some, outputs, weights if in_forward else None, return_stats)
            part.finish(factor, some, gradients)
    return (*outputs, *gradients)


@_forward.register_fake
def _(query, positive_key, negative_keys, temperature, symmetric, *options):
    tensors = (query, positive_key, negative_keys, temperature)
    wants, in_forward = options[3:5]
    gradients = gradient_space(*tensors, wants if in_forward else [False] * 4, temperature.dtype)
    return (*output_space(query, temperature, symmetric), *gradients)


@torch.library.custom_op(
    "sslops::info_nce_chunked_backward",
    mutates_args=(),
    schema=f"(Tensor upstream, {ARGUMENTS}, bool in_forward, Tensor columns, Tensor dq, Tensor dp, "
    "Tensor dn, Tensor dT) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _backward(
    upstream, query, positive_key, negative_keys, temperature, symmetric, normalize,
    positive_offset, exclude_offset, wants, in_forward, columns, *at_one,
):  # fmt: skip
    tensors = (query, positive_key, negative_keys, temperature)
    options = Options(symmetric, normalize, positive_offset, exclude_offset, wants)
    gradients = gradient_space(*tensors, wants)
    if in_forward:  # all rows share their upstream gradient; a sum, because there may be none
        shared = upstream.reshape(-1)[:1].sum()
        for gradient, x in zip(gradients, at_one, strict=True):
            torch.mul(x, shared, out=gradient)
        return tuple(gradients)
    with torch.autocast(query.device.type, enabled=False):
        for some, part in parts(*tensors, options):
            weights, factor = bounded(upstream[some], operand_dtype(query))
            part.add_all_gradients(weights, columns[:, some])
            part.finish(factor, some, gradients)
    return tuple(gradients)


@_backward.register_fake
def _(upstream, query, positive_key, negative_keys, temperature, *options):
    tensors = (query, positive_key, negative_keys, temperature)
    return tuple(gradient_space(*tensors, options[4]))


def _save(ctx, inputs, output):
    *tensors, symmetric, normalize, positive_offset, exclude_offset, wants, in_forward, _ = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.options = (symmetric, normalize, positive_offset, exclude_offset, wants, in_forward)
    if in_forward and not wants[2]:  # not looked at again
        tensors[2] = None
    ctx.save_for_backward(*tensors, *output[4:])


def _gradients(ctx, upstream, *_):
    tensors, saved = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
    gradients = _backward(upstream, *tensors, *ctx.options, *saved)
    wants = ctx.options[-2]
    gradients = (x if wanted else None for x, wanted in zip(gradients, wants, strict=True))
    return (*gradients, *[None] * 7)


def no_double_backward(name):
    raise RuntimeError(
        f"{name}: this backend has no double backward; backend='reference' supports it"
    )


_forward.register_autograd(_gradients, setup_context=_save)
_backward.register_autograd(lambda ctx, *_: no_double_backward("info_nce"))
