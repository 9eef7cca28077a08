"""Random views on a CUDA device, at size: values, graphs, waits, memory."""

import pytest
import torch

import sslops
from sslops.ops.augment.cases import CASES, EVERYTHING, MEASURED, Case

pytestmark = pytest.mark.gpu

LEVEL = 1 / 255
# Of a view in units of 0 to 1, besides the rounding to half precision.
ERROR = {torch.float32: 0.01 * LEVEL, torch.float16: 2**-11 * 4, torch.bfloat16: 2**-8 * 4}
SMOOTH = {**EVERYTHING, "solarize": 0.0, "posterize": 0.0}


@pytest.mark.parametrize("dtype", ERROR, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_views_agree_with_the_specification(case, dtype):
    args, options = case.inputs("cuda", dtype)
    found = sslops.augment(*args, **options, backend="triton")
    expected = sslops.augment(*args, **{**options, "dtype": torch.float64}, backend="reference")
    torch.testing.assert_close(found.double(), expected, atol=ERROR[dtype] / 0.25, rtol=0)


@pytest.mark.parametrize("size", [96, 224])
def test_large_views_of_many_tiles_agree(size):
    args, options = Case("", 4, 301, 250, size, options=SMOOTH).inputs("cuda")
    found = sslops.augment(*args, **options, backend="triton").double()
    expected = sslops.augment(*args, **{**options, "dtype": torch.float64}, backend="reference")
    torch.testing.assert_close(found, expected, atol=0.01 * LEVEL / 0.25, rtol=0)


def test_a_batch_in_several_pieces_equals_its_samples_alone():
    args, options = Case("", 130, 64, 64, 224, options=EVERYTHING).inputs("cuda")
    whole = sslops.augment(*args, **options, backend="triton")
    images, drawn, size = args
    for b in (0, 54, 55, 129):
        alone = {name: value[b : b + 1] for name, value in drawn.items()}
        part = sslops.augment(images[b : b + 1], alone, size, **options, backend="triton")
        assert torch.equal(part[0], whole[b])


def views_of(case, images, index, epoch):
    drawn = sslops.sample_parameters(case.spec, 5, epoch, index, height=case.H, width=case.W)
    return sslops.augment(images, drawn, case.size, blur_kernel=case.spec.blur_kernel)


def test_nothing_waits_for_the_device():
    case = Case("", 8, 40, 40, 33, options=EVERYTHING)
    images, index = case.images("cuda"), torch.arange(8, device="cuda")
    views_of(case, images, index, 0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        views_of(case, images, index, 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_graph_replays_with_new_images_and_epoch():
    case = Case("", 8, 40, 40, 33, options=EVERYTHING)
    images, index = case.images("cuda"), torch.arange(8, device="cuda")
    epoch = torch.zeros((), dtype=torch.int64, device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        views_of(case, images, index, epoch)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = views_of(case, images, index, epoch)
    epoch.fill_(3)
    images.copy_(case.images("cuda", seed=1))
    graph.replay()
    assert torch.equal(found, views_of(case, images, index, 3))


def test_impossible_parameters_read_nothing_outside_the_image():
    images = torch.zeros(4, 3, 16, 16, dtype=torch.uint8, device="cuda")
    bad = torch.tensor([-1e9, 1e9, float("nan"), float("inf")], device="cuda")
    drawn = {"crop": bad[:, None].repeat(1, 4), "affine": bad[:, None, None].repeat(1, 2, 3),
             "order": bad[:, None].repeat(1, 4), "posterize": bad, "blur_sigma": bad}  # fmt: skip
    sslops.augment(images, drawn, 16, backend="triton")
    torch.cuda.synchronize()


def test_no_memory_grows_with_a_blurred_batch():
    case = Case("", 200, 224, 224, 224, options=MEASURED[1].options)
    args, options = case.inputs("cuda", torch.bfloat16)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    views = sslops.augment(*args, **options, backend="triton")
    above = torch.cuda.max_memory_allocated() - before - views.numel() * 2
    assert above < 2 * 4 * 2**23 + (4 << 20)
