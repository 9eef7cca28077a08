"""Schedules as pure functions of the step: nothing to save, nothing to restore."""

import math


def warmup_cosine(step, total_steps, peak, *, warmup_steps=0, minimum=0.0):
    """Linear warm-up from 0 to `peak`, then half a cosine down to `minimum`.

    Args:
        step: optimizer steps done so far, 0 to `total_steps`.
        total_steps: optimizer steps of the whole run.
        peak: the value at the end of the warm-up.
        warmup_steps: optimizer steps of the warm-up; 0 starts at the peak.
        minimum: the value at `total_steps`.

    Returns:
        The value to use in this step: set it before the optimizer steps.

    Source:
        Loshchilov, Hutter, "SGDR", ICLR 2017, eq. 5; the warm-up: Goyal et al., 2017, section 2.2.

    Example:
        >>> [round(warmup_cosine(t, 8, 1.0, warmup_steps=4), 3) for t in (0, 2, 4, 6, 8)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if step < warmup_steps:
        return peak * step / warmup_steps
    done = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return minimum + (peak - minimum) / 2 * (1 + math.cos(math.pi * done))


def warmup_steps_down(step, peak, *, warmup_steps=0, drops=()):
    """Linear warm-up from 0 to `peak`, then a tenth from each step in `drops` on.

    Example:
        >>> [warmup_steps_down(t, 1.0, warmup_steps=2, drops=[4, 6]) for t in (1, 3, 4, 6)]
        [0.5, 1.0, 0.1, 0.01]
    """
    if step < warmup_steps:
        return peak * step / warmup_steps
    return peak / 10 ** sum(step >= drop for drop in drops)


def scaled_learning_rate(base_lr, batch, rule):
    """The learning rate of a batch from the one that was tuned per 256 images.

    Args:
        base_lr: the learning rate at a batch of 256 images.
        batch: images per optimizer step, over all processes and accumulated batches.
        rule: "linear" (base_lr x batch / 256), "sqrt" (base_lr x sqrt(batch / 256)) or "none".

    Example:
        >>> scaled_learning_rate(0.3, 4096, "linear")
        4.8
    """
    return base_lr * {"linear": batch / 256, "sqrt": math.sqrt(batch / 256), "none": 1.0}[rule]


def cosine(step, total_steps, start, end):
    """Half a cosine from `start` at step 0 to `end` at `total_steps`, rising or falling.

    Example:
        >>> [round(cosine(t, 4, 0.04, 0.4), 3) for t in (0, 2, 4)]
        [0.04, 0.22, 0.4]
    """
    return end + (start - end) / 2 * (1 + math.cos(math.pi * min(step / max(total_steps, 1), 1)))


def linear_warmup(step, steps, start, end):
    """From `start` at step 0 in equal steps to `end` at step `steps - 1`, and `end` from there on.

    Example:
        >>> [round(linear_warmup(t, 3, 0.04, 0.07), 3) for t in (0, 1, 2, 3)]
        [0.04, 0.055, 0.07, 0.07]
    """
    return start + (end - start) * min(step / (steps - 1), 1) if steps > 1 else end
