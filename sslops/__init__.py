"""Operations of self-supervised learning: fast, lean in memory, right at any world size."""

from sslops.counter_generator import CounterGenerator
from sslops.ops.augment import ViewSpec, augment, sample_parameters
from sslops.ops.color_attention import color_attention, color_attention_loss
from sslops.ops.dino_loss import dino_loss, updated_center
from sslops.ops.info_nce import InfoNCEStats, info_nce
from sslops.ops.key_queue import KeyQueue
from sslops.ops.koleo import koleo
from sslops.ops.masking import (
    MaskIds,
    gather_patches,
    gather_tokens,
    random_masking,
    restore_tokens,
    sample_mask,
)
from sslops.ops.nt_xent import nt_xent
from sslops.ops.sinkhorn_knopp import sinkhorn_knopp
from sslops.registry import backends

__version__ = "0.1.0"
__all__ = [
    "CounterGenerator",
    "InfoNCEStats",
    "KeyQueue",
    "MaskIds",
    "ViewSpec",
    "augment",
    "backends",
    "color_attention",
    "color_attention_loss",
    "dino_loss",
    "gather_patches",
    "gather_tokens",
    "info_nce",
    "koleo",
    "nt_xent",
    "random_masking",
    "restore_tokens",
    "sample_mask",
    "sample_parameters",
    "sinkhorn_knopp",
    "updated_center",
]
