"""Metrics on label maps: exact region similarity J and boundary accuracy F, and the protocols that average them."""

from vos_lightning.metrics.functional import boundary_accuracy, decay, mean, recall, region_and_boundary, region_similarity
from vos_lightning.metrics.protocols import VideoMetric, describe, evaluate_video, summarize, summary_keys
from vos_lightning.metrics.scores import ObjectScores, Protocol

__all__ = [
    "region_similarity",
    "boundary_accuracy",
    "region_and_boundary",
    "mean",
    "recall",
    "decay",
    "Protocol",
    "ObjectScores",
    "evaluate_video",
    "summarize",
    "summary_keys",
    "describe",
    "VideoMetric",
]
