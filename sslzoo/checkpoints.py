"""What a checkpoint holds, and how a run goes on from it."""

from sslzoo import sharding
from sslzoo.run_folder import RunFolderError, reading

# What a resumed run may change and still be the same run.
FREE_TO_CHANGE = {"data", "download", "out", "device", "shard", "workers", "log_every",
                  "checkpoint_every", "test_every", "pictures_every", "timeout",
                  "max_unreadable", "memory_limit_mib"}  # fmt: skip
KEYS = {"step", "method", "optimizer", "scaler", "options", "about", "data_fingerprint"}


def state_of(trainer):
    """All that --resume needs.

    Random numbers and the position in the data are functions of the step, and a queue is stored
    whole, and so are sharded weights: nothing in it belongs to one process, so any number of them
    can go on. All processes must call; sharded tensors are in the main process's alone.
    """
    setup, scaler = trainer.setup, trainer.accelerator.scaler
    return {
        "step": trainer.step,
        "method": sharding.full(trainer.method.state_dict(), setup.is_main),
        "optimizer": sharding.full(trainer.optimizer.state_dict(), setup.is_main),
        "scaler": None if scaler is None else scaler.state_dict(),
        "options": setup.options,
        "about": setup.about,
        "data_fingerprint": setup.data.fingerprint(),
    }


def restore(trainer):
    """Continue from the checkpoint, if it is one of this run."""
    setup, run = trainer.setup, trainer.setup.run
    state, fingerprint = run.load_checkpoint(), setup.data.fingerprint()
    with reading(run.checkpoint, "the checkpoint of this run"):
        check(state, setup, fingerprint)
        trainer.step = trainer.saved_step = state["step"]
        trainer.watch.epoch = trainer.epochs_at(trainer.step)
        method, optimizer = trainer.method, trainer.optimizer
        method.load_state_dict(sharding.sharded_like(state["method"], method.state_dict()))
        optimizer.load_state_dict(
            sharding.optimizer_state_like(state["optimizer"], optimizer.param_groups)
        )
        if state["scaler"] is not None:
            trainer.accelerator.scaler.load_state_dict(state["scaler"])
    if setup.is_main:
        run.metrics.cut(trainer.step)


def check(state, setup, fingerprint):
    """A RunFolderError where a checkpoint is not one of this run, with this data."""
    run = setup.run
    if not isinstance(state, dict) or not state.keys() >= KEYS:
        raise RunFolderError(f"{run.checkpoint} is not the checkpoint of a run")
    for name, value in setup.options.items():
        old = state["options"].get(name)
        if name not in FREE_TO_CHANGE and value != old:
            raise RunFolderError(f"the run in {run.path} has {name} {old}, not {value}: resume "
                                 "it with the options it began with")  # fmt: skip
    if state["data_fingerprint"] != fingerprint:
        raise RunFolderError(f"{setup.config.data} is not the data that the run began with")
