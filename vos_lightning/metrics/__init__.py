"""Metrics on label maps: exact region similarity J and boundary accuracy F, and the protocols that average them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vos_lightning.metrics.functional import boundary_accuracy, decay, mean, recall, region_and_boundary, region_similarity
from vos_lightning.metrics.protocols import describe, evaluate_video, summarize, summary_keys
from vos_lightning.metrics.scores import ObjectScores, Protocol

if TYPE_CHECKING:
    from vos_lightning.metrics.video_metric import VideoMetric

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


def __getattr__(name: str) -> Any:
    # Imported on demand: scoring files needs neither PyTorch nor torchmetrics, whose import takes longer than scoring a data set.
    if name == "VideoMetric":
        return importlib.import_module("vos_lightning.metrics.video_metric").VideoMetric
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
