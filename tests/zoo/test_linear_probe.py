"""Linear probes against scikit-learn and torch's SGD; draws of labels; features; the picture."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.linear_model import LogisticRegression

from sslzoo import backbones
from sslzoo.data import DataError, ImageData, open_data
from sslzoo.evaluation import (
    embed,
    extract,
    few_labels_probe,
    linear_probe,
    plot_embedding,
    sgd_probe,
)
from sslzoo.evaluation.collapse import effective_rank, feature_std
from sslzoo.evaluation.embedding import sample
from sslzoo.evaluation.linear_probe import draw_labelled, hold_out, prepare
from sslzoo.evaluation.sgd_probe import Heads


@pytest.fixture(scope="module")
def digits():
    """Raw pixels and labels of train and test."""
    splits = [open_data("digits", split) for split in ("train", "test")]
    return [v for data in splits for v in (data.images.flatten(1).float(), data.labels)]


def blobs(count, classes=4, noise=0.8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    return F.one_hot(labels, 8) + noise * torch.randn(count, 8, generator=generator), labels


def test_full_probe_equals_scikit_learns(digits):
    x, y, u, v = digits
    result = linear_probe(*digits, strengths=(10.0,))
    x, u = prepare(x, u)
    model = LogisticRegression(C=10.0, max_iter=2000, tol=1e-6).fit(x, y)
    assert abs(result.top1 - model.score(u, v)) <= 1 / 360
    assert result.chosen == {"C": 10.0} and result.top5 > result.top1 > 0.95


def test_probe_is_deterministic_and_chooses_without_the_test_set(digits):
    x, y, u, v = digits
    first = linear_probe(*digits)
    assert first == linear_probe(*digits)
    other = linear_probe(x, y, u[:50], v[:50].flip(0))
    assert other.chosen == first.chosen and other.held_out == first.held_out
    assert first.top1 > 0.955 and first.held_out > 0.95


def test_held_out_samples_are_a_stratified_tenth():
    labels = np.arange(200) % 4
    fitted, held_out = hold_out(labels, 0)
    assert len(held_out) == 20 and not set(fitted) & set(held_out)
    assert np.bincount(labels[held_out]).tolist() == [5] * 4


def test_class_numbers_need_not_be_dense_nor_all_tested():
    x, y = blobs(200, noise=0.4)
    sparse = torch.tensor([0, 3, 7, 9])[y]
    keep = sparse != 3
    for probe in (linear_probe, sgd_probe):
        dense = probe(x, y, x[keep], y[keep])
        assert probe(x, sparse, x[keep], sparse[keep]).top1 == dense.top1 > 0.8
    two = linear_probe(x[y < 2], y[y < 2], x[y < 2], y[y < 2])
    assert two.top1 > 0.8 and two.top5 == 1


def test_shuffled_labels_give_chance(digits):
    x, y, u, v = digits
    shuffled = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(1))]
    assert few_labels_probe(x, shuffled, u, v, 10).mean < 0.2


def test_few_labels_on_raw_digits(digits):
    # Logistic regression on pixels: about 65 % at one label a class and 90 % at ten.
    one, ten = (few_labels_probe(*digits, k) for k in (1, 10))
    assert 0.55 < one.mean < 0.75 and 0.86 < ten.mean < 0.93
    assert one.mean == pytest.approx(np.mean(one.accuracies)) and len(one.accuracies) == 5
    assert one.std == pytest.approx(np.std(one.accuracies)) and one.std > 0


def test_draws_are_balanced_fixed_and_the_same_for_all_features(digits):
    x, y, u, v = digits
    pixels = few_labels_probe(x, y, u, v, 3, draws=4)
    noise = few_labels_probe(torch.randn_like(x), y, u, v, 3, draws=4)
    for ours, theirs in zip(pixels.indices, noise.indices, strict=True):
        assert np.array_equal(ours, theirs)
        assert y[ours].bincount().tolist() == [3] * 10
    assert len({tuple(rows) for rows in pixels.indices}) == 4
    assert not np.array_equal(draw_labelled(y.numpy(), 3, 0), draw_labelled(y.numpy(), 3, 1))


def test_sgd_step_equals_torchs():
    x, y = torch.randn(32, 8), torch.randint(0, 4, (32,))
    heads = Heads([(False, 0.3, 0.1), (True, 1.0, 0.0)], 8, 4, batch_size=128, device="cpu")
    twin = torch.nn.Linear(8, 4)
    for value in twin.parameters():
        torch.nn.init.zeros_(value)
    groups = [{"params": [twin.weight], "weight_decay": 0.1}, {"params": [twin.bias]}]
    optimizer = torch.optim.SGD(groups, lr=0.3 * 128 / 256, momentum=0.9, nesterov=True)
    for _ in range(5):
        heads.learn(torch.stack([x, 5 * x]), y, 1.0)
        optimizer.zero_grad()
        F.cross_entropy(twin(x), y).backward()
        optimizer.step()
    torch.testing.assert_close(heads.weight[0], twin.weight.T)
    torch.testing.assert_close(heads.bias[0, 0], twin.bias)


def test_sgd_probe_agrees_with_logistic_regression(digits):
    result = sgd_probe(*digits, epochs=20)
    assert abs(result.top1 - linear_probe(*digits).top1) < 0.03
    assert set(result.chosen) == {"standardised", "learning_rate", "weight_decay"}
    assert result == sgd_probe(*digits, epochs=20)


@pytest.mark.parametrize("probe", [linear_probe, sgd_probe])
def test_unusable_labels_are_refused_in_words(probe):
    x, y = blobs(20)
    with pytest.raises(DataError, match="needs labels; the data has none"):
        probe(x, None, x, None)
    with pytest.raises(DataError, match="at least two classes"):
        probe(x, torch.zeros(20, dtype=torch.int64), x, y)
    with pytest.raises(DataError, match="two samples of each class or more; got 1"):
        probe(x[:4], y[:4], x, y)


def test_too_few_samples_for_the_labels_asked_are_refused():
    x, y = blobs(20)
    with pytest.raises(DataError, match="class 0 has 5 samples; 6 labels are asked"):
        few_labels_probe(x, y, x, y, 6)


def test_extraction_freezes_the_encoder_and_restores_it():
    data = open_data("digits", "test")
    model = backbones.build("convnet4", image_size=16, channels=1)
    model.blocks[0].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    features, labels = extract(model, data, 16, (0.3,), (0.4,), batch_size=100)
    assert features.shape == (360, 128) and features.dtype == torch.float32
    assert not features.requires_grad and torch.equal(labels, data.labels)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    one_by_one, _ = extract(model, data, 16, (0.3,), (0.4,), batch_size=1)
    torch.testing.assert_close(one_by_one, features, atol=1e-5, rtol=1e-5)
    inner, _ = extract(model, data, 16, (0.3,), (0.4,), layer="blocks.1")
    assert inner.shape == (360, 64)


def test_extraction_from_disk_equals_that_from_memory(tmp_path):
    generator = np.random.default_rng(0)
    for i in range(6):
        pixels = generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    model = backbones.build("convnet4", image_size=16)
    sets = [open_data(tmp_path, memory_limit_mib=limit) for limit in (0, 1)]
    assert [data.images is None for data in sets] == [True, False]
    disk, memory = (extract(model, d, 16, (0.5,) * 3, (0.5,) * 3, batch_size=4)[0] for d in sets)
    torch.testing.assert_close(disk, memory)

    (tmp_path / "3.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"3\.png is not a readable image"):
        extract(model, sets[0], 16, (0.5,) * 3, (0.5,) * 3, workers=1)


def test_collapse_meters_on_known_matrices():
    spread = F.normalize(torch.randn(4000, 64))
    assert feature_std(spread) == pytest.approx(1 / 8, rel=0.01)
    assert feature_std(torch.ones(100, 64)) == pytest.approx(0, abs=1e-6)
    assert effective_rank(torch.eye(16)) == pytest.approx(16, rel=1e-4)
    assert effective_rank(torch.ones(50, 16)) == pytest.approx(1, rel=1e-4)
    # Singular values 3 and 1: shares 3/4 and 1/4.
    expected = np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
    assert effective_rank(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(expected, rel=1e-4)
    assert effective_rank(torch.zeros(5, 3)) == 0


def test_picture_separates_classes_and_keeps_its_coordinates(tmp_path):
    x, y = blobs(150, noise=0.1)
    xy = plot_embedding(x, y, tmp_path / "tsne.png", class_names=list("abcd"), perplexity=10)
    with Image.open(tmp_path / "tsne.png") as image:
        assert image.format == "PNG" and len(image.convert("RGB").getcolors(2**24)) > 10
    saved = np.load(tmp_path / "tsne.npz")
    assert np.array_equal(saved["xy"], xy) and np.array_equal(saved["labels"], y)
    distance = torch.cdist(torch.tensor(xy), torch.tensor(xy)).fill_diagonal_(torch.inf)
    assert (y[distance.argmin(1)] == y).float().mean() > 0.95
    assert np.array_equal(embed(x, perplexity=10), xy), "the same seed gives the same picture"


def test_picture_without_labels_and_of_few_points(tmp_path):
    xy = plot_embedding(torch.randn(9, 4), None, tmp_path / "few.png")
    assert xy.shape == (9, 2) and np.isfinite(xy).all() and (tmp_path / "few.png").exists()
    with pytest.raises(DataError, match="four points or more; got 3"):
        embed(torch.randn(3, 4))


def test_points_of_a_picture_keep_the_classes_proportions():
    labels = torch.tensor([0] * 600 + [1] * 300 + [2] * 100)
    rows = sample(labels, 1000, 100, seed=0)
    assert len(set(rows.tolist())) == 100
    counts = labels[rows].bincount().tolist()
    assert all(abs(a - b) <= 1 for a, b in zip(counts, [60, 30, 10], strict=True))


def test_single_class_data_can_be_opened_but_not_judged():
    images = torch.zeros(8, 3, 16, 16, dtype=torch.uint8)
    data = ImageData("one", images=images, labels=torch.zeros(8, dtype=torch.int64))
    with pytest.raises(DataError, match="at least two classes"):
        few_labels_probe(torch.randn(8, 4), data.labels, torch.randn(8, 4), data.labels, 1)
