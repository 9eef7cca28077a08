"""Whole training steps, data included: images per second, memory, share of waiting for data.

python benchmarks/train_step.py                  every method, ours against lightly's parts
python benchmarks/train_step.py --method simclr
python benchmarks/train_step.py --tiny           sizes that any machine can run

The images are random numbers of the right size, in memory: nothing is decoded. Both sides train
the same backbone with the same optimizer and precision (bf16 autocast on a GPU, float32 on a CPU),
each with its own views, heads, loss and loader; blocks of steps of either side alternate.
"""

import argparse
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # a checkout that is not installed

from benchmarks import measure, results  # noqa: E402


@dataclass(frozen=True)
class Setting:
    """One step to measure: a method's file, and what both sides are given."""

    method: str
    backbone: str
    size: int
    batch: int
    config: dict = field(default_factory=dict)

    @property
    def model(self):
        return f"{self.backbone}, {self.size} x {self.size}, batch {self.batch}"


DECODER = {"decoder_width": 512, "decoder_depth": 8, "decoder_heads": 16}
# Neither groups of batch norm nor stochastic depth, which lightly's parts do not have.
V2 = {"version": "v2", "temperature": 0.2, "key_momentum": 0.999, "bn_splits": 1}
CROPS = {"drop_path": 0.0, "teacher_momentum": 0.996}
GPU = [
    Setting("simclr", "resnet18", 32, 512),
    Setting("simclr", "resnet50", 224, 128, {"blur": 0.5}),
    Setting("mae", "vit_base_patch16_224", 224, 256, DECODER),
    Setting("moco", "resnet50", 224, 128, {**V2, "queue_size": 65536, "blur": 0.5}),
    Setting("dino", "vit_small_patch16_224", 224, 64,
            {**CROPS, "prototypes": 65536, "head_hidden": 2048, "local_crops": 8,
             "local_size": 96, "blur": 1.0}),
]  # fmt: skip
CPU = [
    Setting("simclr", "resnet18", 32, 64),
    Setting("mae", "vit_tiny_patch16_224", 96, 32, DECODER),
    Setting("moco", "resnet18", 32, 64, {**V2, "queue_size": 4096}),
    Setting("dino", "vit_tiny_patch16_224", 64, 8, {**CROPS, "prototypes": 4096}),
]
TINY = [
    Setting("simclr", "convnet4", 32, 8),
    Setting("mae", "vit_tiny_patch16_224", 32, 4, DECODER),
    Setting("moco", "convnet4", 32, 8, {**V2, "queue_size": 16}),
    Setting("dino", "vit_tiny_patch16_224", 32, 2, {**CROPS, "prototypes": 64}),
]


class Ours:
    """A method of sslzoo with its own loader, in a plain loop."""

    def __init__(self, setting, module, images, device):
        from sslzoo import registry

        config = module.Config(**setting.config)
        if hasattr(module, "adapt"):
            config, _ = module.adapt(config, setting.batch, len(images))
        self.config, self.views = config, module.views(config, setting.size)
        self.method = registry.method_class(module)(backbone_of(setting), config).to(device)
        self.loader = loader_of(images, self.views, setting, device)
        if hasattr(self.method, "plan"):
            self.method.plan(1000, self.loader.steps_per_epoch)
        self.step, self.wait_seconds = 0, 0.0
        self.optimizer = optimizer_of(self.method)
        self.batches = self.endless()

    def endless(self):
        epoch = 0
        while True:
            yield from self.loader.epoch(epoch)
            epoch += 1

    def next_views(self):
        return next(self.batches).views

    def loss(self, views):
        return self.method(views, self.step)["loss"]

    def train(self, views, device):
        if hasattr(self.method, "schedule"):
            self.method.schedule(self.step, self.optimizer.param_groups)
        with precision(device):
            loss = self.loss(views)
        loss.backward()
        if hasattr(self.method, "after_backward"):
            self.method.after_backward(self.step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        if hasattr(self.method, "after_step"):
            self.method.after_step(self.step)


class Lightly:
    """The same from lightly's parts, with its transforms in torch's DataLoader."""

    def __init__(self, setting, name, ours, images, device):
        from benchmarks import lightly_steps

        step = lightly_steps.STEPS[name]
        backbone = backbone_of(setting, **getattr(step, "backbone_options", {}))
        self.method = step(backbone, ours.config).to(device)
        transform = step.transform(setting.size, ours.views)
        data = TransformedImages(images, transform)
        workers = torch.multiprocessing.cpu_count() if device == "cuda" else 0
        self.data = torch.utils.data.DataLoader(
            data, setting.batch, shuffle=True, drop_last=True, num_workers=workers,
            persistent_workers=workers > 0, pin_memory=device == "cuda",
        )  # fmt: skip
        self.device, self.optimizer = device, optimizer_of(self.method)
        self.batches = self.endless()

    def endless(self):
        while True:
            yield from self.data

    def next_views(self):
        return [x.to(self.device, non_blocking=True) for x in next(self.batches)]

    def train(self, views, device):
        with precision(device):
            loss = self.method(views)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.method.after_step(1, 1000)


class TransformedImages(torch.utils.data.Dataset):
    def __init__(self, images, transform):
        self.images, self.transform = images, transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        from PIL import Image

        return self.transform(Image.fromarray(self.images[index].permute(1, 2, 0).numpy()))


def backbone_of(setting, **options):
    from sslzoo import backbones

    torch.manual_seed(0)
    return backbones.build(setting.backbone, image_size=setting.size, **options)


def loader_of(images, views, setting, device):
    from dataclasses import replace

    from sslzoo.data.image_data import ImageData
    from sslzoo.loader import ViewLoader, channel_statistics

    data = ImageData("random", images=images)
    mean, std = channel_statistics(data)
    views = [replace(view, mean=mean, std=std) for view in views]
    return ViewLoader(data, views, batch_size=setting.batch, device=device)


def optimizer_of(module):
    wanted = [p for p in module.parameters() if p.requires_grad]
    return torch.optim.SGD(wanted, lr=1e-3, momentum=0.9)


def precision(device):
    return torch.autocast(device, torch.bfloat16, enabled=device == "cuda")


def one_step(side, device):
    """(seconds waiting for views, seconds in all)."""
    measure.synchronise(device)
    start = time.perf_counter()
    views = side.next_views()
    waited = time.perf_counter() - start
    side.train(views, device)
    measure.synchronise(device)
    return waited, time.perf_counter() - start


def compare(setting, device, tiny, seconds):
    """A record for ours and for lightly's, or the reason why there is none."""
    about = dict(method=setting.method, model=setting.model, tiny=tiny)
    sides, absent = sides_of(setting, device)
    peaks = {}
    for name in [*sides]:
        try:
            peaks[name] = peak(sides[name], device)
        except measure.failures() as error:  # memory, or workers of a loader without theirs
            del sides[name]
            absent[name] = f"failed: {measure.in_one_line(error)}"
            measure.synchronise(device)  # raises where the device itself is lost
    times = {name: [] for name in sides}
    end = time.monotonic() + seconds
    for round_ in range(2 if tiny else 10):  # blocks of steps on a GPU, where one is short
        for name, side in sides.items():
            times[name] += [one_step(side, device) for _ in range(5 if device == "cuda" else 1)]
        if round_ > 0 and time.monotonic() > end:
            break
    rows = [record(setting, times[name], peaks[name], variant=name, **about) for name in sides]
    rows += [dict(variant=name, absent=reason, **about) for name, reason in absent.items()]
    if len(sides) == 2:
        ours, theirs = rows[:2]
        ours["ratio_to_best_peer"] = ours["images_per_second"] / theirs["images_per_second"]
    return rows


def sides_of(setting, device):
    """{name: side}, {name: why it is absent}."""
    from sslzoo import registry

    name = setting.method
    if name not in registry.methods():
        return {}, {"sslops": f"this checkout has no method {name}"}
    side = min(int(1.15 * setting.size), setting.size + 32)
    images = torch.randint(0, 256, (max(256, 2 * setting.batch), 3, side, side), dtype=torch.uint8)
    sides = {}
    try:
        sides["sslops"] = Ours(setting, registry.method(name), images, device)
        sides["lightly"] = Lightly(setting, name, sides["sslops"], images, device)
    except ModuleNotFoundError as error:
        missing = "lightly" if sides else "sslops"
        return sides, {missing: f"{error.name} is not installed"}
    except measure.failures() as error:
        return sides, {"lightly" if sides else "sslops": f"failed: {measure.in_one_line(error)}"}
    return sides, {}


def peak(side, device):
    """MiB of a step above what lives between steps; the run before it warms everything up."""
    return measure.peak_mib(lambda: one_step(side, device), device)


def record(setting, times, peak_mib, **about):
    step = statistics.median(total for _, total in times)
    waiting = sum(waited for waited, _ in times) / sum(total for _, total in times)
    return dict(
        images_per_second=setting.batch / step,
        step_ms=measure.quantiles_ms([total for _, total in times]),
        share_waiting=waiting,
        step_peak_mib=peak_mib,
        **about,
    )


def show(row):
    if row.get("absent"):
        print(f"  {row['variant']:<8} absent: {row['absent']}", flush=True)
        return
    peak_mib = "?" if row["step_peak_mib"] is None else f"{row['step_peak_mib']:.0f}"
    print(f"  {row['variant']:<8} {row['images_per_second']:8.1f} images/s, "
          f"{row['share_waiting']:.0%} waiting for data, {peak_mib} MiB", flush=True)  # fmt: skip


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--method", help="default: all of them")
    parser.add_argument("--tiny", action="store_true", help="sizes that any machine can run")
    parser.add_argument("--budget", type=float, default=480, help="seconds")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = TINY if options.tiny else GPU if device == "cuda" else CPU
    settings = [s for s in settings if options.method in (None, s.method)]
    machine = measure.machine(device)
    end = time.monotonic() + options.budget
    for i, setting in enumerate(settings):
        print(f"\n{setting.method}: {setting.model}", flush=True)
        left = (end - time.monotonic()) / (len(settings) - i)
        rows = compare(setting, device, options.tiny, left / 2)
        for row in rows:
            show(row)
        results.add(machine, "steps", rows)


if __name__ == "__main__":
    main()
