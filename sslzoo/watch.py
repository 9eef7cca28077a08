"""What is measured at a log step and at the end of a run, and what is said about it."""

import math

import torch

from sslzoo.data import DataError, open_data
from sslzoo.evaluation import effective_rank, extract, feature_std, knn_accuracy, plot_embedding

# Rows of a batch that the collapse meters look at, so that they cost little.
METER_ROWS = 512
# Images of a split that the accuracy and the picture look at, evenly spaced.
WATCHED_IMAGES = 5000
NEIGHBOURS = 20
PICTURED = 64  # samples that a method draws pictures of

# A healthy feature has a standard deviation near 1 / sqrt(width) in each direction after
# normalisation, and needs many directions; these are far from healthy.
LEAST_RELATIVE_STD = 0.1
LEAST_EFFECTIVE_RANK = 2.0
LEAST_MUTUAL_INFORMATION = 0.05


class Watch:
    """Measures a method while it trains.

    Args:
        setup: sslzoo.training.Setup.
    """

    def __init__(self, setup):
        self.setup = setup
        self.knn_epoch = 0
        self.warned = False

    @torch.no_grad()
    def measure(self, outputs, epoch):
        """Names and values that describe the method after this step."""
        method = self.setup.method
        weights = [p for p in method.parameters() if p.requires_grad]
        row = {"parameter_norm": torch.stack(torch._foreach_norm(weights)).norm().item()}
        if hasattr(method, "meters"):
            row |= {name: float(value) for name, value in method.meters(outputs).items()}
        if "features" in outputs:
            features = outputs["features"]
            rows = features[:: math.ceil(len(features) / METER_ROWS)].float()
            row |= {"feature_std": feature_std(rows), "effective_rank": effective_rank(rows)}
        if self.setup.device.type == "cuda":
            row["peak_memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
        if self.setup.is_main:
            row |= self.accuracy(epoch)
        return row

    @torch.no_grad()
    def draw(self, epoch):
        """Save the method's pictures of the first samples of the first epoch."""
        method, was_training = self.setup.method, self.setup.method.training
        if not hasattr(method, "pictures"):
            return
        batch = next(self.setup.loader.epoch(0))
        method.eval()
        for name, picture in method.pictures([view[:PICTURED] for view in batch.views]).items():
            self.setup.run.save_picture(name, epoch, picture)
        method.train(was_training)

    def accuracy(self, epoch):
        """kNN accuracy of the frozen features, every `knn_every` epochs."""
        every = self.setup.config.knn_every
        if not every or epoch // every <= self.knn_epoch // every:
            return {}
        self.knn_epoch = epoch
        test = self.test_data()
        if test is None or self.setup.data.labels is None:
            return {}
        sets = (*self.features(self.setup.data), *self.features(test))
        return {"knn_accuracy": knn_accuracy(*sets, k=NEIGHBOURS).top1[NEIGHBOURS]}

    def test_data(self):
        """The test split, or None where the data has none."""
        try:
            return open_data(self.setup.config.data, "test", download=self.setup.config.download)
        except DataError:
            return None

    def features(self, data):
        """Features and labels of at most WATCHED_IMAGES images."""
        setup = self.setup
        some = data.subset(range(0, len(data), math.ceil(len(data) / WATCHED_IMAGES)))
        view = (setup.about[name] for name in ("image_size", "mean", "std"))
        return extract(setup.method.backbone, some, *view, device=setup.device)

    def warn(self, row):
        """Once, after warm-up and an epoch: before that, every method looks collapsed."""
        settled = row["epoch"] >= max(self.setup.config.warmup_epochs, 1)
        warning = collapse_warning(row, self.setup.method.backbone.num_features)
        if warning and settled and not self.warned:
            self.warned = True
            self.setup.report.warn(f"step {row['step']}: collapse? {warning}")

    def finish(self):
        """What a finished run is used for: the backbone, and a picture of its features."""
        run, data = self.setup.run, self.test_data() or self.setup.data
        self.draw(self.setup.config.epochs)
        run.save_backbone(self.setup.method.backbone, self.setup.about)
        features, labels = self.features(data)
        picture = run.path / "features.png"
        plot_embedding(features, labels, picture, class_names=data.class_names)
        self.setup.report.say(f"backbone: {run.path / 'backbone.safetensors'}; picture: {picture}")


def collapse_warning(row, width):
    """In words, what the meters of a log step say about collapse; None where they look healthy.

    Args:
        row: the logged values by name; those that a method does not give are not judged.
        width: number of features.
    """
    std = row.get("feature_std", math.inf) * width**0.5
    if std < LEAST_RELATIVE_STD:
        return f"features hardly differ between images: standard deviation {std:.3f}, healthy is 1"
    rank = row.get("effective_rank", math.inf)
    if rank < min(LEAST_EFFECTIVE_RANK, width):
        return f"features fill {rank:.1f} directions of {width}"
    if row.get("mutual_information_bound", math.inf) < LEAST_MUTUAL_INFORMATION:
        return "the loss is at chance: the views of an image do not find each other"
    return None
