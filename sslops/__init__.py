"""Operations of self-supervised learning: fast, lean in memory, right at any world size."""

from sslops.ops.color_attention import color_attention, color_attention_loss
from sslops.ops.info_nce import InfoNCEStats, info_nce
from sslops.ops.nt_xent import nt_xent
from sslops.registry import backends

__version__ = "0.1.0"
__all__ = [
    "InfoNCEStats",
    "backends",
    "color_attention",
    "color_attention_loss",
    "info_nce",
    "nt_xent",
]
