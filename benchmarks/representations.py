"""Whole pretraining runs beside lightly's code: loss curves, images per second, features.

python benchmarks/representations.py CIFAR10                  5,000 images, 20 epochs, on a CPU
python benchmarks/representations.py CIFAR10 --method simclr --seeds 1
python benchmarks/representations.py CIFAR10 --full           all images, a few epochs, on a GPU

CIFAR10 is a folder and the start of the names of two Parquet files: data/cifar10 for
data/cifar10-train.parquet and data/cifar10-test.parquet.

Ours is the training loop of `sslzoo pretrain` as it is, meters and log included. Lightly's is its
own heads, losses, transforms and helpers around the same backbone, in torch's DataLoader. Both get
the same images, batch, optimizer, learning rates and augmentations; epochs of either side
alternate in one process. In the end the features of both are judged by the same code.
"""

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torchvision.io import encode_png

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # a checkout that is not installed

from benchmarks import measure, results  # noqa: E402
from benchmarks.train_step import TransformedImages  # noqa: E402
from sslzoo.schedules import warmup_cosine  # noqa: E402


@dataclass(frozen=True)
class Setting:
    """A method, what it learns from and for how long; None of `images` is all of them."""

    method: str
    training: dict
    config: dict = field(default_factory=dict)
    images: int | None = 5000
    test_images: int | None = 2000

    @property
    def model(self):
        t = self.training
        return f"{t['backbone']}, {t['image_size']} x {t['image_size']}, batch {t['batch_size']}"


NARROW = dict(backbone="convnet4_narrow", image_size=16, epochs=20, batch_size=128, log_every=39)
SGD = dict(optimizer="sgd", base_lr=0.12, weight_decay=5e-4, warmup_epochs=2)
ADAMW = dict(optimizer="adamw", base_lr=2e-3, weight_decay=0.04, warmup_epochs=2)
# lightly's parts have neither groups of batch norm nor these additions of DINO's official code.
V2 = {"version": "v2", "bn_splits": 1}
PLAIN = {"drop_path": 0.0, "freeze_last_layer": 0.0, "clip_parameter": 0.0}
DECODER = {"decoder_width": 64, "decoder_depth": 1, "decoder_heads": 4}
SLICE = [
    Setting("simclr", NARROW | SGD),
    Setting("moco", NARROW | SGD, V2),
    Setting("dino", NARROW | ADAMW, PLAIN | {"weight_decay_end": 0.04}),
    Setting("mae", NARROW | ADAMW | dict(backbone="vit_micro_p4", weight_decay=0.05), DECODER),
    Setting("mae", NARROW | ADAMW | dict(backbone="vit_nano_p4", weight_decay=0.05), DECODER),
]
GPU = dict(image_size=32, epochs=4, batch_size=512, log_every=50, precision="bf16")
FULL = [
    Setting("simclr", GPU | SGD | dict(backbone="resnet18"), {}, None, None),
    Setting("moco", GPU | SGD | dict(backbone="resnet18"), V2 | {"queue_size": 8192}, None, None),
    Setting("dino", GPU | ADAMW | dict(backbone="vit_tiny_p4"),
            PLAIN | {"weight_decay_end": 0.04, "prototypes": 4096}, None, None),
    Setting("mae", GPU | ADAMW | dict(backbone="vit_tiny_p4"),
            {"decoder_width": 128, "decoder_depth": 4, "decoder_heads": 4}, None, None),
]  # fmt: skip
TINY = dict(batch_size=16, epochs=2, precision="fp32")


def prepared_trainer(method, options, config):
    """The Trainer of `sslzoo pretrain` before its first step, its run folder made."""
    from sslzoo import registry, training

    setup = training.set_up(method, registry.method(method).Config(**options), config)
    setup.run.prepare(setup.options, resume=False)
    trainer = training.Trainer(setup)
    trainer.model.train()
    trainer.meters.start()
    return trainer


class Ours:
    """The training loop of `sslzoo pretrain`, an epoch at a time."""

    name = "sslops"

    def __init__(self, setting, data, seed, device, folder):
        from sslzoo.training_config import TrainingConfig

        config = TrainingConfig(data=str(data), out=str(folder / "run"), seed=seed,
                                device="auto" if device == "cuda" else "cpu",
                                **setting.training)  # fmt: skip
        self.trainer = prepared_trainer(setting.method, setting.config, config)
        self.setup, self.batches = self.trainer.setup, self.trainer.batches()

    @property
    def encoder(self):
        return self.setup.method.backbone

    def learning_rate(self, step):
        """That of step `step`, for the other side."""
        config, trainer = self.trainer.config, self.trainer
        warmup_steps = config.warmup_epochs * trainer.loader.steps_per_epoch
        return warmup_cosine(step, trainer.total_steps, trainer.peak_lr, minimum=config.min_lr,
                             warmup_steps=warmup_steps)  # fmt: skip

    def epoch(self, number):
        """(mean loss, seconds spent waiting for views)."""
        trainer, losses = self.trainer, []
        waited = trainer.loader.wait_seconds
        for _ in range(trainer.loader.steps_per_epoch):
            outputs = trainer.train_step(self.batches)
            losses.append(outputs["loss"].detach())
            if trainer.is_log_step(trainer.step):
                trainer.log(outputs)
        return torch.stack(losses).mean().item(), trainer.loader.wait_seconds - waited


class Lightly:
    """The same from lightly's parts, in the loop of its examples."""

    name = "lightly"

    def __init__(self, setting, ours, seed, device):
        from types import SimpleNamespace

        from benchmarks import lightly_steps
        from sslzoo import backbones, optimizers

        step = lightly_steps.STEPS[setting.method]
        self.ours, self.device, self.done = ours, device, 0
        self.config, self.total = ours.trainer.config, ours.trainer.total_steps
        options = getattr(step, "backbone_options", {}) if "vit" in self.config.backbone else {}
        torch.manual_seed(seed)
        backbone = backbones.build(self.config.backbone, image_size=self.config.image_size,
                                   **options)  # fmt: skip
        self.method = step(backbone, SimpleNamespace(**ours.setup.options)).to(device).train()
        groups = optimizers.parameter_groups(self.method, self.config.weight_decay)
        self.optimizer = optimizers.build(self.config.optimizer, groups, lr=ours.trainer.peak_lr,
                                          momentum=self.config.momentum,
                                          betas=self.config.betas)  # fmt: skip
        transform = step.transform(self.config.image_size, ours.trainer.loader.specs)
        self.loader = image_loader(ours.setup.data.images, transform, self.config, device)

    @property
    def encoder(self):
        return self.method.encoder

    def epoch(self, number):
        losses, waited, batches = [], 0.0, iter(self.loader)
        for _ in range(len(self.loader)):
            start = time.perf_counter()
            views = [x.to(self.device, non_blocking=True) for x in next(batches)]
            waited += time.perf_counter() - start
            losses.append(self.train(views))
        return torch.stack(losses).mean().item(), waited

    def train(self, views):
        lr = self.ours.learning_rate(self.done)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        is_half = self.config.precision == "bf16"
        with torch.autocast(self.device, torch.bfloat16, enabled=is_half):
            loss = self.method(views)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.done += 1
        self.method.after_step(self.done, self.total)
        return loss.detach()


def image_loader(images, transform, config, device):
    """torch's DataLoader of PIL images under lightly's transform."""
    workers = torch.multiprocessing.cpu_count() if device == "cuda" else 0
    return torch.utils.data.DataLoader(
        TransformedImages(images, transform), config.batch_size, shuffle=True, drop_last=True,
        num_workers=workers, persistent_workers=workers > 0, pin_memory=device == "cuda",
    )  # fmt: skip


def compare(setting, path, seed, device, folder):
    """A record for ours and one for lightly's, or the reason why there is none."""
    about = dict(method=setting.method, model=setting.model, epochs=setting.training["epochs"],
                 seed=seed)  # fmt: skip
    ours = Ours(setting, path, seed, device, folder)
    data = ours.setup.data
    about |= dict(images=len(data), untrained=worth(ours.encoder, ours, path, device))
    sides, absent = [ours], []
    try:
        sides.append(Lightly(setting, ours, seed, device))
    except ModuleNotFoundError as error:
        absent = [dict(variant="lightly", absent=f"{error.name} is not installed", **about)]
    logs = alternate(sides, setting.training["epochs"], device)
    rows = [record(side, logs[side.name], ours, path, device, about) for side in sides]
    if len(rows) == 2:
        rows[0]["ratio_to_best_peer"] = rows[0]["images_per_second"] / rows[1]["images_per_second"]
    return rows + absent


def alternate(sides, epochs, device):
    """{name: [(loss, seconds waiting, seconds) of each epoch]}; the first side changes."""
    logs = {side.name: [] for side in sides}
    for number in range(epochs):
        for side in sides[:: -1 if number % 2 else 1]:
            start = time.perf_counter()
            loss, waited = side.epoch(number)
            measure.synchronise(device)
            logs[side.name].append((loss, waited, time.perf_counter() - start))
        last = ", ".join(f"{name} {log[-1][0]:.4f} in {log[-1][2]:.1f} s"
                         for name, log in logs.items())  # fmt: skip
        print(f"  epoch {number + 1}/{epochs}: loss {last}", flush=True)
    return logs


def record(side, log, ours, path, device, about):
    losses, waits, seconds = zip(*log, strict=True)
    batch = ours.trainer.config.batch_size
    images = ours.trainer.loader.steps_per_epoch * batch
    return dict(
        variant=side.name,
        loss=[round(loss, 5) for loss in losses],
        images_per_second=images / statistics.median(seconds),
        share_waiting=sum(waits) / sum(seconds),
        **worth(side.encoder, ours, path, device),
        **about,
    )


def worth(encoder, ours, path, device):
    """Top-1 accuracies, 0 to 1: 200 neighbours at T = 0.1, and a linear probe."""
    from sslzoo.data import open_data
    from sslzoo.evaluation.features import extract
    from sslzoo.evaluation.knn import knn_accuracy
    from sslzoo.evaluation.linear_probe import linear_probe

    about = ours.setup.about
    view = (about["image_size"], about["mean"], about["std"])
    sets = (ours.setup.data, open_data(str(path), "test"))
    found = [x for data in sets for x in extract(encoder, data, *view, device=device)]
    knn = knn_accuracy(*found, k=200, temperature=0.1).top1[200]
    return {"knn": knn, "linear": linear_probe(*found).top1}


def taken(path, setting, folder):
    """The data as `open_data` takes it: the first images of each split, or all of them."""
    if setting.images is None:
        return path
    for split, rows in (("train", setting.images), ("test", setting.test_images)):
        table = pq.read_table(f"{path}-{split}.parquet").slice(0, rows)
        pq.write_table(table, folder / f"cifar10-{split}.parquet")
    return folder / "cifar10"


def noise(folder, images=64):
    """Random images with labels, in the layout of the real files."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        pixels = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8)
        cells = [{"bytes": bytes(encode_png(x).tolist()), "path": None} for x in pixels]
        table = pa.table({"image": cells, "label": [i % 10 for i in range(images)]})
        pq.write_table(table, folder / f"noise-{split}.parquet")
    return folder / "noise"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, nargs="?", help="folder and start of two files' names")
    parser.add_argument("--method", help="default: all of them")
    parser.add_argument("--backbone", help="only runs with this encoder")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each, default 3")
    parser.add_argument("--first-seed", type=int, default=0, help="of these runs, default 0")
    parser.add_argument("--full", action="store_true", help="all images, ResNet-18 and ViT-Ti")
    parser.add_argument("--tiny", action="store_true", help="a few images, to try the script")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.data is None and not options.tiny:
        parser.error("which data? see --help")
    settings = [s for s in (FULL if options.full else SLICE)
                if options.method in (None, s.method)
                and options.backbone in (None, s.training["backbone"])]  # fmt: skip
    if options.tiny:
        settings = [replace(s, training=s.training | TINY) for s in settings]
    machine = measure.machine(device)
    if device == "cpu":
        torch.set_num_threads(1)
    for setting in settings:
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            print(f"\n{setting.method}: {setting.model}, seed {seed}", flush=True)
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                path = noise(folder) if options.tiny else taken(options.data, setting, folder)
                rows = compare(setting, path, seed, device, folder)
                show(rows)
                if not options.tiny:
                    results.add(machine, "representations", rows)


def show(rows):
    for row in rows:
        if row.get("absent"):
            print(f"  {row['variant']:<8} absent: {row['absent']}")
            continue
        print(f"  {row['variant']:<8} loss {row['loss'][-1]:.4f}, kNN {row['knn']:.1%} (untrained "
              f"{row['untrained']['knn']:.1%}), linear {row['linear']:.1%} (untrained "
              f"{row['untrained']['linear']:.1%}), {row['images_per_second']:.0f} images/s, "
              f"{row['share_waiting']:.0%} waiting for data", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
