"""What is said before the first step of a run: what was chosen, and why."""

from sslzoo import backbones
from sslzoo.kinds import KINDS

LR_RULES = {"linear": " x {} / 256", "sqrt": " x sqrt({} / 256)", "none": ""}


def announcement(setup, peak_lr, total_steps, step):
    """Lines in words for the user.

    Args:
        setup: sslzoo.training.Setup.
        peak_lr: learning rate after warm-up.
        total_steps: optimizer steps of the whole run.
        step: steps done before; above 0 where a run is resumed.
    """
    config = setup.config
    batch = config.batch_size * config.accumulate
    return [
        subject(setup),
        f"batch {batch} = {config.batch_size} x {config.accumulate} accumulated; "
        f"{config.epochs} epochs are {total_steps} steps",
        f"learning rate {peak_lr:.4g} = {config.base_lr:g}"
        f"{LR_RULES[config.lr_rule].format(batch)} ({config.lr_rule} rule), "
        f"{config.warmup_epochs:g} epochs of warm-up, then {course(config)}; "
        f"{config.optimizer}, weight decay {config.weight_decay:g}",
        *unfinished_warm_up(config),
        *setup.reasons,
        f"run folder {setup.run.path}" + f", from step {step}" * bool(step),
    ]


def subject(setup):
    """Which method, on what data, with which encoder, on which devices."""
    config, data, about = setup.config, setup.data, setup.about
    precision = setup.accelerator.mixed_precision.replace("no", "fp32")
    millions = backbones.count_parameters(setup.method.backbone) / 1e6
    return (
        f"{about['method']} on {len(data)} {KINDS[about['kind']].things} of {data.name}; "
        f"{config.backbone} of {millions:.2f} M parameters; {setup.device} x "
        f"{setup.accelerator.num_processes}, {precision}"
    )


def unfinished_warm_up(config):
    """A line where the learning rate never gets to its peak, as in a short trial of a recipe."""
    if config.warmup_epochs < config.epochs:
        return []
    share = config.epochs / config.warmup_epochs
    return [f"the warm-up is not over at the end: the learning rate gets to {share:.0%} of that; "
            "--warmup_epochs shortens it"]  # fmt: skip


def course(config):
    """How the learning rate falls."""
    if not config.lr_drops:
        return f"a cosine to {config.min_lr:g}"
    drops = " and ".join(f"{epoch:g}" for epoch in config.lr_drops)
    return f"a tenth of it from epoch {drops} on"
