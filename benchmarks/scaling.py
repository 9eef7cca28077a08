"""A model on paper: time and bytes of the cross-device losses for 1 to 4096 GPUs.

python benchmarks/scaling.py
python benchmarks/scaling.py --rows 1024 --width 512 --node 8 --inside 450 --between 50

Nothing here is measured but what the options are taken from. A collective takes the bytes that a
rank receives over the bandwidth, which inside a node is a GPU's and across nodes that of all links
of a node together (what enters a node is handed on inside), and latencies: a ring's steps inside a
node, a tree's between nodes. Work on the device takes its FLOP at the rate given. Three forms:

all-gather     every rank gathers all W n keys, scores its n x W n block once, all-reduces the
               column sums and reduce-scatters the key gradients (8 n W n D FLOP)
ring           keys and their gradients travel once around; a step's transfer and its n x n block
               overlap; memory stays that of two blocks of keys
sharded queue  MoCo with a queue of K keys over the ranks: queries are gathered, every rank
               scores all W n of them against its K / W keys, (max, sum) and key sums are combined;
               the work is that of a replicated queue, only the memory is less
"""

import argparse
import json
import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # a checkout that is not installed

from benchmarks import results  # noqa: E402

GPUS = [2**i for i in range(13)]  # 1 .. 4096


@dataclass(frozen=True)
class Machine:
    """What the links and the devices can do."""

    node: int = 8  # GPUs joined by the fast links
    inside: float = 450.0  # GB/s from a GPU to others of its node, one way
    between: float = 50.0  # GB/s from a GPU to other nodes, one way
    inside_latency: float = 3.0  # microseconds of one step of a collective
    between_latency: float = 10.0
    tflops: float = 600.0  # of the loss, as it runs
    memory: float = 10.0  # GB that the loss may take for keys and their gradients

    def collective(self, W):
        """(bytes per second, seconds of latency in all) of a collective among W ranks."""
        inside = (min(W, self.node) - 1) * self.inside_latency * 1e-6
        if self.node >= W:
            return self.inside * 1e9, inside
        between = math.ceil(math.log2(W / self.node)) * self.between_latency * 1e-6
        return 1e9 * min(self.inside, self.node * self.between), inside + between

    def hop(self, W):
        """(bytes per second, latency) of every rank's transfer to the next, across nodes too."""
        if self.node >= W:
            return self.inside * 1e9, self.inside_latency * 1e-6
        return self.between * 1e9, self.between_latency * 1e-6

    def compute(self, flops):
        return flops / (self.tflops * 1e12)


@dataclass(frozen=True)
class Loss:
    """n rows of width D on each GPU, elements of some bytes; gradients travel in float32."""

    n: int = 1024
    D: int = 256
    element: int = 2
    queue: int = 65536


def gathered(machine, W, own_bytes):
    """(seconds, bytes received) of an all-gather in which every rank gives own_bytes."""
    if W == 1:
        return 0.0, 0
    bandwidth, latency = machine.collective(W)
    moved = (W - 1) * own_bytes
    return latency + moved / bandwidth, moved


def reduced(machine, W, size):
    """(seconds, bytes received) of an all-reduce of `size` bytes: twice the scattered half."""
    seconds, moved = gathered(machine, W, size / W)
    return 2 * seconds, 2 * moved


def all_gather(machine, loss, W):
    n, D = loss.n, loss.D
    steps = [
        gathered(machine, W, n * D * loss.element),  # keys
        reduced(machine, W, W * n * 8),  # column max and sum, float32
        gathered(machine, W, n * D * 4),  # reduce-scatter of key gradients: as costly
    ]
    work = machine.compute(8 * n * W * n * D)
    seconds = work + sum(s for s, _ in steps)
    return row(seconds, sum(b for _, b in steps), work, W * n * D * (loss.element + 4))


def ring(machine, loss, W):
    n, D = loss.n, loss.D
    bandwidth, latency = machine.hop(W)
    block = n * D * (loss.element + 4)  # keys, and the gradients that travel with them
    hop = latency + block / bandwidth if W > 1 else 0.0
    work = machine.compute(8 * n * n * D)
    # Forward: keys alone go around; backward: keys and gradients.
    forward_hop = latency + n * D * loss.element / bandwidth if W > 1 else 0.0
    seconds = W * (max(work / 4, forward_hop) + max(3 * work / 4, hop))
    moved = (W - 1) * (block + n * D * loss.element)
    return row(seconds, moved, W * work, 2 * block)


def sharded_queue(machine, loss, W):
    n, D = loss.n, loss.D
    parts = W * n * (D + 2) * 4  # key sums, max and sum of every query, combined over ranks
    steps = [gathered(machine, W, n * D * loss.element), reduced(machine, W, parts)]
    work = machine.compute(4 * W * n * math.ceil(loss.queue / W) * D)
    seconds = work + sum(s for s, _ in steps)
    return row(seconds, sum(b for _, b in steps), work, loss.queue / W * D * loss.element)


def replicated_queue(machine, loss, W):
    """What the sharded queue is weighed against: every rank holds all K keys, n keys gathered."""
    seconds, moved = gathered(machine, W, loss.n * loss.D * loss.element)
    work = machine.compute(4 * loss.n * loss.queue * loss.D)
    return row(work + seconds, moved, work, loss.queue * loss.D * loss.element)


def row(seconds, moved, work, memory):
    return {"ms": 1e3 * seconds, "moved_mb": moved / 1e6, "work_ms": 1e3 * work,
            "memory_mb": memory / 1e6}  # fmt: skip


FORMS = {
    "all-gather": all_gather,
    "ring": ring,
    "sharded queue": sharded_queue,
    "replicated queue": replicated_queue,
}


def table(machine, loss):
    """{form: {GPUs: row}}."""
    return {name: {W: form(machine, loss, W) for W in GPUS} for name, form in FORMS.items()}


def crossovers(rows, first, second):
    """The numbers of GPUs at which the faster of two forms changes: [(GPUs, the faster)]."""
    changes = []
    for W in GPUS[1:]:  # one GPU has nothing to exchange
        faster = min((first, second), key=lambda form: rows[form][W]["ms"])
        if not changes or changes[-1][1] != faster:
            changes.append((W, faster))
    return changes


def most_that_fit(machine, rows, form):
    """The largest number of GPUs at which a form keeps to the memory, or None."""
    fitting = [W for W in GPUS if rows[form][W]["memory_mb"] <= 1e3 * machine.memory]
    return max(fitting, default=None)


def in_words(machine, rows, first, second):
    faster = ", ".join(f"{form} from {W} GPUs on" for W, form in crossovers(rows, first, second))
    fits = " and ".join(
        f"{form} up to {most_that_fit(machine, rows, form)} GPUs" for form in (first, second)
    )
    return f"the faster: {faster}; {machine.memory:g} GB hold {fits}"


def markdown(rows):
    lines = ["| GPUs | " + " | ".join(f"{name}: ms (MB moved)" for name in FORMS) + " |",
             "|---" * (len(FORMS) + 1) + "|"]  # fmt: skip
    for W in GPUS:
        cells = (f"{rows[name][W]['ms']:.3g} ({rows[name][W]['moved_mb']:.3g})" for name in FORMS)
        lines.append(f"| {W} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(rows, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name in FORMS:
        axes.plot(GPUS, [rows[name][W]["ms"] for W in GPUS], marker=".", label=name)
    axes.plot(GPUS, [rows["all-gather"][W]["work_ms"] for W in GPUS], "k:", label="products alone")
    axes.set(xscale="log", yscale="log", xlabel="GPUs", ylabel="ms for a loss (model)")
    axes.set_xscale("log", base=2)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    machine, loss = Machine(), Loss()
    parser.add_argument("--rows", type=int, default=loss.n, help="per GPU")
    parser.add_argument("--width", type=int, default=loss.D)
    parser.add_argument("--queue", type=int, default=loss.queue, help="keys, over all GPUs")
    parser.add_argument("--node", type=int, default=machine.node, help="GPUs of a node")
    parser.add_argument("--inside", type=float, default=machine.inside, help="GB/s in a node")
    parser.add_argument("--between", type=float, default=machine.between, help="GB/s per GPU")
    parser.add_argument(
        "--inside-latency", type=float, default=machine.inside_latency, help="microseconds"
    )
    parser.add_argument(
        "--between-latency", type=float, default=machine.between_latency, help="microseconds"
    )
    parser.add_argument("--tflops", type=float, default=machine.tflops, help="of the loss")
    parser.add_argument("--memory", type=float, default=machine.memory, help="GB for keys")
    parser.add_argument("--json", action="store_true", help="write scaling.json and scaling.png")
    return parser.parse_args()


def main():
    o = parse()
    machine = Machine(o.node, o.inside, o.between, o.inside_latency, o.between_latency, o.tflops,
                      o.memory)  # fmt: skip
    loss = Loss(n=o.rows, D=o.width, queue=o.queue)
    rows = table(machine, loss)
    print(f"a model, not a measurement: {machine}\n{loss}\n")
    print(markdown(rows), "\n")
    words = [in_words(machine, rows, "all-gather", "ring"),
             in_words(machine, rows, "replicated queue", "sharded queue")]  # fmt: skip
    print("\n".join(words))
    if o.json:
        folder = results.folder()
        folder.mkdir(parents=True, exist_ok=True)
        content = {"machine": asdict(machine), "loss": asdict(loss), "crossovers": words,
                   "table": rows}  # fmt: skip
        (folder / "scaling.json").write_text(json.dumps(content, indent=1) + "\n")
        plot(rows, folder / "scaling.png")
        print(f"wrote {folder / 'scaling.json'} and scaling.png")


if __name__ == "__main__":
    main()
