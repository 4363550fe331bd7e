"""J, F and their statistics written straight from the definitions: dense, full frames, one object at a time."""

from __future__ import annotations

import cv2
import numpy as np
from skimage.morphology import disk


def region_similarity(pred: np.ndarray, true: np.ndarray, void: np.ndarray | None = None) -> float:
    """J of two boolean masks."""
    counted = np.ones_like(true) if void is None else ~void
    intersection = np.sum(pred & true & counted)
    union = np.sum((pred | true) & counted)
    return 1.0 if union == 0 else intersection / union


def boundary_map(mask: np.ndarray) -> np.ndarray:
    """Boundary of a boolean mask."""
    right, lower, diagonal = np.zeros_like(mask), np.zeros_like(mask), np.zeros_like(mask)
    right[:, :-1] = mask[:, 1:]
    lower[:-1] = mask[1:]
    diagonal[:-1, :-1] = mask[1:, 1:]
    boundary = (mask ^ right) | (mask ^ lower) | (mask ^ diagonal)
    boundary[-1, :] = mask[-1, :] ^ right[-1, :]
    boundary[:, -1] = mask[:, -1] ^ lower[:, -1]
    boundary[-1, -1] = False
    return boundary


def boundary_accuracy(pred: np.ndarray, true: np.ndarray, void: np.ndarray | None = None, bound_th: float = 0.008) -> float:
    """F of two boolean masks."""
    if void is not None:
        pred, true = pred & ~void, true & ~void
    radius = bound_th if bound_th >= 1 else np.ceil(bound_th * np.linalg.norm(pred.shape))
    b_pred, b_true = boundary_map(pred), boundary_map(true)
    element = disk(int(radius)).astype(np.uint8)
    d_pred = cv2.dilate(b_pred.astype(np.uint8), element) > 0
    d_true = cv2.dilate(b_true.astype(np.uint8), element) > 0
    n_pred, n_true = np.sum(b_pred), np.sum(b_true)
    if n_pred == 0 and n_true > 0:
        precision, recall = 1.0, 0.0
    elif n_pred > 0 and n_true == 0:
        precision, recall = 0.0, 1.0
    elif n_pred == 0 and n_true == 0:
        precision, recall = 1.0, 1.0
    else:
        precision = np.sum(b_pred & d_true) / n_pred
        recall = np.sum(b_true & d_pred) / n_true
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


def over_video(
    measure: object, preds: np.ndarray, target: np.ndarray, object_ids: tuple[int, ...], **options: object
) -> np.ndarray:
    """``(N, T)`` values of a measure from label maps ``(T, H, W)``."""
    return np.array([[measure(p == i, t == i, **options) for p, t in zip(preds, target, strict=True)] for i in object_ids])


def decay(values: np.ndarray) -> float:
    """First quarter minus last quarter, edges shared."""
    edges = [int(np.floor(1 + (len(values) - 1) * k / 4 + 0.5)) - 1 for k in range(5)]
    quarters = [values[edges[k] : edges[k + 1] + 1] for k in range(4)]
    return np.mean(quarters[0]) - np.mean(quarters[3])
