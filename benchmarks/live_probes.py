"""What live probes cost a training step between two probes: process time, blocks side by side.

python benchmarks/live_probes.py [--blocks 60] [--steps 10] [--method simclr] [--tiny]

Three runs of one seed live in one process: without probes, the same again, and with kNN and linear
probe, which has probed once before the clock starts and is not due again. They take turns by
blocks of steps, in an order of its own each round; a block ends with its log step, as in training.
The ratio of a round is that of two blocks seconds apart; given are the median ratio and the middle
half. On a CPU the clock is that of the process, which stands still while other programs run. The
second run without probes tells what the ratio is where nothing differs.
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # a checkout that is not installed

from benchmarks import measure  # noqa: E402
from benchmarks.representations import prepared_trainer  # noqa: E402

NEVER_AGAIN = 10**6  # epochs
PROBES = {"knn_every": NEVER_AGAIN, "linear_every": NEVER_AGAIN}
RUNS = {"without": {}, "without, again": {}, "with": PROBES}


class Run:
    """A training that goes on for some steps at a time."""

    def __init__(self, method, folder, options):
        from sslzoo.training_config import TrainingConfig

        config = TrainingConfig(data="digits", out=str(folder), epochs=NEVER_AGAIN, **options)
        self.trainer = prepared_trainer(method, {}, config)
        self.batches = self.trainer.batches()

    def probe(self):
        """The probes that are due; {} where there are none."""
        return self.trainer.watch.scores(NEVER_AGAIN)

    def advance(self, steps):
        """Seconds of so many steps, the log step at their end among them."""
        start = now(self.trainer.setup.device)
        for _ in range(steps):
            outputs = self.trainer.train_step(self.batches)
            if self.trainer.is_log_step(self.trainer.step):
                self.trainer.log(outputs)
        return now(self.trainer.setup.device) - start


def now(device):
    """Seconds of this process on a CPU, of the clock on the wall on a GPU, when it is done."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def time_blocks(runs, blocks, steps):
    """{name: seconds of each block}; a block of each run in a round, in a random order."""
    order, seconds = random.Random(0), {name: [] for name in runs}
    for _ in range(blocks):
        for name in order.sample(list(runs), len(runs)):
            seconds[name].append(runs[name].advance(steps))
    return seconds


def ratios(seconds, name):
    """(lower quartile, median, upper quartile) of a run's blocks over those without probes."""
    pairs = zip(seconds[name], seconds["without"], strict=True)
    return statistics.quantiles([ours / plain for ours, plain in pairs], n=4)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--method", default="simclr")
    parser.add_argument("--blocks", type=int, default=60)
    parser.add_argument("--steps", type=int, default=10, help="of a block")
    parser.add_argument("--tiny", action="store_true", help="sizes for a look whether it runs")
    options = parser.parse_args(argv)
    size, batch = (8, 16) if options.tiny else (16, 64)
    training = dict(backbone="convnet4", image_size=size, batch_size=batch, warmup_epochs=0.0,
                    log_every=options.steps)  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: Run(options.method, Path(folder, name), training | more)
                for name, more in RUNS.items()}  # fmt: skip
        found = {name: run.probe() for name, run in runs.items()}
        assert [*found["with"]] == ["knn_accuracy", "linear_accuracy"] and not found["without"]
        for run in runs.values():
            run.advance(options.steps)  # to warm up
        seconds = time_blocks(runs, options.blocks, options.steps)
        logged = [run.trainer.setup.run.path / "metrics.csv" for run in runs.values()]
        assert not any("knn_accuracy" in path.read_text() for path in logged), "a probe was due"
    about = measure.machine(runs["with"].trainer.setup.device.type)
    print(f"{options.method}, {options.blocks} blocks of {options.steps} steps, "
          f"{about['device']}, load {about['load']}")  # fmt: skip
    plain = 1000 * statistics.median(seconds["without"]) / options.steps
    print(f"without: {plain:.3f} ms a step")
    for name in [*RUNS][1:]:
        low, middle, high = ratios(seconds, name)
        print(f"{name}: {middle:.4f} of it ({low:.4f} to {high:.4f})")


if __name__ == "__main__":
    main()
