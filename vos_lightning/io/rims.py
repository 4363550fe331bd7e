"""Masks that an editor has smoothed: their grey rims became ids."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from vos_lightning.arrays import Tensor, to_array

RIM_RULES = ((4.0, 0.25), (6.0, 0.5))
"""Pairs of a mean width in pixels, up to which an id counts as thin, and the share of an object's outline from which thin ids
along it mean that the mask was smoothed; see :func:`find_rims`."""
WARNED_SHARE = 0.1
"""Share of an object's outline; if thin ids cover more than this, the user is warned."""


@dataclass(frozen=True)
class Rims:
    """Thin ids that follow the outline of an object."""

    object_id: int
    ids: tuple[int, ...]
    share: float
    """Share of the object's outline that the thin ids cover."""
    smoothed: bool
    """Whether the share is larger than true objects reach."""


def find_rims(label_map: UInt8[Tensor, "H W"]) -> tuple[Rims, ...]:
    """Ids that look like the rims that smoothing leaves around an object when its grey values become ids.

    A rim is thin, lies between an object and something else, and follows the object's outline. Among the ids with a small mean
    width (:data:`RIM_RULES`), those connected pieces count that touch an object (any wider id) and also another object or the
    background. The share of the object's outline that these pieces cover decides. A small true object (a ball, a leash) lies
    along a small part of the outline only, or is surrounded by a single object.

    The rules were chosen by measurement. True masks: every tenth one of ten videos of DAVIS 2016, 497 maps of up to 5 regions
    from BSDS500, 120 maps of 3 videos with several objects. Ids up to 4 pixels wide cover nothing of an outline in any of them;
    ids up to 6 pixels wide cover 0.36 in one, 0.008 in two and nothing in 673; ids up to 8 pixels wide cover up to 0.63. So no
    true mask is refused. Smoothed masks: 16 objects of the same sources, blurred by a Gaussian of 0.7 to 3 pixels, enlarged 2 to
    8 times bilinearly, or anti-aliased, and quantised to 3 to 8 levels, by equal steps or to a palette of the image: 15 or 16 of
    16 are refused in every case. Masks that are blurred by 5 pixels and more have levels as wide as true objects unless there are
    many, and are accepted.

    Args:
        label_map: ids, 0 background.

    Returns:
        Objects with rims beside at least :data:`WARNED_SHARE` of their outline.
    """
    array = to_array(label_map)
    widths = {int(i): _mean_width(array == i) for i in np.unique(array)}
    found: dict[int, Rims] = {}
    for width, refused in RIM_RULES:
        thin_ids = [i for i in widths if i and widths[i] <= width]
        for i, ids, share in _covered_outlines(array, thin_ids, [i for i in widths if i not in thin_ids]):
            smoothed = share >= refused or (i in found and found[i].smoothed)
            if share >= WARNED_SHARE or smoothed:
                found[i] = Rims(i, ids, share, smoothed)
    return tuple(found.values())


def _covered_outlines(
    array: UInt8[np.ndarray, "H W"], thin_ids: list[int], wide_ids: list[int]
) -> Iterator[tuple[int, tuple[int, ...], float]]:
    """Each object, the thin ids between it and something else, and the share of its outline that they cover."""
    if not thin_ids:
        return
    thin = np.isin(array, thin_ids)
    # Every wide object is grown by a pixel, so that it overlaps the thin pieces that it touches.
    contacts = {i: _grow(array == i) & thin for i in wide_ids}
    count, pieces = cv2.connectedComponents(thin.astype(np.uint8), connectivity=8)
    touched = np.zeros((count, 256), dtype=bool)
    for i, contact in contacts.items():
        touched[np.unique(pieces[contact]), i] = True
    between = touched.sum(axis=1) > 1
    for i in filter(None, wide_ids):
        covered = contacts[i] & between[pieces]
        inside = array == i
        outline = np.count_nonzero(_grow(inside) & ~inside)
        if covered.any():
            ids = np.unique(array[thin & np.isin(pieces, np.unique(pieces[covered]))])
            yield i, tuple(map(int, ids)), float(np.count_nonzero(covered) / outline)


def _grow(region: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    return cv2.dilate(region.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0


def _mean_width(region: Bool[np.ndarray, "H W"]) -> float:
    """Twice the area divided by the length of the border: about the width of a line, or the radius of a disc."""
    plane = region.astype(np.uint8)
    # The border of the image is no edge: an object that it cuts off is assumed to continue outside.
    inner = cv2.erode(plane, cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3)), borderType=cv2.BORDER_REPLICATE)
    area = int(plane.sum())
    return 2 * area / max(area - int(inner.sum()), 1)
