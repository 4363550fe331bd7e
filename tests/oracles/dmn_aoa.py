"""DMN-AOA from the formulas of the papers: one clip, one object and one proposal at a time, whole matrices, loops.

The relaxed matching follows the description of DMM-Net's released layer literally: rows are objects, columns are proposals, and
every iterate is kept in a list.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# The relaxed matching layer -------------------------------------------------------------------------------------------


def start(cost: Tensor) -> Tensor:
    """One-hot rows: every column is first left to its best rows, then each row takes the cheapest of what it has left."""
    reduced = torch.full_like(cost, cost.detach().max().item())
    for j in range(cost.shape[1]):
        for i in range(cost.shape[0]):
            if cost[i, j] == cost[:, j].min():
                reduced[i, j] = cost[i, j]
    x = torch.zeros_like(cost)
    for i in range(cost.shape[0]):
        x[i, int(reduced[i].argmin())] = 1
    return x


def positive(x: Tensor) -> Tensor:
    return x.clamp(min=0)


def columns(x: Tensor) -> Tensor:
    parts = []
    for j in range(x.shape[1]):
        column = x[:, j]
        excess = column.sum() - 1
        parts.append(column - excess / x.shape[0] if excess > 0 else column)
    return torch.stack(parts, dim=1)


def rows(x: Tensor) -> Tensor:
    return torch.stack([row - (row.sum() - 1) / x.shape[1] for row in x])


def relaxed_matching(similarity: Tensor, steps: int, sweeps: int, rate: float) -> dict[str, Tensor]:
    """``(n, m)`` similarities -> ``mean_pre``, ``mean_post`` and ``last``."""
    num_objects, num_proposals = similarity.shape
    if num_proposals <= num_objects:
        similarity = F.pad(similarity, (0, num_objects + 1 - num_proposals))
    cost = -similarity
    x = start(cost)
    stored, projected = [x], [x]
    corrections = [torch.zeros_like(cost) for _ in range(3)]
    for _ in range(steps):
        x = x - rate * cost
        stored.append(x)
        for _ in range(sweeps):
            for k, project in enumerate((positive, columns, rows)):
                corrected = x + corrections[k]
                x = project(corrected)
                corrections[k] = corrected - x
        projected.append(x)
    found = {"mean_pre": torch.stack(stored).mean(0), "mean_post": torch.stack(projected).mean(0), "last": x}
    return {name: value[:, :num_proposals] for name, value in found.items()}


# Alignment ------------------------------------------------------------------------------------------------------------


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / (a.norm() * b.norm())


def align(target: Tensor, source: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """``(C, P)`` maps -> ``(P target, P source)`` weights and the ``(C, P)`` aligned source."""
    cells = target.shape[1]
    weights = torch.zeros(cells, source.shape[1])
    for i in range(cells):
        angles = torch.stack([cosine(target[:, i], source[:, j]) for j in range(source.shape[1])])
        weights[i] = torch.softmax(alpha * angles, 0)
    aligned = torch.stack([(source * weights[i]).sum(1) for i in range(cells)], 1)
    return weights, aligned


def aligned_similarity(template: Tensor, proposal: Tensor, alpha: float, pool: str, weights: Tensor | None = None) -> Tensor:
    _, aligned = align(template, proposal, alpha)
    if pool == "flat":
        return cosine(template.flatten(), aligned.flatten())
    cosines = torch.stack([cosine(template[:, i], aligned[:, i]) for i in range(template.shape[1])])
    return cosines.mean() if weights is None else (cosines * weights).sum() / weights.sum()


def move_blocks(weights: Tensor, source: Tensor, block: int) -> Tensor:
    """``(P target, P source)`` weights move the ``block x block`` tiles of a ``(C, H, W)`` map."""
    _, height, width = source.shape
    columns_of_tiles = width // block
    tiles = [source[:, y : y + block, x : x + block] for y in range(0, height, block) for x in range(0, width, block)]
    moved = torch.zeros_like(source)
    for i in range(len(tiles)):
        y, x = divmod(i, columns_of_tiles)
        for j, tile in enumerate(tiles):
            moved[:, y * block : (y + 1) * block, x * block : (x + 1) * block] += weights[i, j] * tile
    return moved
