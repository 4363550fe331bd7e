"""G written straight from its definition: objects one at a time, frames one at a time."""

from __future__ import annotations

import numpy as np

from tests.oracles.davis_metrics import boundary_accuracy, region_similarity


def object_scores(preds: np.ndarray, target: np.ndarray, object_id: int) -> tuple[float, float] | None:
    """Mean J and F over the frames after the one that shows the object first; None if there are none."""
    region, boundary = [], []
    appeared = False
    for pred, true in zip(preds, target, strict=True):
        if appeared:
            region.append(region_similarity(pred == object_id, true == object_id))
            boundary.append(boundary_accuracy(pred == object_id, true == object_id))
        appeared = appeared or bool((true == object_id).any())
    return (float(np.mean(region)), float(np.mean(boundary))) if region else None


def overall(scores: dict[tuple[str, int], tuple[float, float]], unseen: set[tuple[str, int]]) -> float:
    """G: the mean of J and F over seen and over unseen objects."""
    groups = (set(scores) - unseen, unseen)
    return float(np.mean([np.mean([scores[key][measure] for key in sorted(group)]) for group in groups for measure in (0, 1)]))
