"""From a folder of your own images to an encoder and a classifier, in 30 lines.

    python examples/own_folder.py photos/ --epochs 100

photos/ holds a folder of images for each class. The encoder learns from all images without looking
at the classes; then a classifier on its features learns from four of five, and is tested on the
fifth. The run folder keeps the encoder as backbone.safetensors, under timm's names.
"""

import argparse

from sklearn.linear_model import LogisticRegression

from sslzoo import training
from sslzoo.data import open_data
from sslzoo.evaluation import extract
from sslzoo.methods import simclr
from sslzoo.run_folder import load_backbone
from sslzoo.training_config import TrainingConfig


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="a folder of images for each class")
    parser.add_argument("--out", default="", help="run folder; empty is runs/simclr_FOLDER")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--batch_size", type=int, default=128)
    options = vars(parser.parse_args(argv))
    folder = options.pop("folder")
    config = TrainingConfig(data=folder, warmup_epochs=options["epochs"] / 10, **options)
    run = training.pretrain("simclr", simclr.Config(), config)
    backbone, about = load_backbone(run.path)
    data = open_data(folder, "all")
    data.require_labels("the classifier")
    features, labels = extract(backbone, data, about["image_size"], about["mean"], about["std"])
    is_test = labels.new_tensor(range(len(labels))) % 5 == 4
    classifier = LogisticRegression(max_iter=1000).fit(features[~is_test], labels[~is_test])
    accuracy = classifier.score(features[is_test], labels[is_test])
    print(f"{len(data)} images of {', '.join(data.class_names)}; encoder in {run.path}")
    print(
        f"classifier: {100 * accuracy:.1f} % of {is_test.sum()} images that it did not learn from"
    )


if __name__ == "__main__":
    main()
