"""Masks from what a person draws on a frame: a box, strokes inside or outside of an object, a brush, an eraser.

GrabCut (Rother et al., "GrabCut: Interactive Foreground Extraction using Iterated Graph Cuts", SIGGRAPH 2004), which OpenCV has,
finds the contour from a box or from strokes. Brush and eraser change exactly the pixels that they cover.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

Tool = Literal["box", "inside", "outside", "brush", "eraser"]
TOOLS: tuple[Tool, ...] = get_args(Tool)

INNER_SIDE = 400
"""Long side, in pixels, of the part of a frame in which GrabCut works; a larger part is reduced, so that it takes a second."""
ITERATIONS = 4
MARGIN = 0.4
"""Share of a box's sides by which the part around it is larger: its colours are those of the background."""
CORE = 0.8
"""Share of a box's sides that the ellipse has with which GrabCut begins: objects seldom reach into the corners of their box. With
a box around the object in the first frames of ten videos of DAVIS 2016, the mean J was 0.61, and 0.58 without the ellipse."""
REACH = 0.15
"""Share of the frame's short side around a stroke within which it changes a mask."""
SPECK = 0.02
"""Parts of a mask with less than this share of the area of its largest part are left out, and holes of that size are filled."""


@dataclass(frozen=True)
class Stroke:
    """Something that was drawn with one movement of the pointer.

    Attributes:
        tool: ``box`` (from the first point to the last), ``inside`` and ``outside`` (strokes in the object or beside it),
            ``brush`` and ``eraser``.
        points: ``(x, y)`` as shares of the width and the height of the frame, at least one; those outside of [0, 1] are moved to
            the edge of the frame.
        size: diameter as a share of the short side of the frame, without meaning for a box.
    """

    tool: Tool
    points: Sequence[tuple[float, float]]
    size: float = 0.02

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Stroke:
        """The stroke that a browser has sent.

        Raises:
            ValueError: it is none.
        """
        try:
            points = [(float(x), float(y)) for x, y in values["points"]]
            tool, size = values["tool"], float(values["size"])
        except (KeyError, TypeError, ValueError):
            points, tool, size = [], None, 0.0
        if tool not in TOOLS or not points or not 0 < size <= 1 or not np.isfinite(points).all():
            raise ValueError("the browser has sent something that is no stroke; reload the page")
        return cls(tool, points, size)


def draw(
    frame: UInt8[np.ndarray, "H W 3"],
    mask: Bool[np.ndarray, "H W"],
    stroke: Stroke,
    others: Bool[np.ndarray, "H W"] | None = None,
) -> Bool[np.ndarray, "H W"]:
    """The mask of an object after a stroke.

    Args:
        frame: RGB.
        mask: the mask before; all False if there is none.
        stroke: what was drawn.
        others: pixels that are known to belong to other objects, which GrabCut leaves out; the brush may cover them.

    Returns:
        A new mask. A box replaces the mask, and is itself the mask where GrabCut finds nothing in it. Strokes inside only add and
        strokes outside only take away, in their neighbourhood alone; pixels below them are always inside, or outside.
    """
    if stroke.tool == "box":
        return _from_box(frame, stroke, others)
    painted = paint(stroke, (frame.shape[0], frame.shape[1]))
    if stroke.tool == "brush":
        return mask | painted
    if stroke.tool == "eraser" or (stroke.tool == "outside" and not mask.any()):
        return mask & ~painted
    return _from_stroke(frame, mask, painted, stroke.tool == "inside", others)


def paint(stroke: Stroke, size: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    """The pixels that a stroke covers.

    Args:
        stroke: the stroke.
        size: height and width of the frame.
    """
    canvas = np.zeros(size, np.uint8)
    points = _pixels(stroke, size)
    width = max(1, round(stroke.size * min(size)))
    cv2.polylines(canvas, [points.reshape(-1, 1, 2)], False, 1, width)
    for x, y in (points[0], points[-1]):
        cv2.circle(canvas, (int(x), int(y)), width // 2, 1, -1)
    return canvas > 0


def _pixels(stroke: Stroke, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    shares = np.clip(np.asarray(stroke.points, dtype=np.float64), 0, 1)
    return np.rint(shares * (width - 1, height - 1)).astype(np.int32)


def _from_box(frame: np.ndarray, stroke: Stroke, others: np.ndarray | None) -> np.ndarray:
    size = frame.shape[:2]
    ends = _pixels(stroke, size)[[0, -1]]
    (left, top), (right, bottom) = ends.min(axis=0).tolist(), (ends.max(axis=0) + 1).tolist()
    box = np.zeros(size, bool)
    box[top:bottom, left:right] = True
    margins = (max(8, int(MARGIN * (bottom - top))), max(8, int(MARGIN * (right - left))))
    part = _around((top, bottom, left, right), margins, size)
    rows, columns = np.indices(size)
    away = ((rows - (top + bottom - 1) / 2) / (bottom - top)) ** 2 + ((columns - (left + right - 1) / 2) / (right - left)) ** 2
    labels = np.where(away[part] <= (CORE / 2) ** 2, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[~box[part]] = cv2.GC_BGD
    if box[part].all():  # the box is the frame: its rim stands for the background
        labels[[0, -1]], labels[:, [0, -1]] = cv2.GC_BGD, cv2.GC_BGD
    if others is not None:
        labels[others[part]] = cv2.GC_BGD
    found = np.zeros(size, bool)
    found[part] = _tidy(_grab_cut(frame[part], labels))
    return found if found.any() else box


def _from_stroke(frame: np.ndarray, mask: np.ndarray, painted: np.ndarray, inside: bool, others: np.ndarray | None) -> np.ndarray:
    size = frame.shape[:2]
    rows, columns = np.flatnonzero(painted.any(axis=1)), np.flatnonzero(painted.any(axis=0))
    reach = max(8, int(REACH * min(size)))
    ends = (int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1)
    # Without a mask, the length of the stroke is all that is known of the size of the object.
    margins = (reach, reach) if mask.any() else (max(reach, ends[1] - ends[0]), max(reach, ends[3] - ends[2]))
    part = _around(ends, margins, size)
    labels = np.where(mask[part], cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    if others is not None:
        labels[others[part] & ~mask[part]] = cv2.GC_BGD
    labels[painted[part]] = cv2.GC_FGD if inside else cv2.GC_BGD
    changed = mask.copy()
    found = _grab_cut(frame[part], labels)
    changed[part] = mask[part] | found if inside else mask[part] & found
    changed[painted] = inside
    tidy = _tidy(changed)
    tidy[painted] = inside
    return tidy


def _around(ends: tuple[int, int, int, int], margins: tuple[int, int], size: tuple[int, int]) -> tuple[slice, slice]:
    top, bottom, left, right = ends
    rows = slice(max(0, top - margins[0]), min(size[0], bottom + margins[0]))
    return rows, slice(max(0, left - margins[1]), min(size[1], right + margins[1]))


def _grab_cut(picture: UInt8[np.ndarray, "h w 3"], labels: UInt8[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The foreground; nothing changes where one of foreground and background has no pixel."""
    height, width = labels.shape
    scale = min(1.0, INNER_SIDE / max(height, width))
    if scale < 1:
        inner = (max(1, round(width * scale)), max(1, round(height * scale)))
        picture = cv2.resize(picture, inner, interpolation=cv2.INTER_AREA)
        small = cv2.resize(labels, inner, interpolation=cv2.INTER_NEAREST)
        thin = cv2.resize((labels == cv2.GC_FGD).astype(np.float32), inner, interpolation=cv2.INTER_AREA) > 0
        small[thin] = cv2.GC_FGD  # a stroke may be thinner than a reduced pixel
    else:
        small = labels.copy()
    front = np.isin(small, (cv2.GC_FGD, cv2.GC_PR_FGD))
    if front.any() and not front.all():
        cv2.setRNGSeed(0)  # the colours are grouped from a random start
        models = np.zeros((1, 65)), np.zeros((1, 65))
        no_box: Any = None
        cv2.grabCut(np.ascontiguousarray(picture), small, no_box, *models, ITERATIONS, cv2.GC_INIT_WITH_MASK)
        front = np.isin(small, (cv2.GC_FGD, cv2.GC_PR_FGD))
    if scale < 1:
        front = cv2.resize(front.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR) > 0.5
    return front & (labels != cv2.GC_BGD)


def _tidy(mask: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """The mask without specks and small holes."""
    if not mask.any():
        return mask
    least = SPECK * _areas(mask)[1].max()
    tidy = _without_small(mask, least)
    return ~_without_small(~tidy, least)


def _areas(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number of the connected part of every pixel, and the area of every part."""
    _, parts, statistics, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=4)
    return parts, statistics[1:, cv2.CC_STAT_AREA]


def _without_small(mask: np.ndarray, least: float) -> np.ndarray:
    parts, areas = _areas(mask)
    return np.concatenate([[False], areas >= least])[parts]
