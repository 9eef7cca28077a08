"""Statistics of batch norm taken anew: the average over the batches, and nothing else changes."""

import copy
import csv

import torch
from torch import nn

from sslzoo.methods.jigsaw import Config
from sslzoo.recalibration import recalibrate
from sslzoo.run_folder import load_backbone
from sslzoo.training import set_up, train
from sslzoo.training_config import TrainingConfig


def test_statistics_are_the_averages_over_the_batches():
    network = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5))
    network(5 + torch.randn(8, 3))
    batches = torch.randn(4, 16, 3)
    before = copy.deepcopy(list(network.parameters()))
    assert recalibrate(network, batches) is network
    norm = network[0]
    torch.testing.assert_close(norm.running_mean, batches.mean((0, 1)))
    torch.testing.assert_close(norm.running_var, batches.var(1).mean(0))
    assert norm.momentum == 0.1 and not network.training and not norm.training
    assert all(map(torch.equal, before, network.parameters()))


def test_a_run_on_tiles_saves_statistics_of_whole_images_and_goes_on_with_those_of_tiles(
    photos, tmp_path
):
    config = TrainingConfig(data=str(photos), backbone="convnet4", image_size=24, batch_size=10,
                            epochs=1, warmup_epochs=0, out=str(tmp_path / "run"))  # fmt: skip
    setup = set_up("jigsaw", Config(permutations=4), config)
    folder = train(setup)
    saved, _ = load_backbone(folder.path)
    trained = setup.method.backbone
    assert torch.equal(saved.blocks[0][0].weight, trained.blocks[0][0].weight)
    assert not torch.equal(saved.blocks[0][1].running_var, trained.blocks[0][1].running_var)
    with (folder.path / "metrics.csv").open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    assert 0 <= float(last["test_accuracy_gray"]) <= 1 and float(last["test_loss"]) > 0
    pictures = {path.name for path in (folder.path / "pictures").iterdir()}
    assert pictures == {"confusion_0001.png", "puzzles_0001.png"}
