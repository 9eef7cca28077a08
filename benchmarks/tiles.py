"""Tiles of the tiled engine: those to try, and the kernels that run with them."""

import torch
import torch.nn.functional as F

from benchmarks.measure import Variant
from sslops import triton_launch, tuning

# ROWS, COLS, num_warps, num_stages; what does not fit a chip is listed as absent.
CANDIDATES = [
    (64, 64, 4, 2), (64, 64, 4, 3), (64, 64, 8, 2), (64, 32, 4, 2), (64, 32, 8, 2),
    (64, 128, 4, 2), (64, 128, 8, 2), (128, 64, 4, 2), (128, 64, 8, 2), (128, 64, 8, 3),
    (128, 128, 8, 2), (128, 32, 8, 2),
]  # fmt: skip
SQUARE = [tile for tile in CANDIDATES if tile[0] == tile[1]]  # what the triangle can take
WIDTHS = (64, 128, 256)


def tile_every_listed_width():
    """Lift the table's choice of engine in this process, so that both can be timed."""
    for table in tuning.TABLES.values():
        for by_kind in table["tiled_up_to"].values():
            for kind in by_kind:
                by_kind[kind] = max(table["tiles"]["rows"][kind])


def launched(kernel, q, k):
    """The function that launches a kernel of the tiled engine over rows q and k, bf16."""
    from sslops.ops.info_nce import _triton as info_nce
    from sslops.ops.nt_xent import _triton as nt_xent

    (rows_q, rows_k), _ = triton_launch.prepare_rows([q[None], k[None]], True)
    options = dict(normalize=True, fixed=True)
    upstream = torch.full((1, len(q)), 1 / len(q), device=q.device)
    stats = torch.rand(3, len(q), device=q.device)
    if kernel == "forward":
        return lambda: info_nce.softmax_rows(rows_q, rows_k, rows_k, 0.1, key_sum=True, **options)
    if kernel == "gradient":
        return lambda: triton_launch.pair_sums(
            rows_k, rows_q, stats, stats, upstream, 0.1, offset=0, **options
        )
    return lambda: nt_xent.triangle_rows(rows_q, 0.1, 1)


KERNELS = {"forward": "rows", "gradient": "rows", "triangle": "triangle"}


def with_tile(table, kernel, width, tile, function):
    """The function, run with this tile in the table."""

    def run():
        by_width = triton_launch.TILES[table][kernel]["half"]
        before = by_width[width]
        by_width[width] = tile
        try:
            function()
        finally:
            by_width[width] = before

    return run


def questions(device, tiny):
    """(case, variants): every candidate tile for the kernels of the tiled engine in bf16."""
    n = 64 if tiny else 16384
    for width in (32,) if tiny else WIDTHS:
        q, k = (F.normalize(torch.randn(n, width, device=device)).to(torch.bfloat16)
                for _ in range(2))  # fmt: skip
        table = tuning.table_of(q)
        for name, kernel in KERNELS.items():
            candidates = SQUARE if kernel == "triangle" else CANDIDATES
            function = launched(name, q, k)
            yield f"{name}, {n} rows, D = {width}", [
                Variant(" x ".join(map(str, tile)),
                        with_tile(table, kernel, width, tile, function))
                for tile in (candidates[:2] if tiny else candidates)
            ]  # fmt: skip
