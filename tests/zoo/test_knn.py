"""Nearest neighbours against scikit-learn and hand-worked votes; the rules of edge cases."""

import importlib
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier

from sslzoo.data import DataError, open_data
from sslzoo.evaluation import knn_accuracy

# The package has a function of this name too in reach; this is the module.
knn = importlib.import_module("sslzoo.evaluation.knn")


def blobs(count, classes=7, width=16, noise=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(0, classes, (count,), generator=generator)
    return centres[labels] + noise * torch.randn(count, width, generator=generator), labels


@pytest.mark.parametrize("k", [1, 5, 50])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_equals_scikit_learn(k, temperature):
    (x, y), (u, v) = blobs(300), blobs(200, seed=1)
    model = KNeighborsClassifier(
        k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / temperature)
    )
    expected = model.fit(x.double(), y).score(u.double(), v)
    ours = knn_accuracy(x, y, u, v, k=k, temperature=temperature)
    assert ours.top1[k] == expected and 0.3 < expected < 1

    scores = model.predict_proba(u.double())
    top5 = np.argsort(-scores, 1, kind="stable")[:, :5]
    assert ours.top5[k] == (top5 == v.numpy()[:, None]).any(1).mean()


def test_hand_worked_votes():
    # Cosines to the query 1, 0.8, 0.6; classes 0, 1, 1; temperature 1: e < e^0.8 + e^0.6.
    train = torch.tensor([[2.0, 0.0], [0.8, 0.6], [3.0, 4.0]])
    query = torch.tensor([[5.0, 0.0]])
    labels, one = torch.tensor([0, 1, 1]), torch.tensor([1])
    assert knn_accuracy(train, labels, query, one, k=(1, 2, 3), temperature=1).top1 == {
        1: 0.0, 2: 0.0, 3: 1.0
    }  # fmt: skip
    similarity = F.normalize(query) @ F.normalize(train).T
    scores = knn.votes(similarity, labels[None], 2, 1.0) * math.e
    expected = torch.tensor([[math.e, math.exp(0.8) + math.exp(0.6)]])
    torch.testing.assert_close(scores, expected)


def test_small_temperature_is_the_nearest_and_large_the_majority():
    x, y = blobs(100)
    assert knn_accuracy(x, y, x, y, k=100, temperature=1e-6).top1[100] == 1
    u, v = blobs(50, seed=1)
    majority = y.bincount().argmax()
    ours = knn_accuracy(x, y, u, v, k=100, temperature=1e9).top1[100]
    assert ours == (v == majority).double().mean()


def test_a_tie_goes_to_the_lowest_class():
    train = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    labels = torch.tensor([2, 1, 3])
    query = torch.tensor([[1.0, 0.0]])
    assert knn_accuracy(train, labels, query, torch.tensor([1]), k=3).top1 == {3: 1.0}
    assert knn_accuracy(train, labels, query, torch.tensor([2]), k=3).top1 == {3: 0.0}


def test_chunks_do_not_change_the_result(monkeypatch):
    (x, y), (u, v) = blobs(60), blobs(50, seed=1)
    whole = knn_accuracy(x, y, u, v, k=5), knn_accuracy(x, y, x, y, k=5, leave_one_out=True)
    monkeypatch.setattr(knn, "CHUNK_BYTES", 7 * 4 * 60)
    assert whole == (
        knn_accuracy(x, y, u, v, k=5), knn_accuracy(x, y, x, y, k=5, leave_one_out=True)
    )  # fmt: skip


def test_leaving_one_out_excludes_the_sample_itself():
    x, y = blobs(100, noise=3.0)
    assert knn_accuracy(x, y, x, y, k=1).top1[1] == 1
    others = torch.tensor([
        knn_accuracy(x[torch.arange(100) != i], y[torch.arange(100) != i], x[i : i + 1],
                     y[i : i + 1], k=1).top1[1] for i in range(100)
    ])  # fmt: skip
    ours = knn_accuracy(x, y, x, y, k=1, leave_one_out=True).top1[1]
    assert ours == pytest.approx(others.mean().item(), abs=1e-6) and ours < 0.9


def test_more_neighbours_than_samples_are_all_samples():
    (x, y), (u, v) = blobs(30), blobs(50, seed=1)
    result = knn_accuracy(x, y, u, v, k=(30, 200))
    assert result.top1[30] == result.top1[200]


def test_random_features_give_chance_and_oracles_everything():
    x, y = torch.randn(4000, 32), torch.arange(4000) % 10
    assert abs(knn_accuracy(x[:2000], y[:2000], x[2000:], y[2000:], k=20).top1[20] - 0.1) < 0.03
    oracle = F.one_hot(y).float()
    assert knn_accuracy(oracle[:50], y[:50], oracle[50:], y[50:], k=5).top1[5] == 1


def test_labels_must_be_there_and_of_two_classes():
    x, y = blobs(10)
    with pytest.raises(DataError, match="needs labels; the data has none"):
        knn_accuracy(x, None, x, y)
    with pytest.raises(DataError, match="at least two classes"):
        knn_accuracy(x, torch.zeros(10, dtype=torch.int64), x, y)


def test_raw_digits_are_told_apart():
    train, test = open_data("digits"), open_data("digits", "test")
    x, u = (data.images.flatten(1).float() for data in (train, test))
    assert knn_accuracy(x, train.labels, u, test.labels, k=20).top1[20] > 0.95
