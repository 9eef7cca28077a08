"""What is measured at a log step and at the end of a run, and what is said about it."""

import contextlib
import copy
import math

import torch

from sslzoo import backbones, sharding
from sslzoo.data import DataError
from sslzoo.evaluation import (
    effective_rank,
    feature_std,
    knn_accuracy,
    linear_probe,
    plot_embedding,
)
from sslzoo.evaluation.features import evaluation_views, extract_layers
from sslzoo.evaluation.knn import check_labels
from sslzoo.kinds import KINDS
from sslzoo.live_tracking import LiveTracking
from sslzoo.loader import ViewLoader
from sslzoo.recalibration import recalibrate
from sslzoo.synced_batch_norm import batch_norm_alone
from sslzoo.views import normalise

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
# Of the logarithm of the number of prototypes.
LEAST_ENTROPY_SHARE = 0.05


class Watch:
    """Measures a method while it trains.

    Args:
        setup: sslzoo.training.Setup.
    """

    def __init__(self, setup):
        self.setup = setup
        self.kind = KINDS[setup.about["kind"]]
        self.epoch = 0  # of the last look at what is due
        self._test = None
        self._probed = self.probe_sets()
        self.layers = [None] if self._probed is None else self.probe_layers()
        self._tracking = LiveTracking(setup) if setup.config.tracking_every else None
        self.warned = False

    @torch.no_grad()
    def measure(self, outputs):
        """Names and values that describe the method after this step."""
        method = self.setup.method
        weights = [p for p in method.parameters() if p.requires_grad]
        row = {"parameter_norm": sharding.norms(weights).norm().item()}
        if hasattr(method, "meters"):
            meters = sharding.full(method.meters(outputs))
            row |= {name: float(value) for name, value in meters.items()}
        if "features" in outputs:
            features = outputs["features"]
            rows = features[:: math.ceil(len(features) / METER_ROWS)].float()
            row |= {"feature_std": feature_std(rows), "effective_rank": effective_rank(rows)}
        if self.setup.device.type == "cuda":
            row["peak_memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
        return row

    def scores(self, epoch, is_last=False):
        """Of the main process: probes, tracking and the method's own test, where they are due."""
        config, last = self.setup.config, self.epoch
        self.epoch = epoch

        def is_due(every):
            return bool(every) and epoch // every > last // every

        probes = {name: probe for name, probe, every in (
            ("knn_accuracy", knn, config.knn_every),
            ("linear_accuracy", linear, config.linear_every),
        ) if is_due(every) and self._probed is not None}  # fmt: skip
        is_tracked = is_due(config.tracking_every)
        is_tested = (is_last or is_due(config.test_every)) and hasattr(
            self.setup.method, "test_scores"
        )
        row = {}
        if probes or is_tracked or is_tested:
            with sharding.gathered(self.setup):
                if self.setup.is_main:
                    row |= self.accuracy(probes) if probes else {}
                    row |= self.test_scores() if is_tested else {}
                    row |= self._tracking.scores(self.encoder()) if is_tracked else {}
        return row

    @torch.no_grad()
    def test_scores(self):
        """How well the method does its own task on the test split, as test_NAME."""
        method, config, test = self.setup.whole, self.setup.config, self.test_data()
        if test is None:
            return {}
        was_training = method.training
        method.eval()
        batches = ViewLoader(some(test), self.setup.loader.specs, device=self.setup.device,
                             batch_size=min(config.batch_size, len(some(test))),
                             seed=config.seed, workers=config.workers).epoch(0)  # fmt: skip
        rows = [
            scalars(method.test_scores(batch.views, step)) for step, batch in enumerate(batches)
        ]
        method.train(was_training)
        return {f"test_{name}": float(torch.stack([row[name] for row in rows]).mean())
                for name in rows[0]}  # fmt: skip

    @torch.no_grad()
    def draw(self, epoch):
        """Save the method's pictures of the first samples of the first epoch."""
        method, was_training = self.setup.whole, self.setup.whole.training
        if not hasattr(method, "pictures"):
            return
        # The workers may be within the next epoch: accumulation goes on from one to the next.
        batch = next(self.setup.loader.epoch(0, here=True))
        method.eval()
        for name, picture in method.pictures([view[:PICTURED] for view in batch.views]).items():
            self.setup.run.save_picture(name, epoch, picture)
        method.train(was_training)

    def accuracy(self, probes):
        """kNN accuracy and linear probe of the frozen features, {name: value} for those given.

        Of several layers each has its own, such as linear_accuracy_layer3.
        """
        sets = self.probed_features(self.encoder())
        return {f"{name}_{layer}" if len(sets) > 1 else name: probe(parts)
                for layer, parts in sets.items() for name, probe in probes.items()}  # fmt: skip

    def probed_features(self, backbone):
        """{layer: [training features, labels, test features, labels]}; None is the output."""
        if self.layers == [None]:
            return {None: [x for data in self._probed for x in self.features(data, backbone)]}
        view = [self.setup.about[name] for name in ("image_size", "mean", "std")]
        found = {layer: [] for layer in self.layers}
        for data in map(some, self._probed):
            sets, labels = extract_layers(backbone, data, self.layers, *view,
                                          device=self.setup.device)  # fmt: skip
            for layer, features in sets.items():
                found[layer] += [features, labels]
        return found

    def probe_sets(self):
        """The labelled training and test images of the probes; None where there are none.

        Raises:
            DataError: those that were named can not be used, or the layer does not exist.
        """
        config, about = self.setup.config, self.setup.about
        if not config.knn_every and not config.linear_every:
            return None
        if not config.probe_data:
            sets = self.setup.data, self.test_data()
            if any(part is None or part.labels is None for part in sets):
                return None
            return sets if len(sets[0].labels.unique()) > 1 else None
        sets = [self.open(config.probe_data, split)
                for split in ("train", "test")]  # fmt: skip
        check_labels(*(part.labels for part in sets))
        if sets[0].channels != about["channels"]:
            raise DataError(f"{sets[0].name} has {sets[0].channels} channels, the encoder takes "
                            f"{about['channels']}: it can not be the probe_data")  # fmt: skip
        return sets

    def probe_layers(self):
        """The layers that the probes look at; [None] is the encoder's output.

        Raises:
            DataError: one does not exist.
        """
        chosen, backbone = self.setup.config.probe_layer, self.setup.method.backbone
        if not chosen:
            return [None]
        if self.setup.about["kind"] == "audio":
            raise DataError("probe_layer is for images; sounds are judged by the encoder's output")
        try:
            names = backbones.layers(backbone) if chosen == "all" else chosen.split(",")
            backbones.check_layers(backbone, names)
        except ValueError as error:
            raise DataError(f"probe_layer: {error}") from error
        return names

    def test_data(self):
        """The test split, or None where the data has none."""
        if self._test is None:
            config = self.setup.config
            with contextlib.suppress(DataError):
                self._test = self.open(config.data, "test")
        return self._test

    def open(self, data, split):
        return self.kind.open(data, split, **self.setup.config.opening)

    def encoder(self):
        """The backbone as it is judged and saved."""
        setup, method = self.setup, self.setup.whole
        if not getattr(method, "sees_parts", False):
            return method.backbone
        size, mean, std = (setup.about[name] for name in ("image_size", "mean", "std"))
        views = evaluation_views(some(setup.data), size, batch_size=256)
        whole = (normalise(x.to(setup.device).float() / 255, mean, std) for x in views)
        # The other processes are not here: they go on training, or wait.
        return recalibrate(batch_norm_alone(copy.deepcopy(method.backbone)), whole)

    def features(self, data, backbone):
        """Features and labels of at most WATCHED_IMAGES images."""
        view = (self.setup.about[name] for name in ("image_size", "mean", "std"))
        return self.kind.extract(backbone, some(data), *view, device=self.setup.device)

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
        backbone = self.encoder()
        run.save_backbone(backbone, self.setup.about)
        features, labels = self.features(data, backbone)
        picture = run.path / "features.png"
        plot_embedding(features, labels, picture, class_names=data.class_names)
        self.setup.report.say(f"backbone: {run.path / 'backbone.safetensors'}; picture: {picture}")


def knn(sets):
    return knn_accuracy(*sets, k=NEIGHBOURS).top1[NEIGHBOURS]


def linear(sets):
    return linear_probe(*sets).top1


def scalars(outputs):
    """The 0-d tensors among what a method returns; the others need not be kept."""
    return {name: value for name, value in outputs.items() if value.ndim == 0}


def some(data):
    """At most WATCHED_IMAGES of the images, evenly spaced."""
    return data.subset(range(0, len(data), math.ceil(len(data) / WATCHED_IMAGES)))


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
    for things, thing, suffix in (("images", "image", ""), ("patches", "patch", "_patch")):
        if row.get(f"usage_entropy_share{suffix}", 1.0) < LEAST_ENTROPY_SHARE:
            return f"the teacher gives all {things} the same prototype"
        if row.get(f"teacher_entropy_share{suffix}", 0.0) > 1 - LEAST_ENTROPY_SHARE / 10:
            return f"the teacher's output is uniform: it tells no {thing} from another"
    if row.get("mutual_information_bound", math.inf) < LEAST_MUTUAL_INFORMATION:
        return "the loss is at chance: the views of an image do not find each other"
    return None
