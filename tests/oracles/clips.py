"""Plain, slow versions of what happens to training clips."""

from __future__ import annotations

import numpy as np
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import affine


def warp_with_torchvision(
    image: np.ndarray,
    angle: float,
    scale: float,
    shear: tuple[float, float],
    fill: tuple[int, ...],
    translate: tuple[int, int] = (0, 0),
) -> np.ndarray:
    """Nearest affine warp of an ``(H, W, C)`` image about its centre; angles in degrees."""
    tensor = torch.from_numpy(image.transpose(2, 0, 1).copy())
    warped = affine(tensor, angle, list(translate), scale, list(shear), InterpolationMode.NEAREST, list(fill))
    return warped.numpy().transpose(1, 2, 0)


def accumulated(draws: list[tuple[float, float, float, float]]) -> list[tuple[float, float, float, float]]:
    """Rotation, scale, shear x, shear y of every frame from the draws: angles add up, scales multiply, the first included."""
    result = []
    angle, scale, shear_x, shear_y = 0.0, 1.0, 0.0, 0.0
    for a, s, x, y in draws:
        angle, scale, shear_x, shear_y = angle + a, scale * s, shear_x + x, shear_y + y
        result.append((angle, scale, shear_x, shear_y))
    return result


def copying_first_mask(targets: list[np.ndarray], object_id: int) -> float:
    """Mean region similarity, frames 1 on, of the prediction that nothing moves."""
    first = targets[0] == object_id
    scores = []
    for target in targets[1:]:
        mask = target == object_id
        union = (first | mask).sum()
        scores.append(1.0 if union == 0 else (first & mask).sum() / union)
    return float(np.mean(scores))


def stcn_triples(length: int, max_skip: int) -> dict[tuple[int, int, int], float]:
    """Every triple of frames that STCN draws, with its probability, before it may be reversed."""
    jump = min(length, max_skip)
    triples: dict[tuple[int, int, int], float] = {}
    for start in range(length - jump + 1):
        for a in range(1, jump + 2):
            for b in range(1, jump + 2):
                second = min(start + a, length - jump, length - 1)
                third = min(second + b, length - jump // 2, length - 1)
                probability = 1 / ((length - jump + 1) * (jump + 1) ** 2)
                triples[start, second, third] = triples.get((start, second, third), 0.0) + probability
    return triples
