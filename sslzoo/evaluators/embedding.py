"""Maps of the features in the plane, and how far they can be trusted."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness
from sklearn.metrics import silhouette_score

from sslzoo.data import DataError
from sslzoo.evaluation.embedding import embed, sample, scatter
from sslzoo.evaluation.results import Result, Row
from sslzoo.evaluation.retrieval import sprite

VERSION = 1
TRUSTED = 12  # neighbours of the trustworthiness
THUMBNAIL, COLUMNS = 32, 50


@dataclass
class Config:
    """Options of the maps."""

    split: str = "test"
    """Split that is drawn."""
    perplexity: tuple[float, ...] = (30.0, 5.0, 50.0)
    """Of t-SNE, about the number of neighbours that count; a map for each."""
    max_points: int = 5000
    """Images in a map; of more, so many are sampled, classes in their proportions."""
    control: bool = True
    """Also a map of the same encoder with random weights."""
    neighbours: int = 20
    """Of the accuracy of nearest neighbours in the plane, each point left out in turn."""

    def __post_init__(self):
        if not self.perplexity or min(self.perplexity) <= 0 or self.max_points < 4:
            raise ValueError("perplexity must be above 0 and max_points at least 4")


def evaluate(subject, config):
    """Maps of the last layer: rows of numbers, pictures, coordinates, thumbnails of the points."""
    layer = subject.layers[-1]
    features, labels = subject.features(config.split, layer)
    data = subject.data(config.split)
    points = sample(labels, len(features), config.max_points, subject.seed)
    x, y = features[points], None if labels is None else labels[points]
    maps = {f"t-SNE {p:g}": (x, embed(x, perplexity=p, seed=subject.seed))
            for p in config.perplexity}  # fmt: skip
    maps["PCA"] = (x, flat(x, subject.seed))
    if config.control:
        some = data.subset(points)
        random = subject.extract(some, [layer], subject.untrained())[layer]
        first = config.perplexity[0]
        maps["random weights"] = random, embed(random, perplexity=first, seed=subject.seed)
    rows, notes = features_rows(x, y)
    for name, (high, xy) in maps.items():
        rows += map_rows(name, high, xy, y, config)
    pictures = draw(subject, data, points, y, {name: xy for name, (_, xy) in maps.items()})
    names = data.class_names if y is not None else None
    details = {"points": len(points), "thumbnail": THUMBNAIL, "columns": COLUMNS, "layer": layer,
               "maps": {name: array_name(name) for name in maps},
               "class_names": None if names is None else [str(name) for name in names]}  # fmt: skip
    return Result(rows, pictures, details, notes)


def flat(features, seed):
    """The two directions of most variance of unit rows: float32 [N, 2]."""
    x = F.normalize(features.float(), dim=-1).numpy()
    if len(x) < 3 or x.shape[1] < 2:
        raise DataError("a map needs three images and two features or more")
    return PCA(2, random_state=seed, svd_solver="full").fit_transform(x)


def features_rows(x, y):
    """Silhouette of the classes in the features themselves (cosine), -1 to 1."""
    if y is None or len(y.unique()) < 2 or len(y.unique()) >= len(y):
        return [], ["no silhouette and no accuracy: they need labels of two classes or more"]
    score = silhouette_score(x.numpy(), y.numpy(), metric="cosine")
    return [Row("silhouette of the features", float(score), unit="")], []


def map_rows(name, x, xy, y, config):
    """What a map keeps of the neighbourhoods and of the classes."""
    k = max(1, min(TRUSTED, (len(xy) - 1) // 2))
    trust = trustworthiness(F.normalize(x.float(), dim=-1).numpy(), xy, n_neighbors=k)
    rows = [Row(f"{name}, trustworthiness", float(trust), unit="")]
    if y is None or len(y.unique()) < 2:
        return rows
    if len(y.unique()) < len(y):
        rows.append(Row(f"{name}, silhouette", float(silhouette_score(xy, y.numpy())), unit=""))
    k = min(config.neighbours, len(xy) - 1)
    accuracy = plane_accuracy(xy, y, k)
    return rows + [Row(f"{name}, {k} nearest neighbours", accuracy, count=len(xy))]


def plane_accuracy(xy, y, k):
    """Leave-one-out accuracy of k nearest neighbours by distance in the plane."""
    xy = torch.as_tensor(xy, dtype=torch.float32)
    distance = torch.cdist(xy, xy).fill_diagonal_(torch.inf)
    rows = distance.topk(k, dim=1, largest=False).indices
    votes = F.one_hot(torch.as_tensor(y))[rows].sum(1)
    return (votes.argmax(1) == y).double().mean().item()


def draw(subject, data, points, y, maps):
    """Write a PNG for each map, all coordinates, and a sheet of thumbnails to hover over."""
    pictures, labels = {}, np.full(len(points), -1) if y is None else y.numpy()
    for name, xy in maps.items():
        path = subject.picture(f"embedding_{array_name(name)}.png")
        title = f"{name}, {subject.about['backbone']}"
        scatter(xy, labels, data.class_names, title).savefig(path, dpi=120)
        pictures[name] = path
    path = subject.picture("embedding.npz")
    coordinates = {array_name(name): xy for name, xy in maps.items()}
    np.savez(path, indices=points, labels=labels, **coordinates)
    sheet = subject.picture("embedding_thumbnails.png")
    Image.fromarray(sprite([data.load(i) for i in points], THUMBNAIL, COLUMNS)).save(sheet)
    return pictures | {"coordinates": path, "thumbnails": sheet}


def array_name(name):
    """A map's name as embedding.npz and the files' names have it."""
    return name.lower().replace(" ", "_")
