"""MAE's other ways to choose tokens, as scores: the tokens with the smallest scores are kept.

Both run in plain PyTorch on any device; each arithmetic operation is one IEEE operation in float64,
so that every device chooses the same tokens.
"""

import math

import torch

from sslops.counter_generator import CounterGenerator
from sslops.ops.masking.checks import check_generator

# B samples, R rectangles, S tokens along a side of the square grid

RECTANGLES = 64  # more than enough: a rectangle covers, on average, half of what is to be removed
SMALLEST_AREA = 16  # BEiT's min_num_patches
# BEiT draws the logarithm of height / width uniformly between those of 0.3 and 1 / 0.3; here it is
# one of 32 values 0.3 * ASPECT_STEP**i, products, because powers are not rounded alike everywhere.
SMALLEST_ASPECT = 0.3
ASPECT_STEP = SMALLEST_ASPECT ** (-2 / 31)


def scores(strategy, batch, length, n_remove, generator, device):
    """[B, L], float32: sorted ascending and stably, the first L - n_remove tokens are kept."""
    side = math.isqrt(length)
    if side * side != length:
        raise ValueError(f"strategy {strategy!r} needs a square number of tokens; got {length}")
    if strategy == "grid":
        return grid_scores(batch, side, n_remove, device)
    check_generator(generator, device)
    if isinstance(generator, CounterGenerator):
        uniform = generator.uniform(batch, 4 * RECTANGLES, stream=1, device=device)
    else:
        uniform = torch.rand(batch, 4 * RECTANGLES, device=device, generator=generator)
    return block_scores(uniform.reshape(batch, RECTANGLES, 4), side, n_remove)


def grid_scores(batch, side, n_remove, device):
    """In every cell of 2 x 2 the upper left token is kept; nothing is random."""
    if side % 2 or 4 * n_remove != 3 * side * side:
        raise ValueError(
            "strategy 'grid' removes three of four: it needs mask_ratio 0.75 and an even side; "
            f"got {n_remove} of {side} x {side} tokens to remove"
        )
    odd = torch.arange(side, device=device) % 2
    removed = (odd[:, None] + odd[None, :]) > 0
    return removed.float().reshape(1, -1).expand(batch, -1)


def block_scores(uniform_BR4, side, n_remove):
    """Rectangles are laid one after the other; what an earlier one covers is removed first.

    BEiT (algorithm 1) stops at the count or short of it; here the last rectangle is trimmed from
    above, so that all samples keep equally many tokens. And the area is drawn
    between 16 and all that is to be removed, not what is left of it, so that a rectangle does not
    depend on those before it.
    """
    B, R, _ = uniform_BR4.shape
    u_area, u_aspect, u_top, u_left = uniform_BR4.double().unbind(-1)
    least = min(SMALLEST_AREA, n_remove)
    area = least + (u_area * (n_remove - least + 1)).floor()
    aspect = _aspects((u_aspect * 32).long())
    height = ((area * aspect).sqrt() + 0.5).floor().clamp(1, side)
    width = ((area / aspect).sqrt() + 0.5).floor().clamp(1, side)
    top, left = (u_top * (side - height + 1)).floor(), (u_left * (side - width + 1)).floor()

    place = torch.arange(side, device=area.device)
    in_rows_BRS = (place >= top[..., None]) & (place < (top + height)[..., None])
    in_columns_BRS = (place >= left[..., None]) & (place < (left + width)[..., None])
    # The first rectangle that covers a token, or R; written from the last to the first.
    first_BSS = uniform_BR4.new_full((B, side, side), R, dtype=torch.float32)
    for r in reversed(range(R)):
        inside = in_rows_BRS[:, r, :, None] & in_columns_BRS[:, r, None, :]
        first_BSS.masked_fill_(inside, r)
    return -first_BSS.flatten(1)


def _aspects(i):
    aspect = torch.full(i.shape, SMALLEST_ASPECT, dtype=torch.float64, device=i.device)
    for bit in range(5):
        aspect = torch.where((i >> bit) % 2 == 1, aspect * ASPECT_STEP ** (2**bit), aspect)
    return aspect
