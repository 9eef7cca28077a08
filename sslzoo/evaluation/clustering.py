"""k-means on frozen features: NMI, ARI, and accuracy after matching clusters to classes."""

from typing import NamedTuple

import numpy as np
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score, confusion_matrix, normalized_mutual_info_score
from threadpoolctl import threadpool_limits

from sslzoo.data import DataError


class ClusterResult(NamedTuple):
    """Agreement of clusters and classes."""

    nmi: float  # normalised by the arithmetic mean of both entropies
    ari: float  # about 0 for random clusters
    accuracy: float  # one cluster for each class, the best match
    majority: float  # each cluster counts as its most frequent class


def cluster(features, clusters, *, restarts=20, pca=0, seed=0):
    """The cluster of each sample: unit rows, k-means++ with restarts, the least inertia.

    Args:
        features: [N, d].
        clusters: number of clusters, at most N.
        pca: dimensions to keep before the clustering; 0 keeps all.

    Returns:
        int array [N].

    Raises:
        DataError: there are fewer samples than clusters.
    """
    N, d = features.shape
    if clusters > N:
        raise DataError(f"{clusters} clusters need as many images; there are {N}")
    x = F.normalize(features.float(), dim=-1).numpy()
    if pca:
        x = PCA(min(pca, N, d), random_state=seed).fit_transform(x)
    with threadpool_limits(1):  # the order of sums, and so the result, depends on the threads
        model = KMeans(clusters, n_init=restarts, max_iter=300, random_state=seed)
        return model.fit_predict(x)


def agreement(clusters, labels):
    """ClusterResult of cluster numbers and class numbers.

    Example:
        >>> agreement([2, 2, 0, 0], [0, 0, 1, 1])
        ClusterResult(nmi=1.0, ari=1.0, accuracy=1.0, majority=1.0)
    """
    clusters, labels = np.asarray(clusters), np.asarray(labels)
    pairs = _pairs(clusters, labels)
    return ClusterResult(
        float(normalized_mutual_info_score(labels, clusters)),
        float(adjusted_rand_score(labels, clusters)),
        matched_accuracy(pairs),
        float(pairs.max(1).sum() / pairs.sum()),
    )


def matched_accuracy(pairs):
    """Largest share of samples on a one-to-one match of rows and columns (Kuhn, 1955)."""
    rows, columns = linear_sum_assignment(pairs, maximize=True)
    return float(pairs[rows, columns].sum() / pairs.sum())


def _pairs(clusters, labels):
    """How many samples fall in each cluster [rows] and class [columns]."""
    clusters = np.unique(clusters, return_inverse=True)[1]
    labels = np.unique(labels, return_inverse=True)[1]
    R, C = clusters.max() + 1, labels.max() + 1
    return confusion_matrix(clusters, labels, labels=np.arange(max(R, C)))[:R, :C]
