"""Colour attention: copy values or labels from reference frames by a softmax over embeddings.

What a backend of these ops receives, already checked:

    color_attention(target, reference, values, temperature, *, window, topk) -> [B, Nt, C]
    color_attention_loss(target, reference, target_labels, reference_labels, temperature) -> [B, Nt]

    target            [B, Nt, D]; it shares dtype and device with `reference`
    reference         [B, Nr, D], the cells of all reference frames, one frame after the other
    values            [B, Nr, C] of the dtype of `target` or float32
    target_labels     [B, Nt], int64
    reference_labels  [B, Nr], int64
    temperature       float, or a 0-d tensor on the same device that may require grad
    window            None, or a Window (height, width, radii): the radius of every reference frame
    topk              None, or an int in 1..Nr

Results are float32 (float64 for float64 inputs), differentiable with respect to all floating-point
tensors and the temperature.
"""

from numbers import Integral

import torch

from sslops import arguments, registry
from sslops.ops.color_attention.reference import Window

__all__ = ["color_attention", "color_attention_loss"]

LARGEST_VALUE_WIDTH = 64

_BACKENDS = "cpu", "triton", "chunked", "reference"
_attention = registry.load("color_attention", *_BACKENDS)
_loss = registry.load("color_attention", *_BACKENDS, function="color_attention_loss")


def color_attention(
    target,
    reference,
    values,
    *,
    temperature=1.0,
    grid=None,
    radius=None,
    topk=None,
    backend=None,
):
    """Copy values from reference cells to target cells, weighted by a softmax over embeddings.

    It equals, without ever storing the Nt x Nr weights,

        (target @ reference.mT / temperature).softmax(-1) @ values

    Args:
        target: [B, Nt, D], embeddings of the target frame's cells; float16, bfloat16, float32 or
            float64. Nothing is normalised.
        reference: [B, Nr, D], embeddings of the cells of all reference frames, one frame after the
            other; dtype and device of `target`. One softmax runs over all of them.
        values: [B, Nr, C] with C of 1 to 64, what is copied: colours, one-hot or soft labels; the
            dtype of `target` or float32.
        temperature: float > 0, or a 0-d tensor, which may require grad.
        grid: (H, W), the cells of a frame; then Nt = H W and Nr = F H W for F reference frames.
        radius: None, or the window: a target cell sees the reference cells whose rows and columns
            differ from its own by at most `radius` cells. An int, or one entry per reference frame,
            of which None stands for no window and a negative number for no cell of that frame.
        topk: None, or how many candidates of each target cell to keep, over all frames; the softmax
            runs over these. Exact; ties go to the lower index.
        backend: force "cpu", "triton", "chunked" or "reference"; None takes the first that can run.

    Returns:
        [B, Nt, C], float32 (float64 for float64 inputs). A cell without any candidate gets zeros.

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape, dtype or device.
        RuntimeError: the forced backend cannot run here.

    Source:
        Vondrick et al., "Tracking Emerges by Colorizing Videos", ECCV 2018, eq. 1 and 2. Window and
        top-k: Jabri, Owens, Efros, "Space-Time Correspondence as a Contrastive Random Walk", 2020.

    Example:
        >>> import torch, sslops
        >>> cells = 50 * torch.eye(4)[None]  # four cells, each with an embedding of its own
        >>> colors = torch.tensor([[[0.1], [0.2], [0.3], [0.4]]])
        >>> sslops.color_attention(cells.roll(1, dims=1), cells, colors)[0, :, 0]
        tensor([0.4000, 0.1000, 0.2000, 0.3000])
    """
    _check_embeddings(target, reference)
    _check_values(values, target, reference)
    window = _as_window(grid, radius, target, reference)
    _check_topk(topk, reference)
    temperature = arguments.check_temperature(temperature, target)
    with torch.autocast(target.device.type, enabled=False):
        return _attention(backend, target, reference, values, temperature, window=window, topk=topk)


def color_attention_loss(
    target,
    reference,
    target_labels,
    reference_labels,
    *,
    temperature=1.0,
    reduction="mean",
    backend=None,
):
    """How badly target cells find their own label among the reference cells.

    It equals, without ever storing the Nt x Nr weights and for any number of classes K,

        p = (target @ reference.mT / temperature).softmax(-1) @ F.one_hot(reference_labels, K)
        F.nll_loss(torch.log(p + 1e-8).flatten(0, 1), target_labels.flatten())

    Args:
        target: [B, Nt, D], embeddings of the target frame's cells; float16, bfloat16, float32 or
            float64. Nothing is normalised.
        reference: [B, Nr, D], embeddings of the cells of all reference frames; dtype and device of
            `target`. One softmax runs over all of them.
        target_labels: [B, Nt], any integer dtype; the quantised colour of each cell.
        reference_labels: [B, Nr], any integer dtype.
        temperature: float > 0, or a 0-d tensor, which may require grad.
        reduction: "mean", "sum" or "none".
        backend: force "cpu", "triton", "chunked" or "reference"; None takes the first that can run.

    Returns:
        The loss: float32 (float64 for float64 inputs), 0-d or, for reduction="none", [B, Nt]. A
        label that no reference cell of its batch entry has costs -log(1e-8) and has gradient zero.
        No target cells give nan for "mean" and 0 for "sum".

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape, dtype or device.
        RuntimeError: the forced backend cannot run here.

    Source:
        Vondrick et al., "Tracking Emerges by Colorizing Videos", ECCV 2018, eq. 3. The mixture of
        colours is a distribution already: no second softmax runs over it.

    Example:
        >>> import torch, sslops
        >>> cells = torch.zeros(1, 4, 8)  # equal embeddings: the mean colour everywhere
        >>> labels = torch.tensor([[0, 1, 1, 1]])
        >>> loss = sslops.color_attention_loss(cells, cells, labels, labels)
        >>> print(f"{loss.item():.4f}")  # (log(4) + 3 log(4/3)) / 4
        0.5623
    """
    arguments.check_choice("reduction", reduction, ("mean", "sum", "none"))
    _check_embeddings(target, reference)
    _check_labels("target_labels", target_labels, "target", target)
    _check_labels("reference_labels", reference_labels, "reference", reference)
    temperature = arguments.check_temperature(temperature, target)
    with torch.autocast(target.device.type, enabled=False):
        labels = target_labels.long(), reference_labels.long()
        loss = _loss(backend, target, reference, *labels, temperature)
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" else loss.sum()


def _check_embeddings(target, reference):
    for name, value in (("target", target), ("reference", reference)):
        arguments.check_rows(name, value)
        if value.ndim != 3:
            raise ValueError(f"{name} must be [B, N, D]; got {arguments.describe(value)}")
    arguments.check_same_kind("reference", reference, "target", target)
    B, _, D = target.shape
    if reference.shape[0] != B or reference.shape[2] != D:
        raise ValueError(
            f"reference must be [B, Nr, D] with B = {B} and D = {D} as in target; "
            f"got {arguments.describe(reference)}"
        )


def _check_values(values, target, reference):
    arguments.check_rows("values", values)
    if values.dtype not in (target.dtype, torch.float32):
        raise TypeError(
            f"values must have the dtype of target ({target.dtype}) or float32; "
            f"got {arguments.describe(values)}"
        )
    _check_device("values", values, "target", target)
    expected = tuple(reference.shape[:2])
    width = values.shape[-1]
    if tuple(values.shape[:-1]) != expected or not 1 <= width <= LARGEST_VALUE_WIDTH:
        raise ValueError(
            f"values must be [B, Nr, C] with (B, Nr) = {expected} as in reference and C of 1 to "
            f"{LARGEST_VALUE_WIDTH}; got {arguments.describe(values)}"
        )


def _check_labels(name, labels, like_name, like):
    if not isinstance(labels, torch.Tensor):
        raise TypeError(f"{name} must be a tensor; got {arguments.describe(labels)}")
    dtype = labels.dtype
    if dtype.is_floating_point or dtype.is_complex or dtype == torch.bool:
        raise TypeError(f"{name} must have an integer dtype; got {arguments.describe(labels)}")
    _check_device(name, labels, like_name, like)
    if labels.shape != like.shape[:2]:
        raise ValueError(
            f"{name} must be {tuple(like.shape[:2])}, one label for each cell of {like_name}; "
            f"got {arguments.describe(labels)}"
        )


def _check_device(name, value, like_name, like):
    if value.device != like.device:
        raise ValueError(
            f"{name} must be on the device of {like_name} ({like.device}); "
            f"got {arguments.describe(value)}"
        )


def _check_topk(topk, reference):
    if topk is None:
        return
    if not _is_int(topk):
        raise TypeError(f"topk must be None or an int; got {arguments.describe(topk)}")
    if not 1 <= topk <= reference.shape[1]:
        raise ValueError(
            f"topk must be 1 to the number of reference cells, {reference.shape[1]}; got {topk}"
        )


def _is_int(value):
    return isinstance(value, Integral) and not isinstance(value, bool)


def _as_window(grid, radius, target, reference):
    """The Window, or None where every reference cell is a candidate; checks grid and radius."""
    frames = _count_frames(grid, target, reference)
    if radius is None:
        return None
    if frames is None:
        raise ValueError("radius needs grid=(H, W), the cells of a frame")
    radii = [radius] * frames if _is_int(radius) else radius
    if not isinstance(radii, (list, tuple)) or not all(r is None or _is_int(r) for r in radii):
        raise TypeError(
            "radius must be None, an int, or a sequence of ints and None; "
            f"got {arguments.describe(radius)}"
        )
    if len(radii) != frames:
        raise ValueError(
            f"radius must have one entry for each of the {frames} reference frames; got {radius}"
        )
    if all(r is None for r in radii):
        return None
    everything = max(grid)  # a radius that reaches every cell of the frame
    radii = tuple(everything if r is None else max(-1, min(int(r), everything)) for r in radii)
    return Window(*map(int, grid), radii)


def _count_frames(grid, target, reference):
    """The number of reference frames, or None without a grid."""
    if grid is None:
        return None
    if not isinstance(grid, (list, tuple)) or len(grid) != 2 or not all(map(_is_int, grid)):
        raise TypeError(f"grid must be (H, W), two ints; got {arguments.describe(grid)}")
    Nt, Nr, cells = target.shape[1], reference.shape[1], grid[0] * grid[1]
    if min(grid) < 1 or Nt != cells or Nr % cells:
        raise ValueError(
            f"grid (H, W) must have H W = Nt = {Nt} cells, and Nr = {Nr} must be a multiple of "
            f"that; got {tuple(grid)}"
        )
    return Nr // cells
