"""Colours of frames, and scene cuts: frames that show another place than the frame before."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Int32, Num, UInt8

from vos_lightning.arrays import Tensor, to_array

AtCut: TypeAlias = Literal["follow", "ask"]
"""What happens to the objects at a scene cut, see :meth:`vos_lightning.propagation.streaming.StreamingEngine.run`."""
INNER_SIDE = 160
"""Short side, in pixels, of the frames that colours are measured on; smaller frames keep their size."""
BLOCKS = 4
"""A frame is compared in this number of blocks across, and as many down."""
SAME_SCENE = 0.88
"""Mean likeness of the blocks of two frames below which there is a cut between them.

Measured on ten videos of DAVIS 2016 by ``python -m benchmarks.cuts``: consecutive frames have 0.961 or more (572 pairs), those
three apart, as in a video with a third of the rate, 0.905 or more (552 pairs). Frames of two different videos have 0.852 or less
(540 pairs: the first, middle and last frame of each with the first and the last one of every other).
"""

_BINS = (8, 16, 16)
_SMALLEST = 1e-4


def colour_bins(image: UInt8[np.ndarray, "h w 3"]) -> Int32[np.ndarray, "h w"]:
    """Number of the colour of every pixel in CIELAB: 8 steps of lightness, as light changes, and 16 for each of the two others.

    Args:
        image: RGB.
    """
    lightness, green_red, blue_yellow = (plane.astype(np.int32) for plane in cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2LAB)))
    steps = [plane * bins // 256 for plane, bins in zip((lightness, green_red, blue_yellow), _BINS, strict=True)]
    return np.asarray((steps[0] * _BINS[1] + steps[1]) * _BINS[2] + steps[2])


def colour_histogram(bins: Int32[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"]) -> Float32[np.ndarray, " n"]:
    """Shares of the colours of a mask, smoothed by (1/4, 1/2, 1/4) along each channel; all 0 for an empty mask."""
    counts = _smoothed(np.bincount(bins[mask], minlength=math.prod(_BINS)).astype(np.float32).reshape(_BINS))
    return np.asarray(counts.ravel() / max(float(counts.sum()), _SMALLEST), dtype=np.float32)


def _smoothed(counts: Float32[np.ndarray, "*blocks a b c"]) -> Float32[np.ndarray, "*blocks a b c"]:
    for axis in range(-3, 0):
        widths = [(0, 0)] * counts.ndim
        widths[axis] = (1, 1)
        padded = np.pad(counts, widths, mode="edge")
        left, middle, right = (np.take(padded, range(i, i + _BINS[axis]), axis) for i in range(3))
        counts = (left + right) / 4 + middle / 2
    return counts


def likeness(one: Float32[np.ndarray, " n"], other: Float32[np.ndarray, " n"]) -> float:
    """Bhattacharyya coefficient of two histograms, from 0 (nothing in common) to 1 (equal)."""
    return float(np.sqrt(one * other).sum())


def reduced(frame: Num[Tensor, "3 H W"]) -> UInt8[np.ndarray, "h w 3"]:
    """A frame with a short side of :data:`INNER_SIDE` pixels.

    Args:
        frame: RGB, uint8 or floating point in [0, 1].
    """
    height, width = int(frame.shape[1]), int(frame.shape[2])
    scale = min(1.0, INNER_SIDE / min(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    pixels = to_array(frame)
    if pixels.dtype != np.uint8:
        pixels = (pixels * 255).round().clip(0, 255).astype(np.uint8)
    return np.stack([cv2.resize(plane, size, interpolation=cv2.INTER_AREA) for plane in pixels], axis=2)


def block_histograms(bins: Int32[np.ndarray, "h w"]) -> Float32[np.ndarray, "blocks n"]:
    """:func:`colour_histogram` of every block of a frame, from the :func:`colour_bins` of its pixels."""
    (height, width), count = bins.shape, math.prod(_BINS)
    rows, columns = (np.arange(side) * BLOCKS // side for side in (height, width))
    blocks = rows[:, None] * BLOCKS + columns
    counts = np.bincount((blocks * count + bins).ravel(), minlength=BLOCKS**2 * count).astype(np.float32)
    smooth = _smoothed(counts.reshape(-1, *_BINS)).reshape(BLOCKS**2, count)
    return np.asarray(smooth / np.maximum(smooth.sum(axis=1, keepdims=True), _SMALLEST), dtype=np.float32)


def similarity(one: Float32[np.ndarray, "blocks n"], other: Float32[np.ndarray, "blocks n"]) -> float:
    """Mean Bhattacharyya coefficient of blocks in the same place, from 0 (no colour in common) to 1 (equal)."""
    return float(np.sqrt(one * other).sum(axis=1).mean())


def is_cut(one: Float32[np.ndarray, "blocks n"], other: Float32[np.ndarray, "blocks n"]) -> bool:
    """Whether two frames, each given by its :func:`block_histograms`, show different scenes.

    Fades, and cuts between pictures whose blocks have the same colours, are not found; a flash of light may be taken for a cut.
    """
    return similarity(one, other) < SAME_SCENE


class SceneCuts:
    """Looks at the frames of a video, one after the other."""

    def __init__(self) -> None:
        self._before: Float32[np.ndarray, "blocks n"] | None = None

    def is_next(self, frame: Num[Tensor, "3 H W"]) -> bool:
        """Whether the next frame begins another scene; the first one does not."""
        before, self._before = self._before, block_histograms(colour_bins(reduced(frame)))
        return before is not None and is_cut(before, self._before)
