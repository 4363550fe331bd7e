"""Signs that a prediction has lost its object, found without a ground truth: the flags of ``index/<video>.csv``.

Every object is compared with the mask that a person has given for it last. Colours and motion are measured on frames reduced to a
short side of 160 pixels. The thresholds were chosen on seven videos of DAVIS 2016 and checked on three others;
``python -m benchmarks.drift`` repeats the measurement, and the README shows its table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float32, UInt8

from vos_lightning.arrays import Tensor, to_array
from vos_lightning.propagation.cuts import block_histograms, colour_bins, colour_histogram, is_cut, likeness, reduced
from vos_lightning.structures import FramePrediction

MIN_PIXELS = 30
"""Pixels of that inner frame which an object needs for its colours to be judged."""

AREA_FACTOR = 2.0
"""``area_jump``: an object grows or shrinks by more than this from one frame to the next."""
LOW_CONFIDENCE = 0.7
"""``low_confidence``: the mean probability of an object's pixels is lower."""
SHRUNK = 0.4
"""``shrunk``: an object has less than this share of the area of its given mask, and motion does not explain it."""
SCATTERED = 0.6
"""``scattered``: the largest connected part of an object has less than this share of its area, relative to the given mask."""
UNLIKE = 0.8
"""``unlike``: the Bhattacharyya coefficient of an object's colours and those of its given mask is lower."""
OFF_EDGE = 0.3
"""``off_edge``: the colours on the two sides of the contour differ by less than this share of what they did at the given mask."""
MIN_STEP = 0.2
"""Colours on the two sides of a given mask's contour that differ by less (in natural logarithms) say nothing."""

SCENE_CUT = "scene_cut"
_SMALLEST = 1e-4


# Measures -------------------------------------------------------------------------------------------------------------


def surroundings(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Pixels around a mask, up to a distance of 0.7 times the square root of its area (at least 4 pixels)."""
    reach = max(4, int(0.7 * math.sqrt(mask.sum())))
    return _dilate(mask, reach) & ~mask


def contour_step(
    objectness: Float32[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"], free: Bool[np.ndarray, "h w"]
) -> float | None:
    """How much more object-like the colours just inside a contour are than those just outside.

    Both sides are bands of three pixels that start one pixel away from the contour, as no contour is exact.

    Args:
        objectness: logarithm of how much more frequent a pixel's colour is in the object than around it.
        mask: pixels of the object.
        free: pixels of no other object: those have a contour of their own.

    Returns:
        Difference of the means; None where nothing is free around the mask.
    """
    core = _erode(mask, 1)
    inside = core & ~_erode(core, 3)
    if not inside.any():
        inside = mask
    rim = _dilate(mask, 1)
    outside = _dilate(rim, 3) & ~rim & free
    if not outside.any() or not inside.any():
        return None
    return float(objectness[inside].mean() - objectness[outside].mean())


def largest_share(mask: Bool[np.ndarray, "h w"]) -> float:
    """Share of a mask's area that its largest 8-connected part has; 1 for an empty mask."""
    _, _, parts, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8))
    areas = parts[1:, cv2.CC_STAT_AREA]
    return float(areas.max() / areas.sum()) if len(areas) else 1.0


def _erode(mask: Bool[np.ndarray, "h w"], pixels: int) -> Bool[np.ndarray, "h w"]:
    """Pixels without a pixel of the background within a square; beyond the frame the mask goes on."""
    return cv2.erode(mask.view(np.uint8), np.ones((2 * pixels + 1,) * 2, np.uint8)) > 0


def _dilate(mask: Bool[np.ndarray, "h w"], pixels: int) -> Bool[np.ndarray, "h w"]:
    return cv2.dilate(mask.view(np.uint8), np.ones((2 * pixels + 1,) * 2, np.uint8)) > 0


# One frame and one object ---------------------------------------------------------------------------------------------


class _View:
    """What all objects of a frame share: its colours, and where its pixels were in the frame before."""

    def __init__(self, frame: UInt8[Tensor, "3 H W"], before: _View | None) -> None:
        image = reduced(frame)
        self.size = (image.shape[1], image.shape[0])
        self.bins = colour_bins(image)
        self.blocks = block_histograms(self.bins)
        self.is_cut = before is not None and is_cut(before.blocks, self.blocks)
        self.grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        self._before = before.grey if before is not None and before.size == self.size else None
        self._origin: tuple[np.ndarray, np.ndarray] | None = None

    def reduce(self, mask: Bool[np.ndarray, "H W"]) -> Float32[np.ndarray, "h w"]:
        """Share of every inner pixel that a mask covers."""
        return cv2.resize(mask.astype(np.float32), self.size, interpolation=cv2.INTER_AREA)

    def carry(self, mask: Float32[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w"]:
        """A mask of the frame before, moved to this frame along optical flow."""
        if self._before is None or min(self.size) < 16:  # the flow needs some pixels
            return mask
        if self._origin is None:
            estimator = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
            flow = estimator.calc(self.grey, self._before, None)  # type: ignore[call-overload]
            rows, columns = np.indices(self.grey.shape, dtype=np.float32)
            self._origin = (columns + flow[..., 0], rows + flow[..., 1])
        return cv2.remap(mask, *self._origin, cv2.INTER_LINEAR)


@dataclass(frozen=True)
class _Reference:
    """What a given mask says of its object."""

    area: int
    colours: Float32[np.ndarray, " n"]
    objectness: Float32[np.ndarray, " n"]
    """Logarithm of the share of every colour in the object over its share around the object."""
    step: float
    """See :func:`contour_step`; 0 where it is unknown."""
    largest: float

    @classmethod
    def of(cls, view: _View, area: int, mask: Bool[np.ndarray, "h w"], free: Bool[np.ndarray, "h w"]) -> _Reference:
        colours = colour_histogram(view.bins, mask)
        around = colour_histogram(view.bins, surroundings(mask))
        objectness = np.log((colours + _SMALLEST) / (around + _SMALLEST))
        step = contour_step(objectness[view.bins], mask, free) if mask.sum() >= MIN_PIXELS else None
        return cls(area, colours, objectness, step or 0.0, largest_share(mask))


class _Track:
    """One object since the last mask that was given for it."""

    def __init__(self, reference: _Reference, cover: Float32[np.ndarray, "h w"]) -> None:
        self._reference = reference
        self._cover = cover
        self._area = reference.area
        self._unexplained = 0.0

    def flags(
        self, view: _View, area: int, confidence: float, cover: Float32[np.ndarray, "h w"], free: Bool[np.ndarray, "h w"]
    ) -> list[str]:
        """The flags of the next frame."""
        # Half a pixel more keeps empty masks finite.
        change = math.log((float(cover.sum()) + 0.5) / (float(view.carry(self._cover).sum()) + 0.5))
        before, self._area, self._cover = self._area, area, cover
        if area == 0:
            return ["absent"]
        if before == 0:
            self._unexplained = 0.0
        else:
            # What was lost counts, not what was won before: growing first must not hide a loss.
            self._unexplained = min(0.0, self._unexplained + change)
        reference = self._reference
        found = {
            "returned": before == 0,
            "area_jump": before > 0 and max(area, before) > AREA_FACTOR * min(area, before),
            "shrunk": self._unexplained < math.log(SHRUNK) and area < SHRUNK * reference.area,
            "low_confidence": confidence < LOW_CONFIDENCE,
        }
        mask = cover >= 0.5
        if mask.sum() >= MIN_PIXELS:
            found["scattered"] = largest_share(mask) < SCATTERED * reference.largest
            found["unlike"] = likeness(colour_histogram(view.bins, mask), reference.colours) < UNLIKE
            if reference.step >= MIN_STEP:
                step = contour_step(reference.objectness[view.bins], mask, free)
                found["off_edge"] = step is not None and step < OFF_EDGE * reference.step
        return [flag for flag, is_set in found.items() if is_set]


# The index ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ObjectRow:
    """A line of ``index/<video>.csv``: one object in one frame."""

    frame: int
    name: str
    object_id: int
    area: int
    """Pixels."""
    confidence: float
    """Mean probability of the object's pixels; 0 where it has none."""
    flags: str
    """Where to look, joined by spaces; empty where nothing was found:

    - ``scene_cut``: another scene begins in this frame. What looks like the object may be something else, or the object was let
      go until it is annotated again, see :meth:`vos_lightning.propagation.engine.InferenceEngine.run`.
    - ``given``: a person gave a mask of the object in this frame; nothing else is said.
    - ``absent``: the object has no pixel.
    - ``returned``: it has pixels again after a frame without. It may be another object now.
    - ``area_jump``: it grew or shrank by more than a factor of 2 since the frame before.
    - ``shrunk``: it has less than 0.4 of the area of its given mask, and motion does not explain a loss of that size. An object
      that moves away, leaves the frame or goes behind something takes its mask along; a mask that is worn down does not.
    - ``low_confidence``: the mean probability of its pixels is below 0.7.
    - ``scattered``: its largest connected part has less than 0.6 of its area (relative to that share in the given mask).
    - ``unlike``: its colours are no longer those of the given mask (Bhattacharyya coefficient below 0.8).
    - ``off_edge``: its contour no longer parts colours of the object from colours around it: the difference fell below 0.3 of
      what it was at the given mask. Masks that cover a part, cover too much, or have slipped off do this.
    """

    @property
    def is_let_go(self) -> bool:
        """Whether the object was let go here, as another scene begins, and nobody has annotated it there."""
        return self.flags == SCENE_CUT and self.area == 0


class DriftIndex:
    """Measures every object in every frame of one video, in order, and flags what looks like drift."""

    def __init__(self) -> None:
        self._tracks: dict[int, _Track] = {}
        self._view: _View | None = None
        self._names: list[str] = []
        self._flagged: list[bool] = []

    def rows(self, name: str, prediction: FramePrediction) -> list[ObjectRow]:
        """Look at the next frame. Where a mask was given, the reference of its object starts anew.

        Args:
            name: name of the frame.
            prediction: what the engine returned for the frame.

        Returns:
            One row for each object.
        """
        rows: list[ObjectRow] = []
        label_map = to_array(prediction.label_map)
        let_go = [i for i in prediction.let_go if i not in prediction.object_ids]
        rows += [ObjectRow(prediction.frame_index, name, i, 0, 0.0, SCENE_CUT) for i in let_go]
        self._tracks = {i: track for i, track in self._tracks.items() if i in prediction.object_ids}
        if prediction.object_ids:
            self._view = _View(prediction.frame, self._view)
            occupied = self._view.reduce(label_map > 0)
        for object_id, plane in zip(prediction.object_ids, to_array(prediction.probabilities), strict=True):
            assert self._view is not None
            mask = label_map == object_id
            area = int(mask.sum())
            confidence = float((plane * mask).sum()) / max(area, 1)
            cover = self._view.reduce(mask)
            free = occupied - cover < 0.5
            if object_id in prediction.given_ids or object_id not in self._tracks:
                reference = _Reference.of(self._view, area, cover >= 0.5, free)
                self._tracks[object_id] = _Track(reference, cover)
                # An object that another run has brought here is new, and nobody has given it.
                flags = ["given"] if object_id in prediction.given_ids else [] if area else ["absent"]
            else:
                flags = self._tracks[object_id].flags(self._view, area, confidence, cover, free)
                if self._view.is_cut:
                    flags = [SCENE_CUT, *flags]
            rows.append(ObjectRow(prediction.frame_index, name, object_id, area, round(confidence, 4), " ".join(flags)))
        self._names.append(name)
        self._flagged.append(is_flagged(rows))
        return rows

    def advice(self) -> str | None:
        """What to tell the user where most frames are flagged, else None."""
        if 2 * sum(self._flagged) <= len(self._flagged):
            return None
        start = unusable_from(self._flagged)
        if start is None:
            return "most frames are flagged: look at all of them"
        return f"most frames are flagged: the result is probably unusable from frame {self._names[start]} on"


def is_flagged(rows: Sequence[ObjectRow]) -> bool:
    """Whether some object of a frame has a flag that asks for a look."""
    return any(row.flags not in ("", "given") for row in rows)


def unusable_from(flagged: Sequence[bool]) -> int | None:
    """Index of the first flagged frame from which on, to the end, at least three quarters of the frames are flagged."""
    start, count = None, 0
    for index in reversed(range(len(flagged))):
        count += flagged[index]
        if flagged[index] and 4 * count >= 3 * (len(flagged) - index):
            start = index
    return start
