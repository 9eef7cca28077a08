"""What a person sees while a run goes on: a bar on a terminal, a few lines in a log file."""

from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    track,
)

LINES_IN_A_LOG_FILE = 10

_has_bar = False  # one at a time: a loop within a run or within another loop shows none


@contextmanager
def _only_bar():
    global _has_bar
    _has_bar = True
    try:
        yield
    finally:
        _has_bar = False


def with_bar(steps, total, what):
    """The items of `steps`; while they last, a bar on standard error, if that is a terminal.

    Args:
        steps: an iterable.
        total: how many items it has.
        what: words before the bar.
    """
    console = Console(stderr=True)
    if _has_bar or not console.is_terminal:
        yield from steps
        return
    with _only_bar():
        yield from track(steps, what, total=total, console=console, transient=True)


class Report:
    """Reports to a rich console, or to nobody.

    Args:
        console: rich.console.Console, or None.
    """

    def __init__(self, console=None):
        self.console = console
        self._bar = self._task = None

    def say(self, text):
        if self.console is not None:
            self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def warn(self, text):
        if self.console is not None:
            self.console.print(f"warning: {text}", style="yellow", highlight=False, markup=False,
                               soft_wrap=True)  # fmt: skip

    @contextmanager
    def bar(self, total, done):
        """A progress bar over the steps of a run, if this is a terminal."""
        if self.console is None or not self.console.is_terminal:
            yield
            return
        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps  loss {task.fields[loss]}  {task.fields[speed]} images/s  left"),
            TimeRemainingColumn(),
        )
        with _only_bar(), Progress(*columns, console=self.console, transient=True) as self._bar:
            self._task = self._bar.add_task("", total=total, completed=done, loss="-", speed="-")
            yield
        self._bar = None

    def advance(self):
        if self._bar is not None:
            self._bar.advance(self._task)

    def show(self, row, total, log_every):
        """The loss and speed of a log step: in the bar, or now and then as a line."""
        loss, speed = f"{row['loss']:.4f}", f"{row['images_per_second']:.0f}"
        if self._bar is not None:
            self._bar.update(self._task, loss=loss, speed=speed)
        else:
            part = max(total // LINES_IN_A_LOG_FILE, 1)
            if row["step"] == total or row["step"] // part > (row["step"] - log_every) // part:
                self.say(f"step {row['step']}/{total}  loss {loss}  {speed} images/s")
