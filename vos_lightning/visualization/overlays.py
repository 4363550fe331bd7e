"""Label maps as colours, alone and over their frames."""

from __future__ import annotations

import colorsys

import cv2
import numpy as np
from jaxtyping import UInt8

from vos_lightning.arrays import Tensor, to_array, to_tensor
from vos_lightning.io.label_maps import PALETTE

_FIRST = (
    (0, 200, 255), (255, 190, 0), (255, 70, 200), (90, 255, 80), (255, 100, 40), (150, 120, 255),
    (255, 255, 80), (0, 255, 190), (255, 50, 90), (70, 150, 255), (190, 255, 40), (255, 160, 210),
)  # fmt: skip
_GOLDEN = 0.618034


def _bright_colours() -> UInt8[np.ndarray, "256 3"]:
    """Colours that stand out in pictures; from the 13th on, hues in steps of the golden ratio, which stay apart."""
    colours = np.zeros((256, 3), dtype=np.uint8)
    for index in range(1, 256):
        strong = 0.65 if index % 2 else 0.4
        hue = colorsys.hsv_to_rgb(_GOLDEN * index % 1, strong, 1.0)
        colours[index] = _FIRST[index - 1] if index <= len(_FIRST) else [round(255 * part) for part in hue]
    return colours


BRIGHT: UInt8[np.ndarray, "256 3"] = _bright_colours()
"""Colours of objects in pictures and videos, by id. Those of :data:`PALETTE` are for files: its first one, a dark red, disappears
on red clothes and in dark scenes."""


def colorize(label_map: UInt8[Tensor, "H W"]) -> UInt8[Tensor, "3 H W"]:
    """Colours of a label map by :data:`PALETTE`.

    Args:
        label_map: ``(H, W)`` ids.

    Returns:
        ``(3, H, W)`` uint8 RGB.
    """
    return _like(PALETTE[to_array(label_map)], label_map)


def overlay(
    frame: UInt8[Tensor, "3 H W"],
    label_map: UInt8[Tensor, "H W"],
    alpha: float = 0.4,
    dim: float = 0.0,
    ids: bool = False,
) -> UInt8[Tensor, "3 H W"]:
    """Blend bright colours over the objects of a frame, with a contour that is bright inside and black outside.

    The contour has two sides, so that it is seen on any ground. It is a pixel wide on each side, or more in large frames.

    Args:
        frame: ``(3, H, W)`` uint8 RGB.
        label_map: ``(H, W)`` ids; background shows the frame.
        alpha: weight of the colour inside an object, in [0, 1].
        dim: how much darker the background becomes, from 0 (not at all) to 1 (black).
        ids: write the id of every object where it is widest.

    Returns:
        ``(3, H, W)`` uint8 RGB.
    """
    labels = to_array(label_map)
    picture = to_array(frame).transpose(1, 2, 0).astype(np.float32)
    colours = BRIGHT[labels].astype(np.float32)
    inside = labels > 0
    width = contour_width(*labels.shape)
    square = np.ones((2 * width + 1,) * 2, np.uint8)
    edge = cv2.dilate(labels, square) != cv2.erode(labels, square)
    weight = np.where(edge, 1.0, np.where(inside, alpha, dim)).astype(np.float32)[..., None]
    picture += (colours - picture) * weight  # the colour of the background is black
    drawn = np.ascontiguousarray(picture.round().astype(np.uint8))
    if ids:
        for object_id in np.unique(labels[inside]):
            _write_id(drawn, labels == object_id, int(object_id), width)
    return _like(drawn, frame)


def _like(picture: UInt8[np.ndarray, "H W 3"], other: Tensor) -> UInt8[Tensor, "3 H W"]:
    """A picture with the channels first, on the device of another one."""
    tensor = to_tensor(picture.transpose(2, 0, 1).copy())
    return tensor if isinstance(tensor, np.ndarray) else tensor.to(other.device)


def contour_width(height: int, width: int) -> int:
    """Pixels of a contour on each of its sides."""
    return max(1, round(min(height, width) / 400))


def _write_id(picture: UInt8[np.ndarray, "H W 3"], mask: np.ndarray, object_id: int, width: int) -> None:
    left, top, box_width, box_height = cv2.boundingRect(mask.astype(np.uint8))
    inner = np.pad(mask[top : top + box_height, left : left + box_width].astype(np.uint8), 1)
    row, column = np.unravel_index(np.argmax(cv2.distanceTransform(inner, cv2.DIST_L2, 3)), inner.shape)
    text, font, scale = str(object_id), cv2.FONT_HERSHEY_SIMPLEX, max(0.4, min(picture.shape[:2]) / 700)
    (text_width, text_height), _ = cv2.getTextSize(text, font, scale, 2 * width)
    corner = (int(left + column - 1 - text_width / 2), int(top + row - 1 + text_height / 2))
    cv2.putText(picture, text, corner, font, scale, (0, 0, 0), 4 * width, cv2.LINE_AA)
    cv2.putText(picture, text, corner, font, scale, (255, 255, 255), 2 * width, cv2.LINE_AA)
