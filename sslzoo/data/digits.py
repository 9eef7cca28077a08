"""The 1,797 handwritten digits of scikit-learn: 8 x 8 grey images, nothing to download."""

import numpy as np
import torch

from sslzoo.data.image_data import ImageData, check_split

TEST_SHARE = 0.2


def open_digits(split="train", **_):
    """The digits; `train` and `test` are a fixed stratified split of 1,437 and 360."""
    # A fifth of the time in which a command starts, and most open other data.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    check_split("digits", split, ("train", "test"))
    digits = load_digits()
    # 17 levels, 0 to 16, to 8 bits.
    images = torch.from_numpy(np.rint(digits.images * 255 / 16).astype(np.uint8))[:, None]
    data = ImageData(
        f"digits/{split}",
        images=images,
        labels=torch.from_numpy(digits.target.astype(np.int64)),
        class_names=[str(name) for name in digits.target_names],
    )
    train, test = train_test_split(
        np.arange(len(data)), test_size=TEST_SHARE, stratify=digits.target, random_state=0
    )
    return data.subset(np.sort(train if split == "train" else test))
