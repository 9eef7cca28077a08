"""The options that every method shares."""

from dataclasses import dataclass, fields
from typing import Literal

AT_LEAST_ONE = {"image_size", "epochs", "batch_size", "accumulate", "log_every", "timeout"}


@dataclass
class TrainingConfig:
    """Options of every method."""

    data: str = "digits"
    """Data set by name (see `sslzoo list data`), or a folder of images, Parquet or tar files."""
    download: bool = False
    """Fetch a named data set where it is missing."""
    out: str = ""
    """Run folder; empty is runs/METHOD_DATA, with a number where that is taken."""
    backbone: str = "resnet18"
    """Encoder: a name of `sslzoo list backbones` or any of timm's."""
    image_size: int = 32
    """Side of the square views, in pixels."""
    epochs: int = 200
    """Passes over the data."""
    batch_size: int = 256
    """Images per forward pass, over all processes."""
    accumulate: int = 1
    """Forward passes per optimizer step. simclr and moco_v3 find negatives in all of them, by a
    second forward pass; the loss of other methods is that of each pass, averaged."""
    optimizer: Literal["sgd", "adamw", "lars"] = "sgd"
    """Optimizer."""
    base_lr: float = 0.1
    """Learning rate per 256 images, without unit."""
    lr_rule: Literal["linear", "sqrt", "none"] = "linear"
    """How the learning rate grows with (batch_size x accumulate) / 256."""
    min_lr: float = 0.0
    """Learning rate at the end of the cosine, not scaled."""
    lr_drops: tuple[float, ...] = ()
    """Epochs from which on the learning rate is a tenth, instead of the cosine; empty is off."""
    warmup_epochs: float = 10.0
    """Linear warm-up from 0, in epochs."""
    weight_decay: float = 1e-4
    """Weight decay of matrices and kernels, without unit; biases and norms have none."""
    momentum: float = 0.9
    """Momentum of sgd and lars, 0 to 1."""
    nesterov: bool = False
    """Nesterov's momentum, for sgd."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Averaging factors of adamw, 0 to 1."""
    clip_gradient: float = 0.0
    """Largest norm of the whole gradient; 0 is off."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of the forward pass; weights and losses stay float32. auto is bf16 on a GPU that
    has it, fp32 elsewhere."""
    device: Literal["auto", "cpu"] = "auto"
    """auto takes a GPU where there is one."""
    shard: bool = False
    """Divide weights, gradients and optimizer state among the processes (FSDP2), for encoders that
    are too large for one."""
    workers: int = 0
    """Processes that decode images, per training process; 0 decodes in the training process."""
    views: Literal["sslops", "torchvision"] = "sslops"
    """What makes the views of images: sslops.augment, or torchvision's functions, which are slower
    and equal within a grey level."""
    max_unreadable: int = 0
    """Unreadable images that are skipped and named, in each process; one more stops the run."""
    memory_limit_mib: int = 1024
    """Data that is held in memory, in MiB: images up to this are decoded at once; of Parquet files
    that are not, the encoded images up to this are kept, and larger sets are read from the disk."""
    timeout: int = 600
    """Seconds that processes wait for one another before a run of several ends."""
    seed: int = 0
    """Seed of weights, order and views; a whole number from 0."""
    log_every: int = 20
    """Optimizer steps between two rows of metrics."""
    checkpoint_every: int = 0
    """Optimizer steps between two checkpoints; 0 writes one after each epoch."""
    knn_every: int = 0
    """Epochs between two kNN accuracies in the metrics, for labelled data; 0 is off."""
    linear_every: int = 0
    """Epochs between two accuracies of a linear probe, for labelled data; 0 is off."""
    probe_data: str = ""
    """Labelled data set, by name or path, that both are of; empty is that of the training."""
    probe_layer: str = ""
    """Layers that both look at: layer3, or several with commas, or all; empty is the encoder's
    output. Several are logged as linear_accuracy_LAYER."""
    tracking_every: int = 0
    """Epochs between two J&F of masks carried through labelled videos; 0 is off."""
    tracking_data: str = ""
    """Parquet file of these videos, with a column mask; empty is the data of the training."""
    tracking_keypoints: str = ""
    """Parquet file of keypoints in these videos, for PCK; empty is none."""
    tracking_size: int = 160
    """Shorter side of their frames as the encoder sees them, in pixels."""
    test_every: int = 0
    """Epochs between two tests of the method's own task on the test split; 0 tests at the end."""
    pictures_every: int = 0
    """Epochs between two sets of the method's pictures; 0 draws them at the end only."""

    def __post_init__(self):
        if self.shard and self.precision == "fp16":
            raise ValueError(
                "shard is not for fp16, whose loss scale needs whole gradients: take bf16"
            )
        for field in fields(self):
            value = getattr(self, field.name)
            least = 1 if field.name in AT_LEAST_ONE else 0
            if isinstance(value, (int, float)) and not value >= least:
                raise ValueError(f"{field.name} must be {least} or more; got {value}")

    @property
    def opening(self):
        """How data is opened, for the functions that open it."""
        names = ("download", "max_unreadable", "memory_limit_mib")
        return {name: getattr(self, name) for name in names}
