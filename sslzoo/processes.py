"""Several processes: how they find one another, and what is said when one of them is gone.

torchrun and `accelerate launch` set the environment variables RANK, WORLD_SIZE, LOCAL_RANK,
MASTER_ADDR and MASTER_PORT. `srun` sets its own, which are translated here.
"""

import os
import re
import threading
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list

from sslzoo.failures import TrainingError

# A process that has not counted on for this long is gone.
PATIENCE_SECONDS = 3.0
BEAT_SECONDS = 0.5
FIRST_PORT, PORTS = 20_000, 10_000


def start_processes(config, accumulate):
    """The Accelerator of a run, in each of its processes.

    Args:
        config: sslzoo.training_config.TrainingConfig.
        accumulate: backward passes per optimizer step.
    """
    os.environ.update(slurm_variables(os.environ))
    return Accelerator(
        cpu=config.device == "cpu",
        mixed_precision=mixed_precision(config),
        gradient_accumulation_steps=accumulate,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=config.timeout))],
    )


def of_main(value):
    """The main process's value, in every process; all must call together."""
    return broadcast_object_list([value])[0]


def mixed_precision(config):
    """accelerate's word for the precision of the forward pass."""
    if config.precision != "auto":
        return "no" if config.precision == "fp32" else config.precision
    is_on_gpu = config.device != "cpu" and torch.cuda.is_available()
    # Emulated, on GPUs before Ampere, it is slower than float32.
    has_bf16 = is_on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if has_bf16 else "no"


def slurm_variables(environment):
    """torchrun's variables from those of `srun`; none where they are set or srun did not start us.

    Example:
        >>> found = slurm_variables({"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5",
        ...     "SLURM_LOCALID": "1", "SLURM_STEP_NODELIST": "gpu[07-08]", "SLURM_JOB_ID": "123"})
        >>> found["RANK"], found["WORLD_SIZE"], found["MASTER_ADDR"], found["MASTER_PORT"]
        ('5', '8', 'gpu07', '20123')
    """
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    if tasks == 1 or "RANK" in environment:
        return {}
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": str(tasks),
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "MASTER_ADDR": environment.get("MASTER_ADDR") or first_host(
            environment["SLURM_STEP_NODELIST"]
        ),
        # One that other jobs on the node do not have.
        "MASTER_PORT": environment.get("MASTER_PORT")
        or str(FIRST_PORT + int(environment["SLURM_JOB_ID"]) % PORTS),
    }  # fmt: skip


def first_host(nodes):
    """The first name of SLURM's list of nodes: gpu07 of gpu[07-08,12],cpu3."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)[0]
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first)


@contextmanager
def partners_named(accelerator, run_path):
    """Inside, the error that another process's end causes here becomes one that names it.

    Args:
        accelerator: of accelerate.
        run_path: run folder, to go on from.
    """
    if accelerator.num_processes == 1:
        yield
        return
    with Heartbeat(accelerator.process_index, accelerator.num_processes) as heartbeat:
        try:
            yield
        except RuntimeError as error:
            if not is_of_communication(error):
                raise
            reason = str(error).splitlines()[0]
            raise TrainingError(f"{heartbeat.who_is_gone()}; this is process {heartbeat.rank}; go "
                                f"on with --resume {run_path} ({reason})") from error  # fmt: skip


def is_of_communication(error):
    """Whether processes did not hear from one another."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


class Heartbeat:
    """Counts in the processes' common store, so that others see that this process lives.

    A process that waits in vain for another goes on counting; one that died or hangs does not.

    Args:
        rank, world_size: of this process.
    """

    def __init__(self, rank, world_size):
        self.rank, self.world_size = rank, world_size
        store = dist.distributed_c10d._get_default_store()  # torch has no public name for it
        self.store = dist.PrefixStore("sslzoo/alive", store)
        self.verdict = None
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.beat, daemon=True)

    def __enter__(self):
        self.store.add(str(self.rank), 1)
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.ended.set()
        self.thread.join()

    def beat(self):
        while not self.ended.wait(BEAT_SECONDS):
            try:
                self.store.add(str(self.rank), 1)
                self.read_verdict()
            except RuntimeError:  # the store ended with the process that held it
                return

    def read_verdict(self):
        """What the first that looked found: later there are more that are gone."""
        if self.verdict is None and self.store.check(["verdict"]):
            self.verdict = self.store.get("verdict").decode()

    def who_is_gone(self):
        """In words; takes a few seconds."""
        try:
            self.read_verdict()
            before = [] if self.verdict else self.counts()
            self.ended.wait(PATIENCE_SECONDS)
            self.read_verdict()
            if self.verdict is None:
                self.verdict = self.judge(before, self.counts())
                self.store.set("verdict", self.verdict)
        except RuntimeError:
            return self.verdict or f"process 0 of {self.world_size}, which holds the store, is gone"
        if self.rank == 0:  # the others read it before the store ends
            self.ended.wait(PATIENCE_SECONDS)
        return self.verdict

    def judge(self, before, after):
        gone = [str(rank) for rank, count in enumerate(before) if after[rank] == count]
        if not gone:
            return f"the {self.world_size} processes wait for one another, but all are alive"
        return f"process {' and '.join(gone)} of {self.world_size} died or hangs"

    def counts(self):
        return [self.store.add(str(rank), 0) for rank in range(self.world_size)]
