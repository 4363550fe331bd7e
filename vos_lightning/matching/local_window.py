"""Matching inside a window: every pixel of one frame is compared with its neighbourhood in another frame.

A window of ``window x window`` cells holds the offsets ``-(window // 2) .. window - 1 - window // 2`` in either direction, ``O =
window^2`` together, row by row: index ``o`` is the offset ``(x, y) = (o % window, o // window) - window // 2``. An odd window is
centred on the cell itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from vos_lightning.matching.similarity import at_least_float32, dot, l2_normalize, negative_squared_l2

Measure = Literal["dot", "cosine", "l2"]
"""``dot``: inner product; ``cosine``: cosine; ``l2``: negative squared distance."""
OutOfFrame = Literal["mean", "mask", "zero"]
"""What an offset that leaves the frame counts as: a cell of the mean similarity of the window's cells inside (``mean``), nothing
(``mask``), or a similarity of 0 as in zero padding (``zero``).

Near a border, the cells inside lie on one side. Excluding the others (``mask``) moves every mean offset to that side as soon as
the softmax is not sharp; with ``mean``, cells that match no better than others cancel as they do inside the frame.
"""
Confidence = Literal["maximum", "one_minus_maximum", "softmax_peak"]

MAX_ELEMENTS = 2**20
"""Most similarities that exist beside the volume at a time (4 MiB in float32); larger frames are split into bands of rows."""


def window_offsets(window: int, device: torch.device | None = None) -> Int64[Tensor, "O 2"]:
    """The offsets ``(x, y)`` of a window in cells, in the order of the volume."""
    along = torch.arange(window, device=device) - window // 2
    y, x = torch.meshgrid(along, along, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1)


def inside_frame(window: int, height: int, width: int, device: torch.device | None = None) -> Bool[Tensor, "O h w"]:
    """Which offsets stay inside a frame of ``height x width`` cells, for every cell."""
    along = torch.arange(window, device=device) - window // 2

    def inside(size: int) -> Bool[Tensor, "window size"]:
        target = along[:, None] + torch.arange(size, device=device)
        return (target >= 0) & (target < size)

    rows, columns = inside(height), inside(width)
    return (rows[:, None, :, None] & columns[None, :, None, :]).flatten(0, 1)


def local_similarity(
    query: Float[Tensor, "B C h w"], previous: Float[Tensor, "B C h w"], window: int, measure: Measure = "cosine"
) -> Float[Tensor, "B O h w"]:
    r"""Similarity of every query pixel to the pixels of a window in the previous frame (a cost volume).

    .. math:: V(u, x) = \mathrm{sim}(q(x), \, p(x + u))

    The similarities of a band of rows to all rows in reach are one matrix product, from which the window is read. The features
    are not copied for each offset, and beside the volume there are never more than :data:`MAX_ELEMENTS` similarities (but at
    least those of one row of cells).

    Args:
        query: features of this frame.
        previous: features of the other frame.
        window: side of the window in cells, at least 1; see the module for even sides.
        measure: similarity measure, see :mod:`vos_lightning.matching.similarity`. For keys of unit length, ``dot`` is enough.

    Returns:
        ``(B, O, h, w)``, at least float32; 0 where the offset leaves the frame (see :func:`inside_frame`).

    Raises:
        ValueError: the measure is unknown, or the window has no cell.

    Reference: MUNet (Sun et al.) equation 1, with ``cosine``; PMNet's tracking, with STCN's distance.
    """
    if measure not in get_args(Measure):
        raise ValueError(f"measure must be one of {get_args(Measure)}, not {measure!r}")
    if window < 1:
        raise ValueError(f"window must be at least 1 cell, not {window}")
    compare = negative_squared_l2 if measure == "l2" else dot
    if measure == "cosine":
        query, previous = l2_normalize(query), l2_normalize(previous)
    batch, _, height, width = query.shape
    before, after = window // 2, window - 1 - window // 2
    along = torch.arange(-before, after + 1, device=query.device)
    columns = (torch.arange(width, device=query.device)[:, None] + along).clamp(0, width - 1)
    size = _band_rows(batch, height, width, window)
    volume = []
    for top in range(0, height, size):
        bottom = min(top + size, height)
        first, last = max(top - before, 0), min(bottom + after, height)
        similarity = compare(query[:, :, top:bottom].flatten(2), previous[:, :, first:last].flatten(2))
        rows = (torch.arange(top, bottom, device=query.device)[:, None] + along).clamp(0, height - 1) - first
        cells = (rows[:, None, :, None] * width + columns[None, :, None, :]).flatten(2).flatten(0, 1)
        volume.append(similarity.gather(2, cells.expand(batch, -1, -1)))
    joined = torch.cat(volume, dim=1) if len(volume) > 1 else volume[0]
    # Offsets are innermost in memory, because maxima and softmaxes run over them.
    in_order = inside_frame(window, height, width, query.device).flatten(1).t()
    return joined.masked_fill(~in_order, 0.0).transpose(1, 2).unflatten(2, (height, width))


def _band_rows(batch: int, height: int, width: int, window: int) -> int:
    """Most rows of cells whose similarities to all rows in reach stay within the bound; at least 1."""
    pairs = MAX_ELEMENTS / max(batch * width * width, 1)
    # rows * (rows + window - 1) <= pairs, or rows * height <= pairs where the window is taller than the frame.
    reach = window - 1
    return max(1, int(max(math.sqrt(pairs + reach**2 / 4) - reach / 2, pairs / height)))


def match_weights(
    volume: Float[Tensor, "B O h w"],
    sign: int = 1,
    temperature: float | Float[Tensor, ""] = 1.0,
    out_of_frame: OutOfFrame = "mean",
) -> Float[Tensor, "B O h w"]:
    r"""Softmax over the window, :math:`\mathrm{softmax}_u(\pm V(u, x) / \tau)`.

    Args:
        volume: similarities from :func:`local_similarity`.
        sign: 1 favours similar pixels; -1, as printed by MUNet, favours dissimilar ones.
        temperature: temperature :math:`\tau > 0` of the softmax.
        out_of_frame: treatment of offsets that leave the frame, see :data:`OutOfFrame`.

    Returns:
        ``(B, O, h, w)``, summing to 1 over the window, at least float32.
    """
    if sign not in (-1, 1):
        raise ValueError(f"sign must be 1 or -1, not {sign}")
    # A small temperature makes a similarity of half precision infinite.
    scaled = _completed(at_least_float32(volume) * (sign / temperature), out_of_frame)
    # The offsets are innermost in memory already, so nothing is copied.
    return scaled.movedim(1, -1).softmax(dim=-1).movedim(-1, 1)


def expected_offset(weights: Float[Tensor, "B O h w"]) -> Float[Tensor, "B 2 h w"]:
    r"""Mean offset under the weights of a window, :math:`\sum_u w(u, x) \, u`, as ``(x, y)`` in cells."""
    offsets = window_offsets(math.isqrt(weights.shape[1]), weights.device).to(weights.dtype)
    with torch.autocast(weights.device.type, enabled=False):  # in half precision, hundreds of terms lose hundredths of a cell
        return torch.einsum("bohw,ok->bkhw", weights, offsets)


def soft_displacement(
    volume: Float[Tensor, "B O h w"],
    sign: int = 1,
    temperature: float | Float[Tensor, ""] = 0.02,
    normalize: bool = True,
    out_of_frame: OutOfFrame = "mean",
) -> Float[Tensor, "B 2 h w"]:
    r"""Expected position of every pixel's match: the offsets of the window, weighted by a softmax of their similarity.

    .. math:: \hat u(x) = \sum_u u \; \mathrm{softmax}_u(\pm V(u, x) / \tau)

    Args:
        volume: similarities from :func:`local_similarity`.
        sign: sign of the similarities in the softmax, see :func:`match_weights`.
        temperature: temperature :math:`\tau > 0` of the softmax. With cosines and :math:`\tau = 1` the softmax over a large
            window is almost uniform. Features behind a ReLU have high cosines everywhere (0.75 between unrelated
            cells for uniform ones), so that a true match leads by little; 0.02 is the largest temperature at which a window of
            25 x 25 cells finds it to a few hundredths of a cell (0.05: 5 cells off).
        normalize: divide by ``window // 2``, so that the edge of an odd window is at distance 1.
        out_of_frame: treatment of offsets that leave the frame, see :data:`OutOfFrame`.

    Returns:
        ``(B, 2, h, w)`` as ``(x, y)``: the pixel at ``p`` came from ``p + u`` of the previous frame.

    Reference: MUNet (Sun et al.) section 3.2, which prints sign -1, temperature 1 and no normalisation.
    """
    displacement = expected_offset(match_weights(volume, sign, temperature, out_of_frame))
    return displacement / max(math.isqrt(volume.shape[1]) // 2, 1) if normalize else displacement


def match_confidence(
    volume: Float[Tensor, "B O h w"],
    form: Confidence = "maximum",
    sign: int = 1,
    temperature: float | Float[Tensor, ""] = 0.02,
    out_of_frame: OutOfFrame = "mean",
) -> Float[Tensor, "B 1 h w"]:
    r"""Confidence in the best match of every pixel; MUNet calls the maximum its uncertainty map.

    Args:
        volume: similarities from :func:`local_similarity`.
        form: ``maximum``, :math:`\max_u V(u, x)`; ``one_minus_maximum``; ``softmax_peak``, the largest weight of
            :func:`match_weights`.
        sign: sign of the similarities in the softmax, for ``softmax_peak``.
        temperature: temperature of the softmax, for ``softmax_peak``.
        out_of_frame: treatment of offsets that leave the frame, see :data:`OutOfFrame`.

    Returns:
        ``(B, 1, h, w)``.

    Reference: MUNet (Sun et al.) equation 2.
    """
    if form not in get_args(Confidence):
        raise ValueError(f"form must be one of {get_args(Confidence)}, not {form!r}")
    if form == "softmax_peak":
        return match_weights(volume, sign, temperature, out_of_frame).amax(dim=1, keepdim=True)
    # A mean is never the largest, and in half precision its sum may overflow.
    best = _completed(volume, "mask" if out_of_frame == "mean" else out_of_frame).amax(dim=1, keepdim=True)
    return 1 - best if form == "one_minus_maximum" else best


def _completed(volume: Float[Tensor, "B O h w"], out_of_frame: OutOfFrame) -> Float[Tensor, "B O h w"]:
    """The volume with values for offsets that leave the frame, where it is 0."""
    if out_of_frame not in get_args(OutOfFrame):
        raise ValueError(f"out_of_frame must be one of {get_args(OutOfFrame)}, not {out_of_frame!r}")
    if out_of_frame == "zero":
        return volume
    inside = inside_frame(math.isqrt(volume.shape[1]), volume.shape[2], volume.shape[3], volume.device)
    # The cell itself is always inside, so every mean has a cell, and every softmax and maximum a finite entry.
    if out_of_frame == "mean":
        return torch.where(inside, volume, volume.sum(dim=1, keepdim=True) / inside.sum(dim=0))
    return volume.masked_fill(~inside, float("-inf"))


@dataclass(frozen=True)
class LocalMatch:
    """The best match of every pixel inside its window."""

    index: Int64[Tensor, "B h w"]
    """Cell ``row * w + column`` of the other frame. Maps of adjacent frames chain by
    ``later.flatten(1).gather(1, index.flatten(1))``."""
    best: Float[Tensor, "B h w"]
    """Similarity of the best match."""
    second: Float[Tensor, "B h w"]
    """Similarity of the second-best match; -inf if the window has no other cell inside the frame."""


@torch.no_grad()
def best_match(
    query: Float[Tensor, "B C h w"],
    other: Float[Tensor, "B C h w"],
    window: int,
    measure: Measure = "l2",
    exclusion_radius: int = 0,
) -> LocalMatch:
    """Find the most similar cell of another frame for each pixel, inside a window around its own place.

    A pixel whose own place is as good as any other stays there. There are no gradients.

    Args:
        query: features of the frame whose pixels are followed.
        other: features of the frame in which they are searched.
        window: side of the window in cells.
        measure: similarity measure.
        exclusion_radius: the second best is the best cell that is further than this from the best one, along either axis: 0
            allows any other cell, 1 excludes its eight neighbours.

    Returns:
        Indices of the best matches, and the best and second-best similarities.

    Reference: PMNet equation 9; HMMN (Seong et al., ICCV 2021) chains the same argmax.
    """
    if exclusion_radius < 0:
        raise ValueError(f"exclusion_radius must not be negative, it is {exclusion_radius}")
    volume = _completed(local_similarity(query, other, window, measure), "mask")
    height, width = volume.shape[2:]
    best, chosen = volume.max(dim=1)
    own = (window // 2) * window + window // 2
    chosen = torch.where(volume[:, own] >= best, own, chosen)
    offsets = window_offsets(window, volume.device)
    apart = (offsets[:, None] - offsets[None]).abs().amax(dim=2) > exclusion_radius
    second = volume.movedim(1, -1).masked_fill(~apart[chosen], float("-inf")).amax(dim=-1)
    x, y = offsets[chosen].unbind(dim=-1)
    rows = torch.arange(height, device=volume.device)[:, None] + y
    columns = torch.arange(width, device=volume.device) + x
    return LocalMatch(rows * width + columns, best, second)
