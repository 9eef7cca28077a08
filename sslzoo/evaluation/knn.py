"""k-nearest-neighbour accuracy on frozen features, as DINO counts it."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from sslzoo.data import DataError

CHUNK_BYTES = 2**28


class KNNResult(NamedTuple):
    """Shares of right predictions, 0 to 1, by k."""

    top1: dict
    top5: dict
    temperature: float


@torch.no_grad()
def knn_accuracy(
    train_features, train_labels, test_features, test_labels, k=(20, 200), temperature=0.07, *,
    leave_one_out=False,
):  # fmt: skip
    """Weighted k-nearest-neighbour classification of normalised features.

    A test sample's k most similar training samples by cosine vote for their classes with weight
    exp(similarity / temperature); on a tie the lowest class number wins.

    Args:
        train_features: [N, d]; train_labels: int64 [N], from 0.
        test_features: [M, d]; test_labels: int64 [M].
        k: number of neighbours, or several; those above N are taken as N.
        temperature: > 0.
        leave_one_out: test and training samples are the same; none is its own neighbour.

    Returns:
        KNNResult: `.top1[k]` and `.top5[k]`.

    Raises:
        DataError: labels are missing or there is one class only.

    Source:
        Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination",
        2018, section 3.4; temperature and k as in DINO, 2021.

    Example:
        >>> import torch
        >>> labels = torch.arange(10).repeat(5)
        >>> features = torch.eye(10)[labels]
        >>> knn_accuracy(features, labels, features, labels, k=5).top1
        {5: 1.0}
    """
    check_labels(train_labels, test_labels)
    ks = (k,) if isinstance(k, int) else tuple(k)
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    train, test = (F.normalize(x.float(), dim=-1) for x in (train_features, test_features))
    N, M = len(train), len(test)
    chunk = max(1, CHUNK_BYTES // (4 * N))
    right1, right5 = dict.fromkeys(ks, 0), dict.fromkeys(ks, 0)
    for start in range(0, M, chunk):
        similarity = test[start : start + chunk] @ train.T
        if leave_one_out:
            similarity.diagonal(start).fill_(-torch.inf)
        nearest, rows = similarity.topk(min(max(ks), N - leave_one_out), dim=1)
        labels = test_labels[start : start + chunk, None]
        for n in ks:
            score = votes(nearest[:, :n], train_labels[rows[:, :n]], classes, temperature)
            ranked = score.sort(dim=1, descending=True, stable=True).indices
            right1[n] += (ranked[:, :1] == labels).sum().item()
            right5[n] += (ranked[:, :5] == labels).sum().item()
    return KNNResult({n: right1[n] / M for n in ks}, {n: right5[n] / M for n in ks}, temperature)


def votes(similarity, labels, classes, temperature):
    """Score of each class [M, classes] from the neighbours' similarities and labels [M, k]."""
    # Relative to the nearest, so that a small temperature does not overflow.
    weight = ((similarity - similarity[:, :1]) / temperature).exp()
    return weight.new_zeros(len(labels), classes).scatter_add_(1, labels, weight)


def check_labels(train_labels, test_labels=None):
    """A DataError unless there are labels of at least two classes to learn from."""
    if train_labels is None or test_labels is None:
        raise DataError("this evaluation needs labels; the data has none")
    if len(train_labels.unique()) < 2:
        raise DataError("this evaluation needs at least two classes; the training labels have one")
