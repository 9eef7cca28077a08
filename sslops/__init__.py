"""Operations of self-supervised learning: fast, lean in memory, right at any world size."""

from sslops.ops.info_nce import InfoNCEStats, info_nce
from sslops.ops.nt_xent import nt_xent
from sslops.registry import backends

__version__ = "0.1.0"
__all__ = ["InfoNCEStats", "backends", "info_nce", "nt_xent"]
