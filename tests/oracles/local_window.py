"""Matching inside a window, cell by cell and offset by offset."""

import math

import torch
from torch import Tensor


def offsets(window: int) -> list[tuple[int, int]]:
    """(x, y), row by row."""
    first = -(window // 2)
    return [(first + i, first + j) for j in range(window) for i in range(window)]


def similarity(a: Tensor, b: Tensor, measure: str) -> float:
    if measure == "l2":
        return -float(((a - b) ** 2).sum())
    product = float((a * b).sum())
    return product / (math.sqrt(float((a * a).sum())) * math.sqrt(float((b * b).sum()))) if measure == "cosine" else product


def cost_volume(
    query: Tensor, previous: Tensor, window: int, measure: str
) -> dict[tuple[int, int], dict[tuple[int, int], float]]:
    """``(C, h, w)`` twice -> cell (x, y) -> offset -> similarity, for offsets inside the frame only."""
    _, height, width = query.shape
    volume: dict[tuple[int, int], dict[tuple[int, int], float]] = {}
    for y in range(height):
        for x in range(width):
            volume[x, y] = {}
            for u, v in offsets(window):
                if 0 <= x + u < width and 0 <= y + v < height:
                    volume[x, y][u, v] = similarity(query[:, y, x], previous[:, y + v, x + u], measure)
    return volume


def weights(costs: dict[tuple[int, int], float], window: int, sign: int, temperature: float, out_of_frame: str) -> dict:
    """Softmax over the offsets; those out of the frame take part with 0 (``zero``), the mean of the others, or not (``mask``)."""
    other = {"zero": 0.0, "mean": sum(costs.values()) / len(costs), "mask": None}[out_of_frame]
    entries = {offset: costs.get(offset, other) for offset in offsets(window) if other is not None or offset in costs}
    powers = {offset: math.exp(sign * value / temperature) for offset, value in entries.items()}
    total = sum(powers.values())
    return {offset: power / total for offset, power in powers.items()}


def displacement(costs: dict, window: int, sign: int, temperature: float, out_of_frame: str) -> tuple[float, float]:
    w = weights(costs, window, sign, temperature, out_of_frame)
    return sum(u * p for (u, _), p in w.items()), sum(v * p for (_, v), p in w.items())


def maximum(costs: dict, window: int, out_of_frame: str) -> float:
    values = list(costs.values())
    return max([*values, 0.0]) if out_of_frame == "zero" and len(values) < window**2 else max(values)


def two_best(costs: dict, exclusion_radius: int) -> tuple[tuple[int, int], float, float]:
    """The best offset, its similarity, and the best one further from it than the radius."""
    best = max(costs, key=lambda offset: costs[offset])
    rest = [c for o, c in costs.items() if max(abs(o[0] - best[0]), abs(o[1] - best[1])) > exclusion_radius]
    return best, costs[best], max(rest, default=-math.inf)


def as_map(values: dict[tuple[int, int], object], height: int, width: int) -> Tensor:
    return torch.tensor([[values[x, y] for x in range(width)] for y in range(height)])
