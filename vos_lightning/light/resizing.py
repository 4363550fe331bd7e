"""Frames, masks and probabilities in other sizes, and padding: what PyTorch and the engine do, in NumPy and OpenCV."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Bool, Float32

from vos_lightning.propagation.streaming import nearest


def resize_picture(picture: Float32[np.ndarray, "3 H W"], size: tuple[int, int]) -> Float32[np.ndarray, "3 h w"]:
    """A picture by bicubic interpolation without smoothing (a = -0.75)."""
    return _each(picture, size, cv2.INTER_CUBIC)


def resize_probabilities(probabilities: Float32[np.ndarray, "K H W"], size: tuple[int, int]) -> Float32[np.ndarray, "K h w"]:
    """Probabilities by bilinear interpolation without smoothing."""
    return _each(probabilities, size, cv2.INTER_LINEAR)


def resize_masks(masks: Bool[np.ndarray, "N H W"], size: tuple[int, int]) -> Bool[np.ndarray, "N h w"]:
    """Masks to the nearest pixel; one that would lose all its pixels keeps every one that it touches.

    See :func:`vos_lightning.propagation.frame_step.resize_masks`.
    """
    rows, columns = nearest(masks.shape[1], size[0]), nearest(masks.shape[2], size[1])
    resized = masks[:, rows][:, :, columns]
    for slot, mask in enumerate(masks):
        if mask.any() and not resized[slot].any():
            touched_rows, touched_columns = _touched(mask.shape[0], size[0]), _touched(mask.shape[1], size[1])
            resized[slot] = touched_rows @ mask.astype(np.float32) @ touched_columns.T > 0
    return resized


def pad_sides(height: int, width: int, stride: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows above and below, and columns left and right, to multiples of a stride; the larger half of an odd number comes last."""
    (top, bottom), (left, right) = ((extra // 2, extra - extra // 2) for extra in (-height % stride, -width % stride))
    return (top, bottom), (left, right)


def _each(planes: Float32[np.ndarray, "K H W"], size: tuple[int, int], how: int) -> Float32[np.ndarray, "K h w"]:
    return np.stack([cv2.resize(plane, size[::-1], interpolation=how) for plane in planes])


def _touched(length: int, wanted: int) -> Float32[np.ndarray, "wanted length"]:
    """1 where a pixel of the resized row covers a part of a pixel of the row."""
    place, pixel = np.arange(wanted)[:, None], np.arange(length)[None]
    first, end = place * length // wanted, -(-(place + 1) * length // wanted)
    return ((first <= pixel) & (pixel < end)).astype(np.float32)
