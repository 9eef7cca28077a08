"""How a run ends before its time: errors whose message is one line for the user."""

import signal

# EX_TEMPFAIL, "try again later": what a SLURM script, or RequeueExit in slurm.conf, requeues by.
REQUEUE = 75


class TrainingError(RuntimeError):
    """A run that cannot go on."""


class Interrupted(TrainingError):
    """A run stopped by Ctrl-C (exit code 130) or SIGTERM (75), with a checkpoint to resume from.

    Args:
        message: one line.
        number: of the signal.
    """

    def __init__(self, message, number):
        super().__init__(message)
        self.exit_code = REQUEUE if number == signal.SIGTERM else 130
