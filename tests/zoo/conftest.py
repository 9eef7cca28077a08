"""Real data, where it lies beside the repository, and one thread for small tensors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from threadpoolctl import threadpool_limits


@pytest.fixture(scope="session")
def shared_data():
    """The folder shared/data beside the repository or above it; skips where there is none."""
    for parent in Path(__file__).resolve().parents:
        if (parent / "shared" / "data").is_dir():
            return parent / "shared" / "data"
    pytest.skip("no folder shared/data with real images beside the repository")


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder of smooth colour images, 40 to train and 10 to test."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 10)):
        for i in range(count):
            path = folder / split / "ab"[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 255, (5, 5, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((32, 32), Image.BICUBIC).save(path)
    return folder


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads wait for one another on busy machines; tensors this small gain nothing from them.

    For a module, not a test: what a module's fixtures train must have the bits of its tests.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="module")
def no_t_sne():
    """A run ends with a t-SNE of its features, for longer than the runs of these tests train.

    test_training.py draws the one that it looks at.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sslzoo.watch.plot_embedding", lambda *args, **options: None)
        yield


@pytest.fixture
def make_subject(tmp_path):
    """A function that makes a small Subject: convnet4 on a few handwritten digits."""
    from sslzoo.evaluate import Common, Subject

    def make(source="convnet4", **options):
        defaults = dict(data="digits", channels=1, image_size=8, device="cpu", max_train=120,
                        max_test=60, out=str(tmp_path / "out"))  # fmt: skip
        return Subject(source, Common(**(defaults | options)))

    return make


@pytest.fixture
def judge(make_subject):
    """A function that runs a protocol on a small Subject; {metric: value} and the Result."""
    from sslzoo import registry
    from sslzoo.evaluate import evaluate

    def run(name, subject=None, **options):
        config = registry.evaluator(name).Config(**options)
        result = evaluate(name, subject or make_subject(), config)
        return {row.metric: row.value for row in result.rows}, result

    return run
