"""Clusters, neighbours and maps of features: numbers against scikit-learn and worked by hand."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from sslzoo.data import DataError
from sslzoo.evaluation import few_labels_probe, knn_accuracy, linear_probe
from sslzoo.evaluation.clustering import agreement, cluster, matched_accuracy
from sslzoo.evaluation.retrieval import draw_neighbours, nearest, recall_at, sprite
from sslzoo.evaluation.robustness import CleanProbe
from sslzoo.evaluators.embedding import Config as EmbeddingConfig
from sslzoo.evaluators.embedding import features_rows, map_rows, plane_accuracy


def test_nmi_and_ari_equal_scikit_learns():
    generator = np.random.default_rng(0)
    labels, clusters = generator.integers(0, 4, 200), generator.integers(0, 6, 200)
    clusters[:120] = labels[:120]
    found = agreement(clusters, labels)
    expected = normalized_mutual_info_score(labels, clusters, average_method="arithmetic")
    assert found.nmi == pytest.approx(expected, abs=1e-12)
    assert found.ari == pytest.approx(adjusted_rand_score(labels, clusters), abs=1e-12)


def test_agreement_worked_by_hand():
    # Clusters against classes: 3 and 1 in the first, 1 and 2 in the second.
    clusters, labels = [0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 0, 1, 1]
    found = agreement(clusters, labels)
    assert found.accuracy == pytest.approx(5 / 7) and found.majority == pytest.approx(5 / 7)
    # Pairs together: 6 + 3 and 6 + 3, both 3 + 1 = 4; expected 81 / 21.
    assert found.ari == pytest.approx((4 - 81 / 21) / (9 - 81 / 21))
    assert agreement([5, 5, 9, 9], [1, 1, 0, 0]) == (1, 1, 1, 1)
    # Class 0 in two clusters: the match takes one of them, the majority both.
    split = agreement([0, 0, 1, 2, 2], [0, 0, 0, 1, 1])
    assert split.accuracy == pytest.approx(0.8) and split.majority == 1


def test_random_clusters_have_no_agreement():
    generator = np.random.default_rng(1)
    found = agreement(generator.integers(0, 5, 5000), generator.integers(0, 5, 5000))
    assert abs(found.ari) < 0.01 and found.nmi < 0.01 and found.accuracy >= 0.2


@pytest.mark.parametrize("k", [2, 4, 6])
def test_the_match_is_the_best_of_all_permutations(k):
    pairs = np.random.default_rng(k).integers(0, 20, (k, k))
    best = max(sum(pairs[i, p[i]] for i in range(k)) for p in itertools.permutations(range(k)))
    assert matched_accuracy(pairs) == pytest.approx(best / pairs.sum())


def test_clusters_of_separated_groups_are_the_groups():
    labels = torch.arange(3).repeat(20)
    noise = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    x = torch.eye(8)[labels] + 0.05 * noise
    for pca in (0, 4):
        assert agreement(cluster(x, 3, restarts=3, pca=pca), labels).accuracy == 1
    assert np.array_equal(cluster(x, 5, seed=1), cluster(x, 5, seed=1))
    with pytest.raises(DataError, match="61 clusters need as many images; there are 60"):
        cluster(x, 61)


def test_the_protocol_clusters_each_split(judge):
    values, _ = judge("cluster", seeds=2, restarts=2, over=2)
    assert {"test, NMI", "test, ARI", "test, matched accuracy", "train, NMI",
            "train, 20 clusters, majority accuracy"} <= {*values}  # fmt: skip
    assert 0.1 < values["test, matched accuracy"] <= 1


# Oracle features: every protocol is right without noise, and worse with more of it


def test_every_number_falls_with_the_noise_of_oracle_features():
    generator = torch.Generator().manual_seed(0)
    y, v = torch.arange(5).repeat(40), torch.arange(5).repeat(20)
    noises = [torch.randn(count, 5, generator=generator) for count in (200, 100)]
    rows = []
    for noise in (0.0, 0.4, 0.8, 3.0):
        x, u = torch.eye(5)[y] + noise * noises[0], torch.eye(5)[v] + noise * noises[1]
        found = agreement(cluster(u, 5, restarts=5), v)
        recall = recall_at(nearest(u, x, 1), v, y, (1,))[1]
        few = few_labels_probe(x, y, u, v, 4, draws=3).mean
        clean = 1 - CleanProbe(x, y).error(u, v)
        rows.append([knn_accuracy(x, y, u, v, k=20).top1[20], linear_probe(x, y, u, v).top1,
                     few, clean, found.nmi, found.ari, found.accuracy, recall])  # fmt: skip
    rows = np.array(rows)
    assert (rows[0] == 1).all() and (np.diff(rows, axis=0) < 0).all(), rows
    assert (rows[-1, :4] < 0.45).all() and rows[-1, 5] < 0.1


# Neighbours


def test_recall_worked_by_hand():
    rows = torch.tensor([[0, 1, 2], [2, 1, 0], [1, 2, 0]])
    recall = recall_at(rows, torch.tensor([0, 1, 1]), torch.tensor([0, 1, 2]), (1, 2, 3))
    assert recall == {1: pytest.approx(2 / 3), 2: 1, 3: 1}


def test_nearest_equals_a_sort_and_leaves_oneself_out():
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    cosine = torch.nn.functional.cosine_similarity(x[:, None], x[None], dim=-1)
    assert torch.equal(nearest(x, x, 5), cosine.argsort(1, descending=True)[:, :5])
    others = cosine.fill_diagonal_(-2).argsort(1, descending=True)
    assert torch.equal(nearest(x, x, 29, same_set=True), others[:, :29])
    with pytest.raises(DataError, match="only 29 images"):
        nearest(x, x, 30, same_set=True)


def test_the_picture_frames_right_and_wrong(tmp_path):
    image = torch.full((1, 9, 9), 77, dtype=torch.uint8)
    draw_neighbours(tmp_path / "n.png", [image], [[image, image]], [[True, False]], tile=20)
    pixels = np.array(Image.open(tmp_path / "n.png"))
    assert pixels.shape == (20, 60, 3)
    assert [tuple(pixels[1, x].tolist()) for x in (10, 30, 50)] == [
        (40, 90, 200), (0, 150, 60), (210, 40, 40)]  # fmt: skip
    assert (pixels[10, [10, 30, 50]] == 77).all()


def test_thumbnails_stand_line_by_line():
    images = [torch.full((3, 4, 4), v, dtype=torch.uint8) for v in (10, 20, 30)]
    sheet = sprite(images, 2, 2)
    assert sheet[..., 0].tolist() == [[10, 10, 20, 20]] * 2 + [[30, 30, 255, 255]] * 2


def test_no_image_finds_itself_where_both_splits_are_the_same(judge, make_subject):
    subject = make_subject()
    subject.data("train")
    key = str(subject.spec)
    for kept in (subject._splits, subject._fingerprints):
        kept[key, "test"] = kept[key, "train"]
    features, labels = subject.features("train")
    expected = knn_accuracy(features, labels, features, labels, k=1, leave_one_out=True).top1[1]
    values, result = judge("knn", subject, k=(1,))
    assert values["1 nearest neighbours, top-1"] == expected < 1
    assert "none is its own neighbour" in result.notes[0]
    assert judge("retrieval", subject, k=(1,))[0]["recall at 1"] == pytest.approx(expected)


def test_a_query_of_the_gallery_does_not_find_itself(judge):
    values, result = judge("retrieval", gallery="test", pictured=2, neighbours=3)
    assert values["recall at 1"] < 1 and values["recall at 1"] <= values["recall at 10"]
    assert Image.open(result.pictures["neighbours"]).size == (4 * 64, 2 * 64)


# Maps


def test_accuracy_in_the_plane_leaves_each_point_out():
    xy = np.array([[0, 0], [0, 1], [5, 5], [5, 6], [0.1, 0.1]])
    # The last point is the nearest of the first two, and the first the nearest of the last.
    assert plane_accuracy(xy, torch.tensor([0, 0, 1, 1, 1]), 1) == pytest.approx(2 / 5)


def test_a_map_that_is_the_data_can_be_trusted():
    x = torch.nn.functional.normalize(
        torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    )
    y = (x[:, 0] > 0).long()
    rows = {row.metric: row.value for row in map_rows("m", x, x.numpy(), y, EmbeddingConfig())}
    assert rows["m, trustworthiness"] == 1 and rows["m, 20 nearest neighbours"] > 0.8
    assert features_rows(x, None)[1] and features_rows(x, y * 0)[0] == []


def test_the_protocol_draws_its_maps(judge):
    values, result = judge("embedding", perplexity=(5.0,), max_points=50)
    assert "t-SNE 5, trustworthiness" in values and "PCA, silhouette" in values
    assert "random weights, 20 nearest neighbours" in values
    with np.load(result.pictures["coordinates"]) as file:
        assert file["t-sne_5"].shape == file["pca"].shape == (50, 2)
        assert file["labels"].shape == file["indices"].shape == (50,)
    assert all(path.stat().st_size > 1000 for path in result.pictures.values())
