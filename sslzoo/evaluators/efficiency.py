"""What the encoder costs: parameters, operations, images per second, memory, energy, hours."""

import platform
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sslzoo.backbones import count_parameters
from sslzoo.data import DataError
from sslzoo.evaluation.efficiency import (
    energy_joules,
    flops,
    median,
    peak_memory,
    step_seconds,
    training_flops,
    training_hours,
)
from sslzoo.evaluation.features import evaluation_views
from sslzoo.evaluation.results import Result, Row, percent
from sslzoo.evaluation.subject import DTYPES

VERSION = 2


@dataclass
class Config:
    """Options of the efficiency. The precision is that of --precision."""

    batch_size: int = 0
    """Images of a pass; 0 is 64 on a GPU, and 8 on a CPU: there 64 are up to a quarter faster (a
    ResNet-18 at 64 x 64 pixels), but take eight times as long to time."""
    warmup: int = 20
    """Passes before the clock starts."""
    steps: int = 50
    """Passes that are timed."""
    repeats: int = 3
    """Such timings, of which the median counts."""
    compile: bool = False
    """Time torch.compile's code."""
    training: bool = True
    """Also time forward and backward together."""
    price: float = 0.0
    """Of an hour of the machine, in any currency, for the cost of the run; 0 leaves it out."""
    accuracy: float = 0.0
    """Share, 0 to 1: also the hours until the run's live probes first reached it; 0 is off."""

    def __post_init__(self):
        if not 0 <= self.accuracy <= 1:
            raise ValueError(f"accuracy must be 0 to 1; got {self.accuracy}")
        if min(self.steps, self.repeats) < 1 or min(self.batch_size, self.warmup, self.price) < 0:
            raise ValueError("steps and repeats must be at least 1, batch_size, warmup and price "
                             "at least 0")  # fmt: skip


def evaluate(subject, config):
    """Rows of counts, speeds, memory, energy, and of the run's hours and cost."""
    chosen = 64 if subject.device.type == "cuda" else 8
    config = replace(config, batch_size=config.batch_size or chosen)
    shape = (config.batch_size, subject.about["channels"], subject.size, subject.size)
    x = torch.rand(shape, generator=torch.Generator().manual_seed(subject.seed)).to(subject.device)
    rows, notes = count_rows(subject, x[:1]), []
    for name, step in passes(subject, config, x).items():
        rows += speed_rows(name, step, subject, config)
    rows += loading_rows(subject, config, notes)
    if "method" in subject.about and (subject.folder / "config.yaml").is_file():
        rows += step_rows(subject, notes) + run_rows(subject, config, notes)
    if not any("energy" in row.metric for row in rows):
        notes.append("no energy: neither the driver nor the operating system tells")
    details = {"machine": machine(subject.device), "precision": subject.common.precision,
               "compile": config.compile, "batch_size": config.batch_size,
               "threads": torch.get_num_threads()}  # fmt: skip
    return Result(rows, details=details, notes=notes)


def count_rows(subject, x):
    """Parameters, and operations for one image; the backward pass is twice the forward."""
    model = subject.backbone
    once = flops(model, x) / 1e9
    return [Row("parameters", count_parameters(model) / 1e6, unit="million"),
            Row("forward", once, unit="GFLOP an image (multiply-add = 2)"),
            Row("forward and backward", 3 * once, unit="GFLOP an image")]  # fmt: skip


def passes(subject, config, x):
    """{name: a function that does one pass}."""
    dtype = DTYPES[subject.common.precision]
    frozen = torch.compile(subject.backbone) if config.compile else subject.backbone

    def forward():
        with torch.no_grad(), torch.autocast(x.device.type, dtype, enabled=dtype is not None):
            frozen(x)

    found = {"forward": forward}
    if config.training:
        model = subject.trainable().train()
        tuned = torch.compile(model) if config.compile else model

        def both():
            with torch.autocast(x.device.type, dtype, enabled=dtype is not None):
                loss = tuned(x).float().square().mean()
            loss.backward()
            model.zero_grad()

        found["forward and backward"] = both
    return found


def speed_rows(name, step, subject, config):
    """Images per second, peak memory and energy of one kind of pass."""
    found, times, device = {}, [], subject.device
    with peak_memory(device, found):
        for _ in range(config.repeats):
            times.append(step_seconds(step, device, warmup=config.warmup, steps=config.steps))
    speed, std = median([config.batch_size / t for t in times])
    rows = [Row(f"{name}, speed", speed, std, unit="images/s")]
    rows += [Row(f"{name}, {what}", value, unit="MiB") for what, value in found.items()]
    before = energy_joules(device)
    if before is not None:
        step_seconds(step, device, warmup=0, steps=config.steps)
        joules = (energy_joules(device) - before) / (config.steps * config.batch_size)
        rows.append(Row(f"{name}, energy", joules, unit="J an image"))
    return rows


def loading_rows(subject, config, notes):
    """Images per second with the data's decoding and resizing, over one pass of the test split."""
    try:
        data = subject.data("test")
    except DataError as error:
        notes.append(f"no speed with loading: {error}")
        return []
    most = config.batch_size * config.steps
    data = data.subset(range(min(len(data), most)))
    times = []
    for _ in range(config.repeats):
        start = time.perf_counter()
        views = evaluation_views(data, subject.size, config.batch_size, subject.common.workers)
        subject.encode(views)  # the features come back to the CPU, which waits for the device
        times.append(time.perf_counter() - start)
    speed, std = median([len(data) / t for t in times])
    return [Row("forward with loading, speed", speed, std, unit="images/s")]


def step_rows(subject, notes):
    """Parameters of the run's method, and operations of an image in a step of its training."""
    from sslzoo import options, training

    chosen = options.parse_pretrain(["--resume", str(subject.folder)])
    try:
        setup = training.set_up(chosen.name, chosen.method, chosen.training)
    except ValueError as error:
        notes.append(f"no operations of a training step: {error}")
        return []
    method, each = setup.method, setup.loader.steps_per_epoch
    if hasattr(method, "plan"):
        method.plan(chosen.training.epochs * each, each)
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    operations = training_flops(method.train(), next(setup.loader.epoch(0)).views)
    each = operations / setup.loader.batch_size
    return [Row("method, parameters that are trained", trained / 1e6, unit="million"),
            Row("method, all parameters", count_parameters(method) / 1e6, unit="million"),
            Row("training step", each / 1e9, unit="GFLOP an image, all it does")]  # fmt: skip


def run_rows(subject, config, notes):
    """Hours and cost of the training so far, and the hours to an accuracy."""
    hours = training_hours(subject.folder)
    if hours is None:
        return []
    rows = [Row("training so far", hours, unit="hours")]
    if config.price:
        rows.append(Row("cost so far", hours * config.price, unit="(hours x price)"))
    reached = training_hours(subject.folder, config.accuracy) if config.accuracy else None
    if reached is not None:
        rows.append(Row(f"training to {percent(config.accuracy)}", reached, unit="hours"))
    elif config.accuracy:
        notes.append(f"no live probe of the run reached {percent(config.accuracy)}")
    return rows


def machine(device):
    """Name of the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (names or [platform.processor() or platform.machine()])[0]
