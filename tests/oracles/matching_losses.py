"""Losses of matching objects to proposals, in one clip, cell by cell."""

from torch import Tensor


def soft_iou(mask: list[float], truth: list[float]) -> float:
    """One minus soft intersection over union; 1 of nothing."""
    both = sum(m * t for m, t in zip(mask, truth, strict=True))
    either = sum(m + t - m * t for m, t in zip(mask, truth, strict=True))
    return 1 - both / either if either else 1.0


def soft_iou_loss(masks: Tensor, truth: Tensor, objects: list[int]) -> float:
    """``(N, y, x)`` twice: the mean over the given objects."""
    losses = [soft_iou(masks[n].flatten().tolist(), truth[n].flatten().tolist()) for n in objects]
    return sum(losses) / len(losses) if losses else 0.0


def greedy(overlaps: dict[tuple[int, int], float]) -> set[tuple[int, int]]:
    """Pairs by falling overlap, each object and each proposal once; never one without overlap."""
    chosen: set[tuple[int, int]] = set()
    for (n, k), overlap in sorted(overlaps.items(), key=lambda item: (-item[1], item[0])):
        if overlap > 0 and all(n != other and k != taken for other, taken in chosen):
            chosen.add((n, k))
    return chosen


def matching_loss(similarity: Tensor, found: Tensor, truth: Tensor, objects: list[int], proposals: list[int]) -> float:
    """``(N, K)``, ``(K, y, x)`` and ``(N, y, x)``: squared distance to the assignment by IoU at half; 0 without a pair."""
    overlaps = {}
    for n in objects:
        for k in proposals:
            a, b = (found[k] > 0.5).flatten().tolist(), (truth[n] > 0.5).flatten().tolist()
            union = sum(p or t for p, t in zip(a, b, strict=True))
            overlaps[n, k] = sum(p and t for p, t in zip(a, b, strict=True)) / union if union else 0.0
    chosen = greedy(overlaps)
    errors = [(float(similarity[pair]) - float(pair in chosen)) ** 2 for pair in overlaps]
    return sum(errors) / len(errors) if errors else 0.0
