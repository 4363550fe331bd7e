"""A short clip with two discs that move, and what is true of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 48, 64


def disc(x: float, y: float, radius: float = 8.0) -> np.ndarray:
    """Pixels of a disc."""
    rows, columns = np.indices((HEIGHT, WIDTH))
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2


def red(index: int) -> np.ndarray:
    """Pixels of the red disc, which moves to the right."""
    return disc(14 + index, 16)


def blue(index: int) -> np.ndarray:
    """Pixels of the blue disc, which moves to the left."""
    return disc(50 - index, 34)


def frame(index: int) -> np.ndarray:
    """The discs on grey noise."""
    picture = np.random.default_rng(index).integers(100, 106, (HEIGHT, WIDTH, 1)).repeat(3, axis=2).astype(np.uint8)
    picture[red(index)] = (220, 40, 40)
    picture[blue(index)] = (40, 60, 220)
    return picture


def write_clip(folder: Path, length: int = 12, picture: Callable[[int], np.ndarray] = frame) -> Path:
    """The clip as a folder of PNGs."""
    folder.mkdir(parents=True)
    for index in range(length):
        Image.fromarray(picture(index)).save(folder / f"{index:05d}.png")
    return folder


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union."""
    return float((one & other).sum() / (one | other).sum())


CUT = 5
"""Frame of :func:`write_scenes` in which the other scene begins."""


def scenes(index: int, cut: int = CUT) -> np.ndarray:
    """The discs, and from a frame on the same discs in a place with other colours."""
    picture = frame(index)
    if index >= cut:
        grounds = ~red(index) & ~blue(index)
        picture[grounds] = picture[grounds] // 4 + np.array((10, 90, 20), np.uint8)
    return picture


def write_scenes(folder: Path, length: int = 12) -> Path:
    """A clip with a cut as a folder of PNGs."""
    return write_clip(folder, length, scenes)
