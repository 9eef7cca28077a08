"""The compiled masking kernels as torch.library ops: schemas, shapes, launches and gradients.

CPU and GPU share everything but the last step: `_cpu.py` and `_cuda.py` put into LAUNCH how a
kernel of csrc/masking.h is called with its fields. The shape function of an op (its fake) also
makes the tensors that the kernel fills.
"""

import torch
from torch.library import register_autograd, register_fake

# B samples, L tokens, P prefix tokens in front of them, D width

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
# Device type -> launch(kernel, device, fields), which returns where the first bad index is, or -1.
LAUNCH = {}

SCHEMAS = {
    "random_masking": "(Tensor x, Tensor? noise, SymInt seed, SymInt step, Tensor? device_step, "
    "SymInt first_sample, SymInt n_keep, SymInt P) -> (Tensor, Tensor, Tensor, Tensor)",
    "select_rows": "(Tensor source, Tensor ids, SymInt P, bool strict) -> Tensor",
    "scatter_rows": "(Tensor source, Tensor ids, SymInt n_out, SymInt P, ScalarType dtype) "
    "-> Tensor",
    "restore_tokens": "(Tensor x_kept, Tensor ids, Tensor mask_token, Tensor? pos_embed, "
    "SymInt P) -> Tensor",
    "restore_gradients": "(Tensor gradient, Tensor ids, SymInt n_keep, SymInt P, bool token, "
    "bool position) -> (Tensor, Tensor)",
    "gather_patches": "(Tensor images, Tensor ids, SymInt patch) -> Tensor",
    "scatter_patches": "(Tensor gradient, Tensor ids, SymInt C, SymInt H, SymInt W, SymInt patch) "
    "-> Tensor",
}
for name, schema in SCHEMAS.items():
    torch.library.define(f"sslops::{name}", schema, tags=torch.Tag.pt2_compliant_tag)


def kernel(function):
    """The decorated function is what sslops::<its name> runs, on the CPU and on the GPU."""
    torch.library.impl(f"sslops::{function.__name__}", ("cpu", "cuda"), function)
    return function


def launch(name, out, *fields):
    """Run a kernel on the device of `out`; tensors stand for their addresses."""
    fields = tuple(
        field.data_ptr() if isinstance(field, torch.Tensor) else int(field or 0) for field in fields
    )
    return LAUNCH[out.device.type](name, out.device, fields)


def rows_of(x):
    """x with contiguous rows, and its strides in bytes; tokens and samples may lie anywhere."""
    x = x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()
    return x, x.stride(0) * x.element_size(), x.stride(1) * x.element_size()


def check_index(name, ids, position, count):
    """Raise if a CPU kernel met an index outside [0, count)."""
    if position >= 0:
        b, i = divmod(position, ids.shape[1])
        value = ids.reshape(-1)[position].item()
        raise IndexError(f"{name}[{b}, {i}] must be in [0, {count}); got {value}")


def check_distinct(ids, position):
    """Raise if a CPU kernel met an index again that had to be unique."""
    if position >= 0:
        b, i = divmod(position, ids.shape[1])
        value = ids.reshape(-1)[position].item()
        raise IndexError(f"token {value} of sample {b} is named twice (by index {i}): no gradient")


# ------------------------------------------------------------------ random_masking


@register_fake("sslops::random_masking")
def random_masking_outputs(x, noise, seed, step, device_step, first_sample, n_keep, P):
    B, rows, D = x.shape
    ids_restore = x.new_empty(B, rows - P, dtype=torch.int64)
    mask = x.new_empty(B, rows - P, dtype=torch.float32)
    return x.new_empty(B, P + n_keep, D), mask, ids_restore, ids_restore.new_empty(B, n_keep)


@kernel
def random_masking(x, noise, seed, step, device_step, first_sample, n_keep, P):
    outputs = x_kept, mask, ids_restore, ids_keep = random_masking_outputs(
        x, noise, seed, step, device_step, first_sample, n_keep, P
    )
    x, *strides = rows_of(x)
    noise = None if noise is None else noise.contiguous()
    B, L = mask.shape
    size = x.element_size()
    launch("random_masking", x, noise, seed, step, device_step, first_sample, x, *strides, x_kept,
           mask, ids_restore, ids_keep, B, L, n_keep, P, x.shape[2] * size, size)  # fmt: skip
    return outputs


def save_ids_restore(ctx, inputs, output):
    _, mask, ids_restore, ids_keep = output
    ctx.save_for_backward(ids_restore)
    ctx.P = inputs[-1]
    ctx.mark_non_differentiable(mask, ids_restore, ids_keep)


def random_masking_backward(ctx, gradient, *_):
    # A token's gradient is that of its place in the sorted order; removed tokens have no place.
    (ids_restore,) = ctx.saved_tensors
    return torch.ops.sslops.select_rows(gradient, ids_restore, ctx.P, False), *[None] * 7


register_autograd("sslops::random_masking", random_masking_backward, setup_context=save_ids_restore)

# ------------------------------------------------------------------ select_rows and scatter_rows


@register_fake("sslops::select_rows")
def select_rows_output(source, ids, P, strict):
    return source.new_empty(source.shape[0], P + ids.shape[1], source.shape[2])


@kernel
def select_rows(source, ids, P, strict):
    out = select_rows_output(source, ids, P, strict)
    source, *strides = rows_of(source)
    ids = ids.contiguous()
    (B, n_out), n_source, size = ids.shape, source.shape[1] - P, source.element_size()
    bad = launch("select_rows", source, source, *strides, ids, out, B, n_source, n_out, P,
                 source.shape[2] * size, size, strict)  # fmt: skip
    check_index("ids_keep", ids, bad, n_source)
    return out


@register_fake("sslops::scatter_rows")
def scatter_rows_output(source, ids, n_out, P, dtype):
    return source.new_empty(source.shape[0], P + n_out, source.shape[2], dtype=dtype)


@kernel
def scatter_rows(source, ids, n_out, P, dtype):
    out = scatter_rows_output(source, ids, n_out, P, dtype)
    source, ids = source.contiguous(), ids.contiguous()
    (B, n_source), D = ids.shape, source.shape[2]
    bad = launch("scatter_rows", source, source, DTYPES[source.dtype], ids, out, DTYPES[dtype],
                 B, n_source, n_out, P, D)  # fmt: skip
    check_distinct(ids, bad)
    return out


def save_ids(ctx, inputs, output):
    ctx.save_for_backward(inputs[1])
    ctx.rows, ctx.dtype, ctx.P = inputs[0].shape[1], inputs[0].dtype, inputs[-2]


def select_rows_backward(ctx, gradient):
    (ids,) = ctx.saved_tensors
    n_out = ctx.rows - ctx.P
    return torch.ops.sslops.scatter_rows(gradient, ids, n_out, ctx.P, ctx.dtype), None, None, None


def scatter_rows_backward(ctx, gradient):
    (ids,) = ctx.saved_tensors
    rows = torch.ops.sslops.select_rows(gradient, ids, ctx.P, False)
    return rows.to(ctx.dtype), None, None, None, None


register_autograd("sslops::select_rows", select_rows_backward, setup_context=save_ids)
register_autograd("sslops::scatter_rows", scatter_rows_backward, setup_context=save_ids)

# ------------------------------------------------------------------ restore_tokens


@register_fake("sslops::restore_tokens")
def restore_tokens_output(x_kept, ids, mask_token, pos_embed, P):
    return mask_token.new_empty(ids.shape[0], P + ids.shape[1], x_kept.shape[2])


@kernel
def restore_tokens(x_kept, ids, mask_token, pos_embed, P):
    out = restore_tokens_output(x_kept, ids, mask_token, pos_embed, P)
    x_kept, *strides = rows_of(x_kept)
    ids, mask_token = ids.contiguous(), mask_token.contiguous()
    pos_embed = None if pos_embed is None else pos_embed.contiguous()
    per_sample = pos_embed is not None and pos_embed.shape[0] > 1
    (B, L), n_keep, D = ids.shape, x_kept.shape[1] - P, x_kept.shape[2]
    bad = launch("restore_tokens", out, x_kept, DTYPES[x_kept.dtype], *strides, ids, mask_token,
                 pos_embed, per_sample, out, DTYPES[out.dtype], B, L, n_keep, P, D)  # fmt: skip
    check_index("ids_restore", ids, bad, L)
    return out


@register_fake("sslops::restore_gradients")
def restore_gradients_outputs(gradient, ids, n_keep, P, token, position):
    _, rows, D = gradient.shape
    sizes = (D,) if token else (0,), (rows, D) if position else (0,)
    return tuple(gradient.new_empty(size, dtype=torch.float32) for size in sizes)


@kernel
def restore_gradients(gradient, ids, n_keep, P, token, position):
    gradient, ids = gradient.contiguous(), ids.contiguous()
    B, rows, D = gradient.shape
    # On a GPU one row per block is too few blocks, so the batch is cut as well.
    S = max(1, min(B, 1024 // max(rows, 1))) if gradient.is_cuda else 1
    partial = [gradient.new_empty(S, rows, D, dtype=torch.float32) if wanted else None
               for wanted in (token, position)]  # fmt: skip
    launch("restore_gradients", gradient, gradient, DTYPES[gradient.dtype], ids, *partial,
           S, B, ids.shape[1], n_keep, P, D)  # fmt: skip
    nothing = gradient.new_empty(0, dtype=torch.float32)
    return (
        partial[0].sum((0, 1)) if token else nothing,
        partial[1].sum(0) if position else nothing.clone(),
    )


def save_restore(ctx, inputs, output):
    x_kept, ids, _, pos_embed, ctx.P = inputs
    ctx.save_for_backward(ids)
    ctx.n_keep, ctx.dtype = x_kept.shape[1] - ctx.P, x_kept.dtype
    ctx.shared_positions = pos_embed is not None and pos_embed.shape[0] == 1


def restore_tokens_backward(ctx, gradient):
    (ids,) = ctx.saved_tensors
    want_x, _, want_token, want_position, _ = ctx.needs_input_grad
    x = token = None
    if want_x:
        x = torch.ops.sslops.scatter_rows(gradient, ids, ctx.n_keep, ctx.P, ctx.dtype)
    position = gradient if want_position else None
    shared = want_position and ctx.shared_positions
    if want_token or shared:
        token, sums = torch.ops.sslops.restore_gradients(
            gradient, ids, ctx.n_keep, ctx.P, want_token, shared
        )
        token = token.to(gradient.dtype) if want_token else None
        position = sums[None].to(gradient.dtype) if shared else position
    return x, None, token, position, None


register_autograd("sslops::restore_tokens", restore_tokens_backward, setup_context=save_restore)

# ------------------------------------------------------------------ gather_patches


@register_fake("sslops::gather_patches")
def gather_patches_output(images, ids, patch):
    return images.new_empty(*ids.shape, patch * patch * images.shape[1])


@kernel
def gather_patches(images, ids, patch):
    out = gather_patches_output(images, ids, patch)
    ids = ids.contiguous()
    (B, C, H, W), n_keep = images.shape, ids.shape[1]
    bad = launch("gather_patches", images, images, *images.stride(), ids, out, B, C, H, W, n_keep,
                 patch, images.element_size())  # fmt: skip
    check_index("ids_keep", ids, bad, (H // patch) * (W // patch))
    return out


@register_fake("sslops::scatter_patches")
def scatter_patches_output(gradient, ids, C, H, W, patch):
    return gradient.new_empty(ids.shape[0], C, H, W)


@kernel
def scatter_patches(gradient, ids, C, H, W, patch):
    out = scatter_patches_output(gradient, ids, C, H, W, patch)
    gradient, ids = gradient.contiguous(), ids.contiguous()
    B, n_keep = ids.shape
    bad = launch("scatter_patches", gradient, gradient, ids, out, B, C, H, W, n_keep, patch,
                 gradient.element_size())  # fmt: skip
    check_distinct(ids, bad)
    return out


def save_image_size(ctx, inputs, output):
    images, ids, ctx.patch = inputs
    ctx.save_for_backward(ids)
    ctx.sizes = images.shape[1:]


def gather_patches_backward(ctx, gradient):
    (ids,) = ctx.saved_tensors
    return torch.ops.sslops.scatter_patches(gradient, ids, *ctx.sizes, ctx.patch), None, None


register_autograd("sslops::gather_patches", gather_patches_backward, setup_context=save_image_size)
