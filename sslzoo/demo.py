"""What `sslzoo demo` shows: how far pretrained features carry a handful of labels."""

import json

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from sslzoo import backbones
from sslzoo.data import open_data
from sslzoo.evaluate import percent
from sslzoo.evaluation import extract, few_labels_probe, knn_accuracy, linear_probe
from sslzoo.run_folder import load_backbone

RECIPE = "simclr_digits"
FEW = (1, 10)
DRAWS = 5
NEIGHBOURS = 20


def show(run):
    """Print the table of a finished demo run, and keep its numbers in RUN/demo.json."""
    rows = compare(run)
    (run.path / "demo.json").write_text(json.dumps(rows, indent=2) + "\n")
    Console().print(table(rows))


def compare(run):
    """Accuracies of the pretrained features, the same encoder untrained, and the pixels.

    All three see the same images in the same size, the same labels and the same classifiers.

    Returns:
        {features: {column: [mean, standard deviation or None]}}, shares from 0 to 1.
    """
    trained, about = load_backbone(run.path)
    torch.manual_seed(0)
    size = about["image_size"]
    untrained = backbones.build(about["backbone"], image_size=size, channels=about["channels"])
    encoders = {"SimCLR": trained, "same encoder, untrained": untrained, "pixels": nn.Flatten()}
    data = [open_data(about["data"], split) for split in ("train", "test")]
    rows = {}
    for name, encoder in encoders.items():
        sets = [x for split in data for x in extract(encoder, split, size, about["mean"],
                                                     about["std"])]  # fmt: skip
        rows[name] = accuracies(sets)
    return rows


def accuracies(sets):
    """One row of the table, from train and test features and labels."""
    row = {}
    for k in FEW:
        result = few_labels_probe(*sets, k, draws=DRAWS)
        row[f"{k} label{'s' * (k > 1)} per class"] = [result.mean, result.std]
    row["all labels"] = [linear_probe(*sets).top1, None]
    row[f"{NEIGHBOURS} nearest"] = [knn_accuracy(*sets, k=NEIGHBOURS).top1[NEIGHBOURS], None]
    return row


def table(rows):
    """A rich table of accuracies."""
    columns = list(next(iter(rows.values())))
    title = f"Accuracy on the test digits, linear probe and nearest neighbours ({DRAWS} draws)"
    drawn = Table("features", *columns, title=title)
    for name, row in rows.items():
        drawn.add_row(name, *(percent(*row[column]) for column in columns))
    return drawn
