"""Segmentation losses of one frame, pixel by pixel."""

import math

from torch import Tensor


def hardest(losses: list[float], fraction: float) -> float:
    """Mean of the largest: the given fraction, at least one; 0 of nothing."""
    kept = sorted(losses, reverse=True)[: max(1, int(fraction * len(losses)))]
    return sum(kept) / len(kept) if kept else 0.0


def pixels(labels: Tensor) -> list[tuple[int, int]]:
    height, width = labels.shape
    return [(y, x) for y in range(height) for x in range(width) if int(labels[y, x]) != 255]


def bootstrapped(probabilities: Tensor, labels: Tensor, fraction: float) -> float:
    """``(N + 1, H, W)`` and ``(H, W)``: -log of the true class's probability."""
    return hardest([-math.log(float(probabilities[int(labels[y, x]), y, x])) for y, x in pixels(labels)], fraction)


def bootstrapped_binary(probabilities: Tensor, labels: Tensor, objects: list[int], fraction: float) -> float:
    means = []
    for n in objects:
        losses = []
        for y, x in pixels(labels):
            p, m = float(probabilities[n, y, x]), float(labels[y, x] == n)
            losses.append(-(m * math.log(p) + (1 - m) * math.log(1 - p)))
        means.append(hardest(losses, fraction))
    return sum(means) / len(means) if means else 0.0


def mask_iou(probabilities: Tensor, labels: Tensor, objects: list[int]) -> float:
    losses = []
    for n in objects:
        pairs = [(float(labels[y, x] == n), float(probabilities[n, y, x])) for y, x in pixels(labels)]
        losses.append(1 - sum(min(pair) for pair in pairs) / sum(max(pair) for pair in pairs))
    return sum(losses) / len(losses) if losses else 0.0


def cross_entropy(probabilities: Tensor, labels: Tensor) -> float:
    """``(N + 1, H, W)`` and ``(H, W)``: the mean over the pixels that are not ignored; 0 of nothing."""
    return bootstrapped(probabilities, labels, 1.0)


def foreground_iou(probabilities: Tensor, labels: Tensor) -> tuple[float, int]:
    """``(B, N + 1, H, W)`` and ``(B, H, W)``: mean over the objects of all frames that are visible, and their number."""
    found = []
    for frame, label in zip(probabilities, labels, strict=True):
        seen = [(int(frame[:, y, x].argmax()), int(label[y, x])) for y, x in pixels(label)]
        for n in {true for _, true in seen} - {0}:
            both, either = sum(p == t == n for p, t in seen), sum(n in pair for pair in seen)
            found += [both / either]
    return (sum(found) / len(found) if found else 0.0), len(found)
