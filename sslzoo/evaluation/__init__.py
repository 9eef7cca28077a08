"""Judging frozen features: features and labels in, numbers out."""

from sslzoo.evaluation.collapse import effective_rank, feature_std
from sslzoo.evaluation.embedding import embed, plot_embedding
from sslzoo.evaluation.features import extract
from sslzoo.evaluation.knn import KNNResult, knn_accuracy
from sslzoo.evaluation.linear_probe import (
    FewLabelsResult,
    ProbeResult,
    few_labels_probe,
    linear_probe,
)
from sslzoo.evaluation.sgd_probe import sgd_probe

__all__ = [
    "FewLabelsResult",
    "KNNResult",
    "ProbeResult",
    "effective_rank",
    "embed",
    "extract",
    "feature_std",
    "few_labels_probe",
    "knn_accuracy",
    "linear_probe",
    "plot_embedding",
    "sgd_probe",
]
