"""Masks that are drawn by shapes, as annotation tools store them: polygons, boxes, ellipses and run lengths."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, UInt8
from pycocotools import mask as coco

from vos_lightning.arrays import Tensor, to_tensor

MAX_ID = 254

Key: TypeAlias = int | tuple[str, ...]
"""What says which object a shape belongs to: an id from 1 to 254, or names."""


@dataclass(frozen=True)
class Shape:
    """A part of an object's mask in one frame; exactly one of the three ways to draw it is set."""

    key: Key
    polygons: Sequence[Sequence[int | float]] | None = None
    """Outlines ``x0 y0 x1 y1 ...`` in pixels of the frame; the corner of the picture is (0, 0)."""
    rle: Mapping[str, Any] | None = None
    """Run lengths of COCO: ``size`` (height, width), and ``counts`` in columns as numbers or as compressed text."""
    patch: tuple[int, int, Bool[np.ndarray, "h w"]] | None = None
    """Left and top corner of a part of the frame, and its mask."""

    def draw(self, size: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
        """The pixels of the shape; what lies outside of the frame is cut off.

        Args:
            size: height and width of the frame.

        Raises:
            ValueError: the shape cannot be drawn, or belongs to a frame of another size.
        """
        height, width = size
        if self.patch is not None:
            left, top, part = self.patch
            plane = np.zeros(size, dtype=bool)
            part = part[max(0, -top) :, max(0, -left) :][: max(0, height - max(0, top)), : max(0, width - max(0, left))]
            plane[max(0, top) : max(0, top) + part.shape[0], max(0, left) : max(0, left) + part.shape[1]] = part
            return plane
        if self.polygons is not None:
            runs = coco.merge(coco.frPyObjects([list(map(float, polygon)) for polygon in self.polygons], height, width))
            return decode_runs(runs["counts"].decode(), size)
        assert self.rle is not None
        if tuple(self.rle["size"]) != size:
            raise ValueError(f"the run lengths are of a frame of {self.rle['size'][1]}x{self.rle['size'][0]}")
        return decode_runs(self.rle["counts"], size)


@dataclass(frozen=True)
class Drawing:
    """The shapes of one frame."""

    frame: str
    """Name or number of the frame, as text."""
    shapes: tuple[Shape, ...]
    gone: tuple[Key, ...] = ()
    """Objects that are not visible any more from this frame on."""
    size: tuple[int, int] | None = None
    """Height and width of the frame that it was drawn on, if the file says so."""
    counted: bool = False
    """Whether ``frame`` is an index counted from 0, by the rules of the format."""


def decode_runs(counts: Any, size: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    """Run lengths of COCO as a mask.

    Args:
        counts: lengths in columns, background first, as numbers or as COCO's compressed text.
        size: height and width.

    Raises:
        ValueError: the lengths do not fill the frame.
    """
    height, width = size
    try:
        lengths = _lengths(counts.encode("ascii")) if isinstance(counts, str) else counts
        if sum(lengths) != height * width or min(lengths) < 0:
            raise ValueError("wrong sum")
    except (ValueError, IndexError):
        raise ValueError(f"the run lengths do not fill a frame of {width}x{height}") from None
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(width, height).T


def _lengths(text: bytes) -> list[int]:
    """The run lengths in COCO's compressed text: digits of five bits; from the third on, differences to the one before the last.

    pycocotools decodes the text as well, but does not check that it ends where the mask ends.
    """
    found: list[int] = []
    place = 0
    while place < len(text):
        value, shift, more = 0, 0, True
        while more:
            digit = text[place] - 48
            value |= (digit & 31) << (5 * shift)
            more = bool(digit & 32)
            if shift > 8:
                raise ValueError("a length beyond any frame")
            place, shift = place + 1, shift + 1
            if not more and digit & 16:
                value |= -1 << (5 * shift)
        found.append(value + found[-2] if len(found) > 2 else value)
    return found


def encode_runs(mask: Bool[np.ndarray, "H W"]) -> dict[str, Any]:
    """A mask as compressed run lengths of COCO, for JSON."""
    runs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(side) for side in runs["size"]], "counts": runs["counts"].decode()}


def ellipse(x: float, y: float, radii: tuple[float, float], degrees: float = 0.0, corners: int = 72) -> list[float]:
    """Outline of an ellipse as a polygon ``x0 y0 x1 y1 ...``."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    outline: list[float] = []
    for step in range(corners):
        angle = 2 * math.pi * step / corners
        a, b = radii[0] * math.cos(angle), radii[1] * math.sin(angle)
        outline += [x + cosine * a - sine * b, y + sine * a + cosine * b]
    return outline


def box(left: float, top: float, right: float, bottom: float, degrees: float = 0.0) -> list[float]:
    """Outline of a box, turned clockwise about its centre, as a polygon ``x0 y0 x1 y1 ...``."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = (left + right) / 2, (top + bottom) / 2
    corners = ((left - x, top - y), (right - x, top - y), (right - x, bottom - y), (left - x, bottom - y))
    return [value for a, b in corners for value in (x + cosine * a - sine * b, y + sine * a + cosine * b)]


def assign_ids(keys: Iterable[Key]) -> dict[Key, int]:
    """An id for every object, in the order in which they come; ids that a file gives itself are kept.

    Raises:
        ValueError: there are more than 254 objects.
    """
    order = list(dict.fromkeys(keys))
    ids: dict[Key, int] = {key: key for key in order if isinstance(key, int)}
    free = (i for i in range(1, MAX_ID + 1) if i not in ids.values())
    for key in order:
        if key not in ids:
            found = next(free, None)
            if found is None:
                raise ValueError(f"there are {len(order)} objects, more than the {MAX_ID} that a label map holds")
            ids[key] = found
    return ids


def draw(shapes: Sequence[Shape], ids: Mapping[Key, int], size: tuple[int, int]) -> UInt8[Tensor, "H W"]:
    """Shapes as a label map; later ones cover earlier ones."""
    label_map = np.zeros(size, dtype=np.uint8)
    for shape in shapes:
        label_map[shape.draw(size)] = ids[shape.key]
    return to_tensor(label_map)
