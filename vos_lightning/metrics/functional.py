"""Region similarity J and boundary accuracy F of label maps, exactly as DAVIS defines them, and their statistics over frames.

All measures are computed on crops around the object, never on a one-hot volume. The crops do not change the result: outside the
box of both masks no pixel belongs to a mask, so no boundary lies there, and the box is cut only where the image ends.

The module uses only NumPy, so that scoring files does not wait for PyTorch; label maps may also be tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, UInt8, UInt64

Words = UInt64[np.ndarray, "2 words"]

# Per frame and object -------------------------------------------------------------------------------------------------


class FrameScore(NamedTuple):
    """Scores of an object in a frame."""

    J: float
    F: float
    predicted: bool
    """Whether the prediction shows the object."""
    true: bool
    """Whether the truth shows the object."""


NOWHERE = FrameScore(1.0, 1.0, False, False)
"""Score of an object that neither prediction nor truth shows."""


def score_frame(
    pred: UInt8[np.ndarray, "H1 W1"], true: UInt8[np.ndarray, "H W"], object_ids: Sequence[int], bound_th: float = 0.008
) -> list[FrameScore]:
    """J and F of every object in one frame.

    Args:
        pred: predicted label map.
        true: true label map of the same size.
        object_ids: the ``N`` ids to score.
        bound_th: tolerance of the boundary measure, see :func:`boundary_accuracy`.

    Returns:
        ``N`` scores.

    Raises:
        ValueError: prediction and truth differ in size.
    """
    if pred.shape != true.shape:
        raise ValueError(f"prediction {pred.shape} and truth {true.shape} differ in size")
    scores = [NOWHERE] * len(object_ids)
    for row, pair in _pairs(pred, true, object_ids, boundary_radius(true.shape[0], true.shape[1], bound_th)):
        predicted, shown = (count > 0 for count in pair.counts)
        scores[row] = FrameScore(_region(pair), _boundary_f(pair), predicted, shown)
    return scores


def region_similarity(
    preds: UInt8[Any, "T H W"],
    target: UInt8[Any, "T H W"],
    object_ids: Sequence[int],
    void: Bool[Any, "T H W"] | None = None,
) -> Float64[np.ndarray, "N T"]:
    r"""Intersection over union of every object in every frame.

    :math:`J = |P \cap G| / |P \cup G|`, and 1 where both are empty.

    Args:
        preds: predicted label maps, an array or a tensor.
        target: true label maps.
        object_ids: the ``N`` ids to score.
        void: pixels that count for neither intersection nor union.

    Returns:
        ``(N, T)`` in [0, 1].

    Reference: Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation", CVPR 2016, 4.1.
    """
    return _scores(preds, target, object_ids, void, 0, [_region])[0]


def boundary_accuracy(
    preds: UInt8[Any, "T H W"],
    target: UInt8[Any, "T H W"],
    object_ids: Sequence[int],
    void: Bool[Any, "T H W"] | None = None,
    bound_th: float = 0.008,
) -> Float64[np.ndarray, "N T"]:
    r"""F-measure of the boundary pixels of every object in every frame.

    With boundary maps :math:`b_P, b_G` (pixels that differ from their right, lower or lower-right neighbour) and their dilations
    :math:`d_P, d_G` by a disk, :math:`P = |b_P \cap d_G| / |b_P|`, :math:`R = |b_G \cap d_P| / |b_G|` and
    :math:`F = 2PR / (P + R)`, 0 if :math:`P + R = 0`. If only one boundary is empty, F is 0; if both are, F is 1 (even if the
    masks differ, as an empty and a full one do).

    Args:
        preds: predicted label maps, an array or a tensor.
        target: true label maps.
        object_ids: the ``N`` ids to score.
        void: pixels that are set to background in both before the boundaries are taken.
        bound_th: radius of the disk: a value below 1 is a fraction of the image diagonal, rounded up to pixels; other values are
            pixels.

    Returns:
        ``(N, T)`` in [0, 1].

    Reference: Perazzi et al., CVPR 2016, 4.1; maps and disk as in the DAVIS toolkits.
    """
    radius = boundary_radius(target.shape[1], target.shape[2], bound_th)
    return _scores(preds, target, object_ids, void, radius, [_boundary_f])[0]


def region_and_boundary(
    preds: UInt8[Any, "T H W"],
    target: UInt8[Any, "T H W"],
    object_ids: Sequence[int],
    void: Bool[Any, "T H W"] | None = None,
    bound_th: float = 0.008,
) -> tuple[Float64[np.ndarray, "N T"], Float64[np.ndarray, "N T"]]:
    """:func:`region_similarity` and :func:`boundary_accuracy` in one pass, which is faster than two passes."""
    radius = boundary_radius(target.shape[1], target.shape[2], bound_th)
    region, boundary = _scores(preds, target, object_ids, void, radius, [_region, _boundary_f])
    return region, boundary


def boundary_radius(height: int, width: int, bound_th: float = 0.008) -> int:
    """Tolerance of the boundary measure in pixels: 8 at 480 x 854."""
    return math.ceil(bound_th if bound_th >= 1 else bound_th * math.hypot(height, width))


def as_array(values: Any) -> np.ndarray:
    """An array without a copy; tensors on another device are copied."""
    return np.asarray(values.cpu() if hasattr(values, "cpu") else values)


def ids_in(label_map: UInt8[np.ndarray, "H W"]) -> tuple[int, ...]:
    """Values of a label map other than 0, from high to low; fast for a few ids, as label maps have."""
    box = _box(label_map)
    if box is None:
        return ()
    rest, ids = label_map[box], []
    while value := int(rest.max()):
        ids.append(value)
        rest = np.where(rest == value, np.uint8(0), rest)
    return tuple(ids)


# Masks, 64 pixels a word ----------------------------------------------------------------------------------------------
# Most of the time goes into the dilations of F. On packed bits they take a fraction of the time that an image library needs, and
# the gain grows with the radius.


@dataclass(frozen=True)
class _Pair:
    """Predicted and true mask of one object in one frame, cut to their common box, with one bit a pixel."""

    bits: Words
    """Both masks, row after row; the first pixel is the lowest bit."""
    width: int
    stride: int
    """Words a row. Rows end in at least ``radius`` empty bits, so bits that a shift moves out of a row never enter another
    one."""
    radius: int

    @cached_property
    def counts(self) -> tuple[int, int]:
        """Numbers of predicted and true pixels."""
        return _count(self.bits)


def _scores(
    preds: Any,
    target: Any,
    object_ids: Sequence[int],
    void: Any,
    radius: int,
    measures: Sequence[Callable[[_Pair], float]],
) -> Float64[np.ndarray, "M N T"]:
    """Values of every measure; 1 if an object is neither predicted nor true, both for J and for F."""
    if preds.shape != target.shape:
        raise ValueError(f"predictions {tuple(preds.shape)} and truth {tuple(target.shape)} differ in frames or size")
    maps: Iterable[tuple[np.ndarray, np.ndarray]] = zip(as_array(preds), as_array(target), strict=True)
    if void is not None:
        counted = as_array(void) == 0
        maps = ((pred * known, true * known) for (pred, true), known in zip(maps, counted, strict=True))
    values = np.ones((len(measures), len(object_ids), len(target)))
    for frame, (pred, true) in enumerate(maps):
        for row, pair in _pairs(pred, true, object_ids, radius):
            for index, measure in enumerate(measures):
                values[index, row, frame] = measure(pair)
    return values


def _pairs(
    pred: UInt8[np.ndarray, "H W"], true: UInt8[np.ndarray, "H W"], object_ids: Sequence[int], radius: int
) -> Iterator[tuple[int, _Pair]]:
    """Masks of the objects of a frame, each with its index among the ids; objects without any pixel are left out."""
    labelled = _box(pred | true)
    if labelled is None:
        return
    pred, true = pred[labelled], true[labelled]
    masks = np.empty((2, *true.shape), dtype=bool)
    for row, object_id in enumerate(object_ids):
        np.equal(pred, object_id, out=masks[0])
        np.equal(true, object_id, out=masks[1])
        # With a single object, the box of all labelled pixels is its box.
        box = _box((masks[0] | masks[1]).view(np.uint8)) if len(object_ids) > 1 else (slice(None), slice(None))
        if box is not None:
            yield row, _pack(masks[:, *box], radius)


def _box(plane: UInt8[np.ndarray, "h w"]) -> tuple[slice, slice] | None:
    """Rows and columns that are not 0, enlarged by one on every side where possible; None if all is 0.

    A boundary lies up to one pixel above and left of a mask; the extra pixel below and right keeps away the rules for the border.
    """
    rows = np.bitwise_or.reduce(plane, axis=1) != 0
    top, bottom = int(rows.argmax()), len(rows) - int(rows[::-1].argmax())
    if not rows[top]:
        return None
    columns = np.bitwise_or.reduce(plane[top:bottom], axis=0) != 0
    left, right = int(columns.argmax()), len(columns) - int(columns[::-1].argmax())
    return slice(max(top - 1, 0), bottom + 1), slice(max(left - 1, 0), right + 1)


def _pack(masks: Bool[np.ndarray, "2 h w"], radius: int) -> _Pair:
    _, height, width = masks.shape
    stride = -(-(width + radius) // 64)
    padded = np.zeros((2, height, 64 * stride), dtype=bool)
    padded[:, :, :width] = masks
    bits = np.packbits(padded, bitorder="little").view("<u8").reshape(2, height * stride)
    return _Pair(bits, width, stride, radius)


def _count(bits: Words) -> tuple[int, int]:
    """Numbers of set pixels of both masks."""
    first, second = np.bitwise_count(bits).sum(axis=1, dtype=np.int64).tolist()
    return first, second


def _region(pair: _Pair) -> float:
    num_pred, num_true = pair.counts
    intersection = int(np.bitwise_count(pair.bits[0] & pair.bits[1]).sum(dtype=np.int64))
    union = num_pred + num_true - intersection
    return intersection / union if union else 1.0


def _boundary_f(pair: _Pair) -> float:
    boundary = _boundary(pair)
    num_pred, num_true = _count(boundary)
    if num_pred == 0 or num_true == 0:
        return float(num_pred == num_true)
    near_other = _dilate(boundary, pair.stride, pair.radius)[::-1]
    pred_hits, true_hits = _count(boundary & near_other)
    precision, recall = pred_hits / num_pred, true_hits / num_true
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _boundary(pair: _Pair) -> Words:
    """Pixels that differ from their right, lower or lower-right neighbour.

    The last row is compared only with its right neighbours, the last column only with its lower ones, and the corner with none:
    the image border is not a boundary.
    """
    bits, stride = pair.bits, pair.stride
    row = np.packbits(np.arange(64 * stride) < pair.width - 1, bitorder="little").view("<u8")
    all_but_last_column = np.tile(row, bits.shape[1] // stride)
    right = _to_previous(bits, 1)
    here, below, diagonal = bits[:, :-stride], bits[:, stride:], right[:, stride:]
    boundary = bits ^ right
    boundary[:, :-stride] |= here ^ diagonal
    boundary &= all_but_last_column
    boundary[:, :-stride] |= here ^ below
    return boundary


def _dilate(bits: Words, stride: int, radius: int) -> Words:
    """Union of all shifts by ``(dx, dy)`` with ``dx^2 + dy^2 <= radius^2``.

    For every ``dy``, the shifts form a run of ``2w + 1`` pixels. A run that ends at its pixel comes from a shorter run by one
    shift. Runs are written to their rows from wide to narrow; what is there already moves on by the difference, and in the end by
    ``w`` to its centre. (Runs that begin at their pixel would leave the array before the first one.)
    """
    widths = [math.isqrt(radius**2 - dy**2) for dy in range(radius + 1)]
    runs, length = {0: bits}, 1
    run = bits
    for width in sorted(set(widths) - {0}):
        while length < 2 * width + 1:
            step = min(length, 2 * width + 1 - length, 63)
            longer = _to_next(run, step)
            longer |= run
            run = longer
            length += step
        runs[width] = run
    dilated = runs[radius].copy()
    for dy in range(1, radius + 1):
        run, offset, moved = runs[widths[dy]], dy * stride, widths[dy - 1] - widths[dy]
        for start in range(0, moved, 63):
            dilated = _to_previous(dilated, min(63, moved - start))
        dilated[:, offset:] |= run[:, :-offset]
        dilated[:, :-offset] |= run[:, offset:]
    return dilated


def _to_previous(bits: Words, pixels: int) -> Words:
    """Every pixel takes the value of the pixel ``pixels`` (1 to 63) later; rows and masks follow each other without a gap."""
    shifted = bits >> pixels
    shifted.reshape(-1)[:-1] |= bits.reshape(-1)[1:] << (64 - pixels)
    return shifted


def _to_next(bits: Words, pixels: int) -> Words:
    """Every pixel takes the value of the pixel ``pixels`` (1 to 63) earlier; rows and masks follow each other without a gap."""
    shifted = bits << pixels
    shifted.reshape(-1)[1:] |= bits.reshape(-1)[:-1] >> (64 - pixels)
    return shifted


# Over frames ----------------------------------------------------------------------------------------------------------


def mean(values: Float64[np.ndarray, "N T"]) -> Float64[np.ndarray, " N"]:
    """Mean over the frames that have a value."""
    return np.nanmean(values, axis=1)


def recall(values: Float64[np.ndarray, "N T"]) -> Float64[np.ndarray, " N"]:
    """Fraction of frames whose value is strictly above 0.5."""
    return (values > 0.5).mean(axis=1)


def decay(values: Float64[np.ndarray, "N T"]) -> Float64[np.ndarray, " N"]:
    """Mean of the first quarter of the frames minus mean of the last; neighbouring quarters share their edge frame.

    Deviation: the DAVIS 2017 toolkit casts the edges to 8-bit integers, which wraps for more than 256 frames. Here, as in the
    Matlab toolkit, they are not cast.

    Args:
        values: values ``(N, T)`` with ``T >= 1``.

    Returns:
        ``(N,)`` in [-1, 1].
    """
    # The offset rounds a half up, where NumPy would round it to even.
    edges = np.round(np.linspace(1, values.shape[1], 5) + 1e-10).astype(int) - 1
    first, last = values[:, edges[0] : edges[1] + 1], values[:, edges[3] : edges[4] + 1]
    return np.nanmean(first, axis=1) - np.nanmean(last, axis=1)
