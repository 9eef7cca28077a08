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
