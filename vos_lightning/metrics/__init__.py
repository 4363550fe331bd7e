"""Metrics on label maps: exact region similarity J and boundary accuracy F, and the protocols that average them."""

from vos_lightning.metrics.davis import DAVISMetric, ObjectScores, Protocol, describe, evaluate_video, summarize
from vos_lightning.metrics.functional import boundary_accuracy, decay, mean, recall, region_and_boundary, region_similarity

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
    "describe",
    "DAVISMetric",
]
