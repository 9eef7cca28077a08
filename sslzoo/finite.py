"""A loss that is not finite stops the run, and says at which step and on which inputs."""

import math

from sslzoo.failures import TrainingError


class FiniteLoss:
    """Remembers the losses since the last check, so that the first bad one can be named.

    Args:
        trainer: sslzoo.training.Trainer.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self.losses = []  # (step, 0-d tensor): nothing waits for the device before the check

    def add(self, step, outputs):
        self.losses.append((step, outputs["loss"].detach()))

    def check(self, mean):
        """Raises TrainingError unless the mean of the losses, over all processes, is finite."""
        losses, self.losses = self.losses, []
        if math.isfinite(mean):
            return
        bad = (step for step, loss in losses if not math.isfinite(loss.item()))
        trainer, config = self.trainer, self.trainer.config
        step = next(bad, trainer.step)  # another process's loss is not here
        raise TrainingError(
            f"the loss is {mean} at step {step} of {trainer.total_steps}; its inputs: "
            f"{self.inputs(step)}; {last_checkpoint(trainer)}; try a lower --base_lr (now "
            f"{config.base_lr:g}), a longer --warmup_epochs, or --precision fp32"
        )

    def inputs(self, step):
        """Statistics of this process's views at a step, which are made once more."""
        loader, accumulate = self.trainer.loader, self.trainer.config.accumulate
        epoch, first = divmod((step - 1) * accumulate, loader.steps_per_epoch)
        batch = next(loader.epoch(epoch, first))
        return ", ".join(f"view {i} {describe(view)}" for i, view in enumerate(batch.views))


def describe(view):
    """Range, mean and faults of a tensor, in words."""
    finite = view[view.isfinite()]
    if not len(finite):
        return "holds no finite value"
    low, mean, high = (float(x) for x in (finite.min(), finite.mean(), finite.max()))
    faults = view.numel() - len(finite)
    return f"from {low:.3g} to {high:.3g}, mean {mean:.3g}, {faults} values not finite"


def last_checkpoint(trainer):
    """Which checkpoint to go on from, in words."""
    if trainer.saved_step is None:
        return "no checkpoint was written yet"
    return (
        f"the last good checkpoint, of step {trainer.saved_step}, is {trainer.setup.run.checkpoint}"
    )
