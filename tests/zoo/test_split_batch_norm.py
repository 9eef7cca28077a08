"""Split batch norm and shuffled keys: what each group sees, and that MoCo needs both."""

import csv

import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sslzoo.methods.moco import Config
from sslzoo.split_batch_norm import Shuffle, split_batch_norm
from sslzoo.training import set_up, train
from sslzoo.training_config import TrainingConfig


@pytest.mark.parametrize("kind, shape", [
    (nn.BatchNorm1d, (12, 5)), (nn.BatchNorm1d, (12, 5, 4)), (nn.BatchNorm2d, (12, 5, 3, 2))
])  # fmt: skip
def test_each_group_is_normalised_on_its_own(kind, shape):
    torch.manual_seed(0)
    plain, split = kind(5), split_batch_norm(kind(5), 3)
    with torch.no_grad():
        for norm in (plain, split):
            norm.weight.copy_(torch.linspace(0.5, 2, 5))
            norm.bias.copy_(torch.linspace(-1, 1, 5))
    x = torch.randn(shape, requires_grad=True)
    twin = x.detach().clone().requires_grad_()
    y = split(x)
    expected = torch.empty_like(twin)
    for g in range(3):
        group = F.batch_norm(twin[g::3], None, None, plain.weight, plain.bias, True)
        expected = expected.index_copy(0, torch.arange(g, 12, 3), group)
    torch.testing.assert_close(y, expected)
    upstream = torch.randn(shape)
    y.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(x.grad, twin.grad, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(split.weight.grad, plain.weight.grad, atol=1e-5, rtol=1e-4)


def test_running_statistics_are_the_mean_over_the_groups():
    split, x = split_batch_norm(nn.BatchNorm1d(5), 2), torch.randn(8, 5)
    split(x)
    mean = torch.stack([x[g::2].mean(0) for g in (0, 1)]).mean(0)
    var = torch.stack([x[g::2].var(0) for g in (0, 1)]).mean(0)
    torch.testing.assert_close(split.running_mean, 0.1 * mean)
    torch.testing.assert_close(split.running_var, 0.9 + 0.1 * var)
    assert split.num_batches_tracked.item() == 1


def test_evaluation_and_state_are_those_of_plain_batch_norm():
    plain, split = nn.BatchNorm2d(3), split_batch_norm(nn.BatchNorm2d(3), 4)
    split(torch.randn(8, 3, 2, 2))
    plain.load_state_dict(split.state_dict())
    x = torch.randn(5, 3, 2, 2)  # no multiple of the groups
    torch.testing.assert_close(plain.eval()(x), split.eval()(x), rtol=0, atol=0)


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="10 cannot be normalised in 4 equal groups"):
        split_batch_norm(nn.BatchNorm1d(3), 4)(torch.randn(10, 3))


def test_a_norm_that_cannot_be_split_is_refused_by_name():
    with pytest.raises(ValueError, match="0 is a SyncBatchNorm"):
        split_batch_norm(nn.Sequential(nn.SyncBatchNorm(3)), 2)


def test_one_group_changes_nothing():
    assert type(split_batch_norm(nn.BatchNorm1d(3), 1)) is nn.BatchNorm1d


def test_undo_inverts_shuffle_and_steps_differ():
    x = torch.randn(32, 3)
    orders = []
    for step in range(4):
        shuffle = Shuffle(step, 32)
        torch.testing.assert_close(shuffle.undo(shuffle(x)), x, rtol=0, atol=0)
        assert not torch.equal(shuffle(x), x)
        orders.append(tuple(shuffle.order.tolist()))
    assert len(set(orders)) == 4


def same_statistics(splits, is_shuffled):
    """Whether an image is normalised alike as query and as key: then its pair is marked."""
    torch.manual_seed(0)
    norm, x = split_batch_norm(nn.BatchNorm1d(16), splits), torch.randn(64, 16)
    shuffle = Shuffle(0, 64)
    as_key = shuffle.undo(norm(shuffle(x))) if is_shuffled else norm(x)
    return (as_key - norm(x)).abs().amax(1) < 1e-5


def test_groups_of_keys_differ_from_those_of_queries():
    """Shuffling alone changes nothing on one process, nor do groups alone: it takes both."""
    assert same_statistics(1, False).all() and same_statistics(1, True).all()
    assert same_statistics(8, False).all()
    assert not same_statistics(8, True).any()


@pytest.mark.slow
def test_the_leak_makes_the_task_easier_and_the_features_no_better(shared_data, tmp_path):
    """Three epochs on 2000 images: plain batch norm on one process against eight groups."""
    table = pq.read_table(shared_data / "cifar10-test.parquet")
    for split, rows in (("train", table[:2000]), ("test", table[2000:2500])):
        pq.write_table(rows, tmp_path / f"small-{split}.parquet")
    accuracy, neighbours = {}, {}
    for splits in (1, 8):
        options = TrainingConfig(
            data=str(tmp_path / "small"), backbone="resnet18", image_size=16, epochs=3,
            batch_size=32, base_lr=0.12, warmup_epochs=0, log_every=62, knn_every=3,
            out=str(tmp_path / f"run{splits}"),
        )  # fmt: skip
        run = train(set_up("moco", Config(bn_splits=splits), options))
        with run.metrics.path.open(newline="") as file:
            last = list(csv.DictReader(file))[-1]
        accuracy[splits] = float(last["contrastive_top1"])
        neighbours[splits] = float(last["knn_accuracy"])
    assert accuracy[8] < accuracy[1]
    assert neighbours[8] > neighbours[1] - 0.02  # 500 test images: one deviation is 0.02
