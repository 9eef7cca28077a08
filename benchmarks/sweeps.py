"""What the sweeps measure: shapes of each op, as data. An entry is (dtype, shape or Case).

On a CPU they are what benchmarks measure anyway (MEASURED) and some smaller sizes. The first
entries matter most: a time budget cuts from the end.
"""

import importlib
from dataclasses import replace

GPU_ROWS = [256 * 4**i for i in range(6)]  # 256 .. 262144
WIDTHS = [64, 128, 256, 512, 768, 1024]
DTYPES = "bfloat16", "float32"


def info_nce(device):
    cases = importlib.import_module("sslops.ops.info_nce.cases")

    def symmetric(shape):
        case = cases.case_of(shape)
        return replace(case, name=f"symmetric {shape}", options={"symmetric": True})

    if device == "cpu":
        in_batch, both, queue = cases.MEASURED
        shapes = [f"{n}x128" for n in (1024, 256, 4096)] + ["2048x64", "2048x512", "256x4096x128"]
        small = [*shapes, symmetric("2048x128")]
        return [("float32", s) for s in (in_batch, queue, *small, both)]
    queues = [f"{n}x{m}x128" for m in (65536, 2**20) for n in (256, 4096)]
    first = [f"{n}x128" for n in GPU_ROWS] + queues + [symmetric(f"{n}x128") for n in GPU_ROWS]
    others = [f"{n}x{d}" for n in (4096, 65536, 16384, 1024, 262144) for d in WIDTHS if d != 128]
    both = [symmetric(f"{n}x{d}") for n in (65536, 4096) for d in (256, 512, 768)]
    half = [("bfloat16", s) for s in first + others + both]
    return half + [("float32", s) for s in (*first, *others[:5]) if not _above(s, 2**16)]


def _above(shape, rows):
    return isinstance(shape, str) and int(shape.split("x")[0]) > rows


def nt_xent(device):
    if device == "cpu":
        (headline,) = importlib.import_module("sslops.ops.nt_xent.cases").MEASURED
        return [("float32", s) for s in (headline, "1024x128", "256x128", "1024x512")]
    rows = [256 * 4**i for i in range(5)]  # pairs: 2N = 512 .. 131072
    first = [f"{n}x128" for n in rows]
    others = [f"{n}x{d}" for n in (16384, 2048) for d in WIDTHS if d != 128]
    return [("bfloat16", s) for s in first + others] + [("float32", s) for s in first]


def key_queue(device):
    if device == "cpu":
        return measured("key_queue")
    shapes = [f"{n}x{m}x128" for m in (65536, 2**20) for n in (256, 4096)] + ["256x65536x256"]
    return [(dtype, s) for s in shapes for dtype in DTYPES]


def masking(device):
    if device == "cpu":
        shapes = ["64x196x768", "64x196x1024", "restore-64x196x512", "8x1568x768"]
        return measured("masking") + [("float32", s) for s in shapes]
    # ViT-B, L and H (14 x 14 patches; H/14: 16 x 16), video: 8 x 14 x 14
    widths = ["256x196x768", "256x196x1024", "256x256x1280", "32x1568x768", "32x1568x1024"]
    shapes = [*widths, "restore-256x196x512", "restore-256x256x512", "restore-32x1568x384"]
    return [(dtype, s) for dtype in DTYPES for s in shapes]


def color_attention(device):
    cases = importlib.import_module("sslops.ops.color_attention.cases")
    if device == "cpu":
        small = dict(D=64, grid=(32, 32), frames=3)
        return measured("color_attention") + [
            ("float32", cases.Case("loss, 1 x 1024 x 3072", classes=16, B=1, **small)),
            ("float32", cases.Case("16 colours, 1 x 1024 x 3072", C=16, B=1, **small)),
            ("float32", cases.Case("propagation, 15 x 27", C=8, D=128, grid=(15, 27), frames=5,
                                   options={"radius": (None, 6, 6, 6, 6), "topk": 10,
                                            "temperature": 0.07})),
        ]  # fmt: skip
    # 480 x 854 pixels at stride 8; 5 context frames.
    video = dict(C=16, D=128, grid=(60, 107), frames=5)
    window = {"radius": (None, 12, 12, 12, 12), "temperature": 0.07}
    propagation = [
        cases.Case("480p, window and top 10", options={**window, "topk": 10}, **video),
        cases.Case("480p, window", options=window, **video),
        cases.Case("480p, everywhere", **video),
    ]
    batches = [f"loss-{b}x1024x3072x64x16" for b in (1, 8, 128)]
    return [(dtype, c) for dtype in DTYPES for c in (*cases.MEASURED, *propagation, *batches)]


def dino_loss(device):
    if device == "cpu":
        return measured("dino_loss")
    cases = importlib.import_module("sslops.ops.dino_loss.cases")
    crops = [f"{s}x2x{n}x65536" for s, n in ((10, 64), (2, 64), (10, 256))]
    patches = [cases.Case(f"{n} patches x {k}", 0, 1, n, k, weighted=True)
               for n in (512, 4096) for k in (8192, 65536)]  # fmt: skip
    return [(dtype, s) for dtype in DTYPES for s in (*crops, *patches)]


def koleo(device):
    if device == "cpu":
        return measured("koleo")
    shapes = [f"{n}x{d}" for d in (384, 1024) for n in (64, 1024, 4096)]
    return [(dtype, s) for dtype in DTYPES for s in shapes]


def sinkhorn_knopp(device):
    if device == "cpu":
        return measured("sinkhorn_knopp")
    shapes = [f"{b}x{k}" for k in (65536, 8192) for b in (128, 1024)] + ["4096x3000"]
    return [(dtype, s) for dtype in DTYPES for s in shapes]


def augment(device):
    if device == "cpu":
        return measured("augment")
    shapes = ["512x32x32-32", "4096x32x32-32", "64x256x256-224", "256x256x256-96"]
    return [(dtype, s) for dtype in DTYPES for s in shapes]


def measured(op):
    """What benchmarks of the op measure anyway."""
    cases = importlib.import_module(f"sslops.ops.{op}.cases")
    return [("float32", case) for case in cases.MEASURED]


def is_compiled(op, case, device):
    """Whether torch.compile takes part: it takes seconds for each shape."""
    cases = importlib.import_module(f"sslops.ops.{op}.cases")
    return case.D in (64, 128, 768) if device == "cuda" else case in cases.MEASURED


TINY = {
    "info_nce": ["40x16", "8x70x16"],
    "nt_xent": ["20x16"],
    "key_queue": ["4x16x8"],
    "masking": ["2x16x8", "restore-2x16x8"],
    "color_attention": ["loss-1x12x20x16x4", "1x12x20x16x3"],
    "dino_loss": ["4x2x3x40"],
    "koleo": ["12x16"],
    "sinkhorn_knopp": ["12x40"],
    "augment": ["2x12x10-8"],
}


def entries(op, device, tiny=False):
    """[(dtype name, Case)] of an op's sweep."""
    cases = importlib.import_module(f"sslops.ops.{op}.cases")
    listed = [("float32", shape) for shape in TINY[op]] if tiny else SWEEPS[op](device)
    return [
        (dtype, cases.case_of(shape) if isinstance(shape, str) else shape)
        for dtype, shape in listed
    ]


# A short sweep takes the first entry of each, in this order.
SWEEPS = {
    "info_nce": info_nce,
    "nt_xent": nt_xent,
    "key_queue": key_queue,
    "masking": masking,
    "color_attention": color_attention,
    "dino_loss": dino_loss,
    "sinkhorn_knopp": sinkhorn_knopp,
    "koleo": koleo,
    "augment": augment,
}
