"""Batches do not depend on workers, processes or interruptions."""

import gc
import multiprocessing
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from PIL import Image

from sslzoo import backbones
from sslzoo.data import DataError, ImageData, open_data
from sslzoo.evaluation import extract
from sslzoo.loader import ViewLoader, channel_statistics
from sslzoo.views import HeldViews, ViewSpec

COLOUR = ViewSpec(16, brightness=0.4, hue=0.1, blur=0.5)
GREY = ViewSpec(16, rotate=15, brightness=0.4, grayscale=0, mean=(0.3,), std=(0.37,))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twenty images of different sizes in two classes."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for i in range(20):
        path = root / "ab"[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(exist_ok=True)
        pixels = generator.integers(0, 256, (20 + i, 40 - i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return root


def collect(data, specs, first_step=0, epoch=1, **options):
    options = {"batch_size": 8, "seed": 3, **options}
    return list(ViewLoader(data, specs, **options).epoch(epoch, first_step))


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.indices, b.indices) and torch.equal(a.labels, b.labels)
        assert all(torch.equal(x, y) for x, y in zip(a.views, b.views, strict=True))


def test_an_epoch_shows_every_sample_once_in_an_order_of_its_own():
    data = open_data("digits", "test")
    loader = ViewLoader(data, [GREY], batch_size=50, seed=0, drop_last=False)
    orders = [torch.cat([batch.indices for batch in loader.epoch(e)]) for e in (0, 1, 0)]
    assert loader.steps_per_epoch == 8
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(360))
    assert torch.equal(orders[0], orders[2])
    # Orders of two epochs share about one position, and neighbours do not stay neighbours.
    assert (orders[0] == orders[1]).sum() < 10
    assert abs(np.corrcoef(orders[0][1:], orders[0][:-1])[0, 1]) < 4 / np.sqrt(360)
    assert len(list(ViewLoader(data, [GREY], batch_size=50, seed=0).epoch(0))) == 7


def test_views_are_those_of_the_samples_and_differ_between_views_and_epochs():
    data = open_data("digits", "test")
    batch = collect(data, [GREY, GREY], batch_size=32)[2]
    assert torch.equal(batch.labels, data.labels[batch.indices])
    made, _, _ = HeldViews(data.images, [GREY, GREY], seed=3)[1, batch.indices.numpy()]
    assert all(map(torch.equal, batch.views, made))
    assert not torch.equal(*batch.views)
    later = {int(i): v for b in collect(data, [GREY], epoch=2)
             for i, v in zip(b.indices, *b.views, strict=True)}  # fmt: skip
    pairs = zip(batch.indices.tolist(), batch.views[0], strict=True)
    same = [torch.equal(later[i], view) for i, view in pairs if i in later]
    assert len(same) > 20 and not any(same)


def test_images_on_disk_are_the_same_for_any_number_of_workers(folder):
    data = open_data(folder)
    assert data.images is None
    alone = collect(data, [COLOUR, COLOUR])
    assert alone[0].views[0].shape == (8, 3, 16, 16) and len(alone) == 2
    assert_equal(alone, collect(data, [COLOUR, COLOUR], workers=2))


@pytest.mark.parametrize("maker", ["sslops", "torchvision"])
def test_images_in_memory_are_the_same_for_any_number_of_workers(maker):
    data = open_data("digits", "test").subset(range(20))
    alone = collect(data, [GREY, GREY], maker=maker)
    assert_equal(alone, collect(data, [GREY, GREY], maker=maker, workers=2))


def test_a_worker_shares_the_images_in_memory():
    views = HeldViews(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), [GREY], seed=0)
    assert not views.images.is_shared()
    ForkingPickler.dumps(views)  # as a process that is not forked is sent them
    assert views.images.is_shared()


def test_torchvision_makes_the_same_batches_within_a_grey_level(folder):
    for data, spec in ((open_data(folder), COLOUR), (open_data("digits", "test"), GREY)):
        ours, theirs = (
            collect(data, [spec], maker=maker)[0] for maker in ("sslops", "torchvision")
        )
        assert torch.equal(ours.indices, theirs.indices)
        error = (ours.views[0] - theirs.views[0]).abs() * max(spec.std)
        # Crops of files are whole grey levels, which contrast and brightness then spread.
        assert error.max() < (3 if data.images is None else 1) / 255
        assert error.median() < 0.5 / 255


def test_workers_serve_several_epochs_and_one_left_early(folder):
    loader = ViewLoader(open_data(folder), [COLOUR], batch_size=4, seed=3, workers=1)
    next(loader.epoch(0))
    assert_equal(list(loader.epoch(1)), collect(open_data(folder), [COLOUR], batch_size=4))


def test_a_batch_made_here_leaves_workers_where_they_are(folder):
    """As pictures need one while accumulation is within the next epoch."""
    loader = ViewLoader(open_data(folder), [COLOUR], batch_size=4, seed=3, workers=1)
    whole = collect(open_data(folder), [COLOUR], batch_size=4)
    batches = loader.epoch(1)
    found = [next(batches)]
    assert_equal([next(loader.epoch(0, here=True))],
                 collect(open_data(folder), [COLOUR], epoch=0, batch_size=4)[:1])  # fmt: skip
    assert_equal(found + list(batches), whole)


@pytest.mark.parametrize("is_in_a_cycle", [False, True])
def test_workers_end_with_their_loader(folder, is_in_a_cycle):
    """By themselves: the garbage collector alone made torch wait 5 s for each, and then kill it."""
    before = set(multiprocessing.active_children())
    loader = ViewLoader(open_data(folder), [COLOUR], batch_size=4, workers=2)
    next(loader.epoch(0))
    workers = set(multiprocessing.active_children()) - before
    if is_in_a_cycle:
        loader.itself = loader
    del loader
    if is_in_a_cycle:
        gc.collect()
    assert [worker.exitcode for worker in workers] == [0, 0]


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("drop_last", [True, False])
def test_processes_share_the_batches_of_one(folder, world_size, drop_last):
    for data, spec in ((open_data(folder), COLOUR), (open_data("digits", "test"), GREY)):
        whole = collect(data, [spec], drop_last=drop_last)
        shares = [
            collect(data, [spec], drop_last=drop_last, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        for step, batch in enumerate(whole):
            indices = torch.cat([share[step].indices for share in shares])
            views = torch.cat([share[step].views[0] for share in shares])
            assert torch.equal(indices, batch.indices)
            assert torch.equal(views, batch.views[0])
            sizes = [len(share[step].indices) for share in shares]
            assert max(sizes) - min(sizes) <= 1


def test_no_process_is_left_with_an_empty_batch():
    data = open_data("digits", "test").subset(range(18))
    counts = [
        len(collect(data, [GREY], drop_last=False, rank=rank, world_size=4)) for rank in range(4)
    ]
    assert counts == [2] * 4, "the last two samples are too few for four processes"


def test_starting_at_a_step_is_having_consumed_those_before(folder):
    for data, spec in ((open_data(folder), COLOUR), (open_data("digits", "test"), GREY)):
        whole = collect(data, [spec], batch_size=4)
        assert_equal(whole[2:], collect(data, [spec], first_step=2, batch_size=4))


def test_loading_leaves_the_global_random_state_alone(folder):
    encoder = backbones.build("convnet4", image_size=16)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    collect(open_data(folder), [COLOUR], workers=1)
    collect(open_data("digits", "test"), [GREY])
    data = open_data(folder)
    extract(encoder, data, 16, (0.5,) * 3, (0.5,) * 3)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])


@pytest.mark.gpu
def test_views_on_a_gpu_equal_those_on_the_cpu(folder):
    for data, spec in ((open_data(folder), COLOUR), (open_data("digits", "test"), GREY)):
        for a, b in zip(collect(data, [spec]), collect(data, [spec], device="cuda"), strict=True):
            assert b.views[0].is_cuda and b.labels.is_cuda and torch.equal(a.indices, b.indices)
            # Normalised values reach 3; float32 sums in another order differ in the last digits.
            torch.testing.assert_close(b.views[0].cpu(), a.views[0], atol=1e-4, rtol=1e-4)


@pytest.mark.gpu
def test_nothing_waits_for_the_device_between_two_batches():
    batches = ViewLoader(open_data("digits"), [GREY], batch_size=64, device="cuda").epoch(0)
    next(batches)
    torch.cuda.set_sync_debug_mode("error")
    try:
        next(batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_seed_changes_order_and_views():
    data = open_data("digits", "test")
    one, two = (collect(data, [GREY], seed=seed)[0] for seed in (0, 1))
    assert not torch.equal(one.indices, two.indices)


def test_images_in_memory_larger_than_the_view_are_shrunk_without_aliasing():
    board = (torch.arange(64)[:, None] + torch.arange(64)) % 2 * 255
    data = ImageData("boards", images=board.to(torch.uint8).expand(4, 3, 64, 64))
    spec = ViewSpec(16, crop_scale=(1, 1), crop_ratio=(1, 1), grayscale=0, mean=(0, 0, 0),
                    std=(1, 1, 1))  # fmt: skip
    batch = collect(data, [spec], batch_size=4)[0]
    assert batch.labels is None
    assert (batch.views[0] - 0.5).abs().max() < 0.05


def test_waiting_is_counted(folder):
    loader = ViewLoader(open_data(folder), [COLOUR], batch_size=4)
    assert loader.wait_seconds == 0
    list(loader.epoch(0))
    assert loader.wait_seconds > 0


def test_settings_that_cannot_work_are_refused(folder):
    data = open_data("digits", "test")
    with pytest.raises(DataError, match="batch_size 512 exceeds the 360 images of digits/test"):
        ViewLoader(data, [GREY], batch_size=512)
    assert len(collect(data, [GREY], batch_size=512, drop_last=False)[0].indices) == 360
    with pytest.raises(ValueError, match="positive multiple of the 3 processes; got 8"):
        ViewLoader(data, [GREY], batch_size=8, world_size=3)
    with pytest.raises(ValueError, match="1 values for digits/test"):
        ViewLoader(data, [COLOUR], batch_size=8)


@pytest.mark.parametrize("workers", [0, 1])
def test_corrupt_image_is_named_without_a_traceback(tmp_path, workers):
    for i in range(4):
        Image.new("RGB", (20 + i, 20)).save(tmp_path / f"{i}.png")
    data = open_data(tmp_path)
    (tmp_path / "2.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"2\.png is not a readable image") as caught:
        collect(data, [COLOUR], batch_size=4, workers=workers)
    assert "\n" not in str(caught.value)


def test_channel_statistics_equal_numpys(folder):
    digits = open_data("digits")
    mean, std = channel_statistics(digits)
    pixels = digits.images.numpy() / 255
    np.testing.assert_allclose([*mean, *std], [pixels.mean(), pixels.std()], rtol=1e-9)

    data = open_data(folder)
    pixels = np.concatenate([data.load(i).flatten(1).numpy() / 255 for i in range(20)], 1)
    mean, std = channel_statistics(data)
    np.testing.assert_allclose(mean, pixels.mean(1), rtol=1e-9)
    np.testing.assert_allclose(std, pixels.std(1), rtol=1e-9)


def test_real_photographs_train_from_disk(shared_data):
    data = open_data(shared_data / "imagenette224", "test", memory_limit_mib=10).subset(range(16))
    batch = collect(data, [ViewSpec(64, brightness=0.4)], workers=0)[0]
    view = batch.views[0]
    assert view.shape == (8, 3, 64, 64) and view.isfinite().all()
    assert 0.5 < view.std() < 2, "normalised photographs"
