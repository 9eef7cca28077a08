"""What the CPU backends share: what they run, how tensors reach C++, what has no derivative."""

import torch

# Scores of unit rows lie within 2 / T of each other. Below this spread exp needs no running
# maximum: sums of 2^20 terms of exp(60) stay far inside float32.
LARGEST_SPREAD = 60.0


def why_not_cpu(tensor):
    """Why the CPU kernels cannot take a tensor, or None."""
    if tensor.device.type != "cpu":
        return f"the inputs are on {tensor.device}; this backend runs on the CPU"
    if tensor.dtype == torch.float64:
        return "the kernels compute in float32 and the inputs are float64"
    return None


def address(tensor):
    """The pointer C++ receives; 0 (null) for None and for outputs that are not wanted."""
    return 0 if tensor is None or tensor.numel() == 0 else tensor.data_ptr()


def as_tensor(temperature, like):
    """A temperature as a float64 0-d tensor, so that custom ops see one type."""
    if isinstance(temperature, torch.Tensor):
        return temperature.to(torch.float64)
    return torch.full((), temperature, dtype=torch.float64, device=like.device)


def scale_and_bounded(temperature, unit):
    """1 / temperature, and whether unit rows at this temperature need no running maximum."""
    scale = 1.0 / temperature.item()
    return scale, unit and 2 * scale < LARGEST_SPREAD


def threads_for(rows, columns, width):
    """How many of torch's threads a product of this size keeps busy for longer than it takes to
    wake them: 2^21 multiply-adds each (about 40 microseconds)."""
    return max(1, min(torch.get_num_threads(), rows * columns * width >> 21))


def block_rows(rows, blocks):
    """Rows of one of so many blocks, in whole panels (csrc/cpu/tiles.h)."""
    return max(32, rows // blocks // 32 * 32)


def needs_grad(tensor):
    """Whether this call should prepare a gradient for a tensor."""
    return torch.is_grad_enabled() and tensor.requires_grad


def forbid_double_backward(backward_op, name):
    """Give a backward op a derivative that says there is none."""

    def refuse(ctx, *gradients):
        raise RuntimeError(
            f"{name}: this backend has no double backward; backend='reference' supports it"
        )

    backward_op.register_autograd(refuse)


def has_cuda_kernels():
    """Whether the extension was built where nvcc was found."""
    from sslops import _C  # here, because the helpers above must load without it

    return _C.has_cuda
