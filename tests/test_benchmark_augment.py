"""The peers of augment make the views that they are said to make."""

import pytest
import torch

from benchmarks.baselines import augment
from benchmarks.peers import Peers
from sslops.ops.augment.cases import Case

pytest.importorskip("torchvision")

# Nothing in these is left to chance: the whole image, mirrored or not, grey or not.
WHOLE = dict(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), jitter=0.0)
CERTAIN = [
    Case("as it is", 3, 20, 20, 20, options={**WHOLE, "flip": 0.0, "grayscale": 0.0}),
    Case("mirrored and grey", 3, 20, 20, 20, options={**WHOLE, "flip": 1.0, "grayscale": 1.0}),
    Case("shrunk", 3, 40, 40, 20, options={**WHOLE, "flip": 1.0, "grayscale": 0.0}),
    Case("blurred", 3, 40, 40, 40,
         options={**WHOLE, "flip": 0.0, "grayscale": 0.0, "blur": 1.0, "blur_sigma": (0.7, 0.7)}),
]  # fmt: skip
LEVEL = 1 / 255 / 0.25  # of grey, in units of the case's std


@pytest.mark.parametrize("case", CERTAIN, ids=lambda c: c.name)
def test_peers_make_the_same_views_where_nothing_is_left_to_chance(case):
    tensors = augment.inputs(case, "cpu", torch.float32)
    expected = Peers("augment").ours(None, case).loss(*tensors)
    seen = 0
    for variant in augment.baselines(case, "cpu", torch.float32)[1:]:
        if variant.absent or (case.name == "shrunk" and "no antialiasing" in variant.name):
            continue
        views = variant.loss(*tensors)
        seen += 1
        # torchvision rounds to bytes after each of its steps; kornia's grey has other digits.
        assert (views - expected).abs().max() < 1.6 * LEVEL, variant.name
    assert seen >= 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_both_sides_make_views_of_the_size_and_dtype_that_are_asked_for(dtype):
    case = Case("", 3, 20, 24, 16, options=dict(brightness=0.4, hue=0.1, blur=0.5))
    tensors = augment.inputs(case, "cpu", dtype)
    for variant in [Peers("augment").ours(None, case), *augment.baselines(case, "cpu", dtype)[1:]]:
        if not variant.absent:
            views = variant.loss(*tensors)
            assert views.shape == (3, 3, 16, 16) and views.dtype == dtype, variant.name


def test_a_wrong_view_is_not_timed(monkeypatch):
    case = Case("", 3, 20, 24, 16)
    right = augment.ours

    def wrong(op, backend, case):
        variant = right(op, backend, case)
        by = 0.02 * LEVEL * (backend != "reference")
        return augment.Variant("sslops", lambda *tensors: variant.loss(*tensors) + by)

    augment.check("augment", None, None, None, case, "cpu", torch.float32)
    monkeypatch.setattr(augment, "ours", wrong)
    with pytest.raises(SystemExit, match="no speed is measured"):
        augment.check("augment", None, None, None, case, "cpu", torch.float32)


def test_threads_are_given_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert augment.on_one_thread(torch.get_num_threads)() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
