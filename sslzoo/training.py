"""The loop that trains any method: read it from `pretrain` down.

Hugging Face accelerate does devices, precision, DDP and gradient accumulation; sslzoo/sharding.py
FSDP2. For several processes: `accelerate launch --multi_gpu -m sslzoo pretrain ...`, or torchrun.
"""

import math
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import nn

from sslzoo import checkpoints, optimizers, registry, sharding
from sslzoo.announcement import announcement
from sslzoo.failures import Interrupted
from sslzoo.finite import FiniteLoss
from sslzoo.gradient_cache import Embedder, two_passes
from sslzoo.kinds import KINDS, kind_of, views_of
from sslzoo.loader import workers_named
from sslzoo.meters import Meters
from sslzoo.processes import of_main, partners_named, start_processes
from sslzoo.progress import Report
from sslzoo.run_folder import RunFolder, free_path, plain
from sslzoo.schedules import scaled_learning_rate, warmup_cosine, warmup_steps_down
from sslzoo.stop_requests import stop_requests
from sslzoo.survey import survey, view_statistics
from sslzoo.synced_batch_norm import sync_batch_norm
from sslzoo.training_config import TrainingConfig
from sslzoo.unreadable import UnreadableLog
from sslzoo.watch import Watch


@dataclass
class Setup:
    """All that a run needs, made from its options."""

    config: TrainingConfig
    options: dict  # every option of the run by name, to write and to compare
    accelerator: object  # accelerate's
    data: object  # ImageData, or that of another kind
    method: nn.Module
    loader: object  # of views, as sslzoo.loader.ViewLoader
    about: dict  # how the backbone was made and what it expects, kept beside its weights
    run: RunFolder
    report: Report
    reasons: list  # what the method chose for itself, and why; one line each
    whole: nn.Module = None  # the method, or a copy where its weights are divided: sslzoo.sharding

    def __post_init__(self):
        self.whole = self.method

    @property
    def device(self):
        return self.accelerator.device

    @property
    def is_main(self):
        return self.accelerator.is_main_process


def pretrain(name, method_config, config, *, resume=False, console=None):
    """Train a method and leave a run folder: `set_up`, then `train`."""
    return train(set_up(name, method_config, config, console), resume=resume)


def set_up(name, method_config, config, console=None):
    """The method with random weights and all around it; nothing is written yet.

    Args:
        name: a method of sslzoo.registry.
        method_config: that method's Config.
        config: TrainingConfig.
        console: a rich console that shows progress; None is silent.

    Returns:
        Setup.

    Raises:
        ValueError: an option, or the data (DataError), is not usable.
    """
    module = registry.method(name)
    accelerator = start_processes(config, 1 if is_cached(module, config) else config.accumulate)
    kind = kind_of(module, config.backbone)
    with accelerator.local_main_process_first():  # one process downloads, the others find it
        data = KINDS[kind].open(config.data, **config.opening)
    reasons = []
    if hasattr(module, "adapt"):
        batch = config.batch_size * config.accumulate
        method_config, reasons = module.adapt(method_config, batch, len(data))
    mean, std = view_statistics(module, data, kind)
    views = [replace(view, mean=mean, std=std)
             for view in views_of(module, method_config, config.image_size, kind)]  # fmt: skip
    loader = make_loader(KINDS[kind].loader, data, views, config, accelerator)
    method = make_method(module, method_config, config, data.channels, accelerator)
    if config.shard:
        sharding.check(method)
    survey(method, data, config.image_size, mean, std, accelerator.device)
    options_of = getattr(module, "backbone_options", lambda config, name: {})
    about = {
        "method": name,
        "data": config.data,
        "kind": kind,
        "backbone": config.backbone,
        "backbone_options": options_of(method_config, config.backbone),
        "num_features": method.backbone.num_features,
        "image_size": config.image_size,
        "channels": data.channels,
        "mean": list(mean),
        "std": list(std),
    }
    options = plain({"method": name, **asdict(config), **asdict(method_config)})
    # A process that is late would find the main one's folder taken, and another one free.
    run = RunFolder(of_main(config.out or free_path(name, config.data)))
    report = Report(console if accelerator.is_main_process else None)
    return Setup(config, options, accelerator, data, method, loader, about, run, report, reasons)


def is_cached(module, config):
    """Whether accumulation gives the loss of all batches together."""
    return config.accumulate > 1 and hasattr(registry.method_class(module), "embed")


def make_loader(loader_class, data, views, config, accelerator):
    """The batches of this process."""
    loader = loader_class(
        data,
        views,
        batch_size=config.batch_size,
        seed=config.seed,
        device=accelerator.device,
        workers=config.workers,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        maker=config.views,
    )
    batches = config.epochs * loader.steps_per_epoch
    if batches < config.accumulate:
        raise ValueError(f"accumulate {config.accumulate} exceeds the {batches} batches of the run")
    return loader


def make_method(module, method_config, config, channels, accelerator):
    """The method with random weights, the same in every process."""
    torch.manual_seed(config.seed)
    options_of = getattr(module, "backbone_options", lambda config, name: {})
    backbone = registry.build_backbone(
        module, config.backbone, image_size=config.image_size, channels=channels,
        **options_of(method_config, config.backbone),
    )  # fmt: skip
    method = registry.method_class(module)(backbone, method_config)
    if accelerator.num_processes > 1 and getattr(method, "sync_batch_norm", True):
        # Statistics of one process would tell the network which views belong together.
        method = sync_batch_norm(method, accelerator.device)
    # Convolutions read and write channels last fastest: 1.2 to 1.5 times on a CPU (docs/log.md).
    return method.to(accelerator.device, memory_format=torch.channels_last)


def train(setup, *, resume=False):
    """Train what was set up and leave a run folder.

    Args:
        setup: Setup.
        resume: continue the run from its checkpoint. On a CPU it ends with the weights, bit for
            bit, of a run that was never stopped.

    Returns:
        RunFolder.

    Raises:
        RunFolderError: the run folder cannot be written or continued.
        TrainingError: the loss is not finite, or another process is gone (sslzoo.failures).
        Interrupted: Ctrl-C or SIGTERM; the checkpoint is written.
    """
    trainer = Trainer(setup)
    if setup.is_main:
        setup.run.prepare(setup.options, resume)
    setup.accelerator.wait_for_everyone()
    if resume:
        checkpoints.restore(trainer)
    for line in announcement(setup, trainer.peak_lr, trainer.total_steps, trainer.step):
        setup.report.say(line)
    trainer.unreadable.update({})
    with partners_named(setup.accelerator, setup.run.path), workers_named():
        trainer.fit()
    for line in trainer.meters.summary():
        setup.report.say(line)
    with sharding.gathered(setup):
        if setup.is_main:
            trainer.watch.finish()
    setup.accelerator.end_training()
    return setup.run


class Trainer:
    """The method and its optimizer, while they train.

    Args:
        setup: Setup.

    Attributes:
        step: optimizer steps done.
        saved_step: that of the last checkpoint; None before the first.
    """

    def __init__(self, setup):
        self.setup, self.config, self.accelerator = setup, setup.config, setup.accelerator
        self.method, self.loader, self.watch = setup.method, setup.loader, Watch(setup)
        config = self.config
        batch = config.batch_size * config.accumulate
        self.step, self.saved_step, self.skipped = 0, None, 0
        self.unreadable = UnreadableLog(setup)
        self.total_steps = config.epochs * self.loader.steps_per_epoch // config.accumulate
        self.peak_lr = scaled_learning_rate(config.base_lr, batch, config.lr_rule)
        self.meters, self.finite = Meters(batch), FiniteLoss(self)
        if hasattr(self.method, "plan"):
            self.method.plan(self.total_steps, self.loader.steps_per_epoch / config.accumulate)
        self.is_cached = is_cached(registry.method(setup.about["method"]), config)
        model = Embedder(self.method) if self.is_cached else self.method
        self.model = sharding.spread(model, setup)
        optimizer = optimizers.of_run(self.method, config, self.peak_lr)
        self.optimizer = self.accelerator.prepare_optimizer(optimizer)

    def fit(self):
        """All steps from where the run stands to its end."""
        self.model.train()
        batches = self.batches()
        with (
            stop_requests(self.accelerator) as stop,
            self.setup.report.bar(self.total_steps, self.step),
        ):
            self.meters.start()
            while self.step < self.total_steps:
                outputs = self.train_step(batches)
                self.setup.report.advance()
                if self.is_log_step(self.step):
                    self.log(outputs)
                if self.is_picture_step(self.step):
                    self.draw()
                number = stop.agreed(self.is_meeting_step(self.step))
                if self.is_checkpoint_step(self.step) or number:
                    self.save()
                if number:
                    raise Interrupted(f"stopped at step {self.step} of {self.total_steps}; go on "
                                      f"with --resume {self.setup.run.path}", number)  # fmt: skip

    def batches(self):
        """All batches of the run from the present step on."""
        epoch, first = divmod(self.step * self.config.accumulate, self.loader.steps_per_epoch)
        for number in range(epoch, self.config.epochs):
            yield from self.loader.epoch(number, first)
            first = 0

    def train_step(self, batches):
        """One optimizer step; returns what the method returned for its last batch."""
        self.seed(0)
        self.set_learning_rate()
        waited = self.loader.wait_seconds
        views = (next(batches).views for _ in range(self.config.accumulate))
        outputs = self.cached_pass(views) if self.is_cached else self.passes(views)
        if self.accelerator.scaler is not None:
            self.skipped += self.optimizer.step_was_skipped
        self.meters.count_step(self.loader.wait_seconds - waited)
        self.step += 1
        if hasattr(self.method, "after_step"):
            self.method.after_step(self.step)
        return outputs

    def passes(self, batches):
        """A forward and a backward pass for each batch; the gradients are averaged."""
        for views in batches:
            with self.accelerator.accumulate(self.model):
                outputs = self.model(views, self.step)
                self.accelerator.backward(outputs["loss"])
                self.step_optimizer(outputs, self.accelerator.sync_gradients)
        return outputs

    def cached_pass(self, batches):
        """The gradient of the loss of all batches together."""
        outputs = two_passes(
            self.model, self.method.contrast, list(batches), self.step, seed=self.seed,
            backward=self.accelerator.backward,
            no_sync=lambda: self.accelerator.no_sync(self.model),
        )  # fmt: skip
        self.step_optimizer(outputs, True)
        return outputs

    def step_optimizer(self, outputs, is_complete):
        if is_complete:
            self.finish_gradient()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.meters.add(outputs)
        self.finite.add(self.step + 1, outputs)

    def seed(self, batch):
        # Dropout and masks are a function of (seed, step, process): no state to save and restore.
        more = [batch] if batch else []
        torch.manual_seed(_mix(self.config.seed, self.step, self.accelerator.process_index, *more))

    def set_learning_rate(self):
        config = self.config
        warmup_steps = config.warmup_epochs * self.loader.steps_per_epoch / config.accumulate
        if config.lr_drops:
            self.lr = warmup_steps_down(self.step, self.peak_lr, warmup_steps=warmup_steps,
                                        drops=[d * self.total_steps / config.epochs
                                               for d in config.lr_drops])  # fmt: skip
        else:
            self.lr = warmup_cosine(self.step, self.total_steps, self.peak_lr,
                                    warmup_steps=warmup_steps, minimum=config.min_lr)  # fmt: skip
        if hasattr(self.method, "schedule"):
            self.method.schedule(self.step, self.optimizer.param_groups)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * group.get("lr_scale", 1.0)

    def finish_gradient(self):
        """Clip, and measure the norm at log steps; without clipping, other steps pay nothing."""
        limit = self.config.clip_gradient or math.inf
        is_measured = limit < math.inf or self.is_log_step(self.step + 1)
        if is_measured:  # this also takes fp16's scale off the gradient
            self.gradient_norm = self.accelerator.clip_grad_norm_(self.method.parameters(), limit)
        if hasattr(self.method, "after_backward"):
            if not is_measured:
                self.accelerator.unscale_gradients()
            self.method.after_backward(self.step)

    def epochs_at(self, step):
        """Whole epochs done after `step` optimizer steps."""
        return step * self.config.accumulate // self.loader.steps_per_epoch

    def is_log_step(self, step):
        return step % self.config.log_every == 0 or step == self.total_steps

    def is_checkpoint_step(self, step):
        if self.config.checkpoint_every:
            due = step % self.config.checkpoint_every == 0
        else:
            due = self.epochs_at(step) > self.epochs_at(step - 1)
        return due or step == self.total_steps

    def is_meeting_step(self, step):
        """Whether processes may wait for one another: on a GPU where they do so anyway."""
        return self.setup.device.type == "cpu" or self.is_log_step(step)

    def is_picture_step(self, step):
        every = self.config.pictures_every
        ended, before = self.epochs_at(step), self.epochs_at(step - 1)
        return bool(every) and step < self.total_steps and ended // every > before // every

    def draw(self):
        self.meters.stop()
        with sharding.gathered(self.setup):
            if self.setup.is_main:
                self.watch.draw(self.epochs_at(self.step))
        self.meters.start()

    def log(self, outputs):
        """One row of metrics: averages since the last row, and what this step shows."""
        self.meters.stop()
        means = self.meters.take(lambda tensor: self.accelerator.reduce(tensor, "mean"))
        self.finite.check(means["loss"])
        row = {"step": self.step, "epoch": self.epochs_at(self.step), "lr": self.lr, **means}
        row["gradient_norm"] = float(sharding.full(self.gradient_norm))
        if self.accelerator.scaler is not None:
            # fp16: where the gradient overflowed the step is skipped and the scale falls.
            row["skipped_steps"] = self.skipped
            row["loss_scale"] = self.accelerator.scaler.get_scale()
        if self.setup.device.type == "cuda":
            row["peak_memory_mib"] = torch.cuda.max_memory_allocated(self.setup.device) / 2**20
        self.unreadable.update(row)
        with sharding.whole_roots(self.model):
            row |= self.watch.measure(outputs)
        row |= self.watch.scores(row["epoch"], is_last=self.step == self.total_steps)
        if self.setup.is_main:
            self.setup.run.log(row)
            self.setup.report.show(row, self.total_steps, self.config.log_every)
            self.watch.warn(row)
        self.meters.start()

    def save(self):
        """Write the checkpoint, unless the loss says that the weights are lost."""
        self.meters.stop()
        if "loss" in self.meters.sums:
            self.finite.check(self.accelerator.reduce(self.meters.sums["loss"], "mean").item())
        state = checkpoints.state_of(self)
        if self.setup.is_main:
            self.setup.run.save_checkpoint(state, self.saved_step)
        self.saved_step = self.step
        self.meters.start()


def _mix(*counters):
    """One 64-bit seed from several whole numbers."""
    return int(np.random.SeedSequence(counters).generate_state(1, np.uint64)[0])
