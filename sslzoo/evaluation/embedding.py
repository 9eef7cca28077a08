"""A picture of the features: t-SNE in two dimensions."""

from pathlib import Path

import numpy as np
import torch.nn.functional as F
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from sslzoo.data import DataError

PCA_DIMENSIONS = 50
POINTS = 5000


def embed(features, *, perplexity=30.0, seed=0):
    """Coordinates of features in the plane: unit rows, PCA to 50 dimensions, t-SNE.

    Args:
        features: [N, d], N > 3.
        perplexity: about the number of neighbours that count; at most a third of N is taken.
        seed: of the layout.

    Returns:
        float32 numpy array [N, 2]. Distances between groups of points mean nothing.

    Source:
        van der Maaten, Hinton, "Visualizing Data using t-SNE", 2008.
    """
    N, d = features.shape
    if N < 4:
        raise DataError(f"t-SNE needs four points or more; got {N}")
    x = F.normalize(features.float(), dim=-1).numpy()
    x = PCA(min(PCA_DIMENSIONS, N, d), random_state=seed).fit_transform(x)
    tsne = TSNE(perplexity=min(perplexity, (N - 1) / 3), init="pca", random_state=seed)
    return tsne.fit_transform(x)


def plot_embedding(
    features, labels, path, *, class_names=None, title="", max_points=POINTS, perplexity=30.0,
    seed=0,
):  # fmt: skip
    """Write a PNG coloured by class, and the coordinates beside it as .npz.

    Args:
        features: [N, d].
        labels: int64 [N], or None for points of one colour.
        path: of the PNG; the coordinates get the suffix .npz (arrays xy, indices and labels).
        class_names: for the legend.
        max_points: more are sampled evenly, classes in their proportions.

    Returns:
        The coordinates, float32 [points, 2].
    """
    rows = sample(labels, len(features), max_points, seed)
    xy = embed(features[rows], perplexity=perplexity, seed=seed)
    labels = np.full(len(rows), -1) if labels is None else np.asarray(labels)[rows]
    path = Path(path)
    np.savez(path.with_suffix(".npz"), xy=xy, indices=rows, labels=labels)
    scatter(xy, labels, class_names, title).savefig(path, dpi=150)
    return xy


def sample(labels, count, max_points, seed):
    """Rows in rising order: all, or max_points with each class in proportion."""
    order = np.random.default_rng(seed).permutation(count)
    if count <= max_points:
        return np.arange(count)
    if labels is not None:  # by class, then every n-th
        order = order[np.argsort(np.asarray(labels)[order], kind="stable")]
    return np.sort(order[np.linspace(0, count - 1, max_points).astype(int)])


def scatter(xy, labels, class_names, title):
    """A figure of the points, with a legend for up to 20 classes."""
    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.add_subplot()
    classes = np.unique(labels)
    cmap = "tab10" if len(classes) <= 10 else "tab20" if len(classes) <= 20 else "turbo"
    drawn = axes.scatter(*xy.T, c=np.searchsorted(classes, labels), cmap=cmap, s=8, linewidths=0)
    if 1 < len(classes) <= 20:
        names = [class_names[c] if class_names else str(c) for c in classes]
        handles, _ = drawn.legend_elements(num=list(range(len(classes))))
        axes.legend(handles, names, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axes.set(xticks=[], yticks=[], title=title)
    return figure
