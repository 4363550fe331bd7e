"""PMNet's points, trajectories and losses, cell by cell in Python numbers; nothing of the library is used."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor


def aggregate(logits: list[float]) -> list[float]:
    """Probabilities of background and objects at one cell: odds of ``p_0 = prod (1 - p_k)`` and of every ``p_k``."""
    single = [1 / (1 + math.exp(-value)) for value in logits]
    every = [math.prod(1 - p for p in single), *single]
    odds = [p / (1 - p) for p in (min(max(p, 1e-7), 1 - 1e-7) for p in every)]
    return [value / sum(odds) for value in odds]


def afb_uncertainty(logits: Tensor) -> Tensor:
    """``(N, h, w)`` log-odds -> ``(h, w)``: exp(1 - p1 / p2)."""
    out = torch.zeros(logits.shape[1:], dtype=torch.float64)
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            first, second = sorted(aggregate(logits[:, y, x].tolist()), reverse=True)[:2]
            out[y, x] = math.exp(1 - first / second)
    return out


def box(mask: Tensor, factor: float) -> set[tuple[int, int]]:
    """Cells of the enlarged bounding box of ``(h, w)``."""
    filled = [(y, x) for y in range(mask.shape[0]) for x in range(mask.shape[1]) if mask[y, x]]
    if not filled:
        return set()
    ranges = []
    for axis in range(2):
        low, high = min(cell[axis] for cell in filled), max(cell[axis] for cell in filled)
        extra = math.floor(round((high - low + 1) * (factor - 1) / 2, 6) + 0.5)
        ranges.append(range(max(low - extra, 0), min(high + extra, mask.shape[axis] - 1) + 1))
    return {(y, x) for y in ranges[0] for x in ranges[1]}


def sample(score: Tensor, region: set[tuple[int, int]], number: int) -> list[int]:
    """Cells ``y * w + x`` of the largest scores; ties in reading order."""
    width = score.shape[1]
    ordered = sorted(region, key=lambda cell: (-float(score[cell]), cell))
    return [y * width + x for y, x in ordered[:number]]


def similarity(x: list[float], y: list[float], kind: str) -> float:
    if kind == "l2":
        return -math.fsum((a - b) ** 2 for a, b in zip(x, y, strict=True))
    inner = math.fsum(a * b for a, b in zip(x, y, strict=True))
    return inner if kind == "dot" else inner / math.sqrt(math.fsum(a * a for a in x) * math.fsum(b * b for b in y))


def read_point(
    query: Tensor, cell: int, first: tuple[Tensor, Tensor], previous: tuple[Tensor, Tensor], window: int, stride: int, kind: str,
    scale: float, with_grid: bool = True,
) -> Tensor:  # fmt: skip
    """What one point reads.

    Args:
        query: key ``(CK,)``.
        cell: of the point.
        first: keys ``(CK, h, w)`` and values ``(C, h, w)`` of the first frame.
        previous: keys ``(CK, h, w)`` and values ``(C, h, w)`` of the previous frame.
        window: side.
        stride: of the grid.
        kind: similarity.
        scale: its factor.
        with_grid: whether the first frame is read.
    """
    height, width = previous[0].shape[1:]
    y, x = divmod(cell, width)
    candidates = []
    if with_grid:
        candidates += [(first, v, u) for v in range(0, height, stride) for u in range(0, width, stride)]
    for v in range(y - window // 2, y - window // 2 + window):
        for u in range(x - window // 2, x - window // 2 + window):
            if 0 <= v < height and 0 <= u < width:
                candidates.append((previous, v, u))
    scores = [scale * similarity(query.tolist(), keys[:, v, u].tolist(), kind) for (keys, _), v, u in candidates]
    peak = max(scores)
    weights = [math.exp(score - peak) for score in scores]
    total = math.fsum(weights)
    return sum(weight / total * values[:, v, u] for weight, ((_, values), v, u) in zip(weights, candidates, strict=True))


def track(
    keys: list[Tensor], window: int, beta: float, form: str, kind: str = "l2", scale: float | None = None, exclusion: int = 0
) -> tuple[list[int], list[float]]:
    """Follow every cell of the first of some frames to the last: positions and largest spreads.

    Args:
        keys: ``(CK, h, w)`` of consecutive frames.
        window: side.
        beta: of the spread.
        form: which positive similarity the ratio is of.
        kind: similarity by which cells are matched; the cosine with that form.
        scale: factor of the similarity, for ``exponential``; one over the square root of the channels if it is not given.
        exclusion: rows and columns around the best cell in which nothing counts as second best.
    """
    channels, height, width = keys[0].shape
    scale = channels**-0.5 if scale is None else scale
    kind = "cosine" if form == "cosine" else kind
    positions, spreads = list(range(height * width)), [0.0] * (height * width)
    for before, after in pairwise(keys):
        for p in range(height * width):
            y, x = divmod(positions[p], width)
            found = [
                (similarity(before[:, y, x].tolist(), after[:, v, u].tolist(), kind), v * width + u)
                for v in range(y - window // 2, y - window // 2 + window)
                for u in range(x - window // 2, x - window // 2 + window)
                if 0 <= v < height and 0 <= u < width
            ]
            best, cell = max(found)
            near = {
                (cell // width + i, cell % width + j)
                for i in range(-exclusion, exclusion + 1)
                for j in range(-exclusion, exclusion + 1)
            }
            second = max(value for value, other in found if divmod(other, width) not in near)
            ratio = {
                "exponential": lambda a, b: math.exp(scale * a) / math.exp(scale * b),
                "inverse_distance": lambda a, b: (1 / math.sqrt(-a)) / (1 / math.sqrt(-b)),
                "inverse_squared_distance": lambda a, b: (1 / -a) / (1 / -b),
                "cosine": lambda a, b: max(a, 1e-6) / max(b, 1e-6),
            }[form](best, second)
            positions[p] = cell
            spreads[p] = max(spreads[p], beta * math.exp(1 - ratio))
    return positions, spreads


def weighted_read(
    memory_keys: Tensor, values: Tensor, positions: list[int], sigmas: list[float], query_keys: Tensor, width: int,
    top: int | None, order: str, kind: str, scale: float,
) -> Tensor:  # fmt: skip
    """Equation 6: ``(CK, S), (C, S), (CK, Q)`` -> ``(C, Q)``, with the weights of equation 8 before or after the choice of the
    largest."""
    queries = query_keys.shape[1]
    out = torch.zeros(values.shape[0], queries)
    for q in range(queries):
        terms = []
        for p in range(memory_keys.shape[1]):
            (y, x), (v, u) = divmod(positions[p], width), divmod(q, width)
            weight = math.exp(-((y - v) ** 2 + (x - u) ** 2) / (2 * sigmas[p] ** 2))
            plain = math.exp(scale * similarity(memory_keys[:, p].tolist(), query_keys[:, q].tolist(), kind))
            terms.append((weight * plain if order == "after" else plain, weight * plain, p))
        kept = sorted(terms, reverse=True)[:top]
        total = math.fsum(term for _, term, _ in kept)
        out[:, q] = sum(term / total * values[:, p] for _, term, p in kept)
    return out


def uncertainty_loss(predicted: Tensor, target: Tensor, counted: Tensor, ratio: float, hardest_by: str) -> float:
    """Equation 1 of one object: half the mean squared difference of its top cells."""
    cells = [i for i in range(predicted.numel()) if counted.flatten()[i]]
    if not cells:
        return 0.0
    u, t = predicted.flatten().tolist(), target.flatten().tolist()
    losses = {i: 0.5 * (u[i] - t[i]) ** 2 for i in cells}
    order = {"predicted": lambda i: u[i], "loss": lambda i: losses[i], "target": lambda i: t[i]}[hardest_by]
    kept = sorted(cells, key=order, reverse=True)[: max(1, round(ratio * len(cells)))]
    return math.fsum(losses[i] for i in kept) / len(kept)
