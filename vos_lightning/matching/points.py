"""Matching at points: which cells of a fine map are refined, and what they read from two earlier frames.

A point is a cell of an ``h x w`` map, numbered ``row * w + column``. Points of an object are in the order of their scores, and
padded to the ``K`` points of the object that has most; ``valid`` is False for padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from vos_lightning.mask_ops import Aggregation, soft_aggregate
from vos_lightning.matching.similarity import Similarity, l2_normalize, memory_logits
from vos_lightning.structures import per_object

CountBase = Literal["box", "mask"]
ProbabilityForm = Literal["ratio", "margin"]
WriteBack = Literal["replace", "add"]


# Which points ---------------------------------------------------------------------------------------------------------


def probability_uncertainty(
    logits: Float[Tensor, "B N h w"], valid: Bool[Tensor, "B N"], form: ProbabilityForm = "ratio", mode: Aggregation = "product"
) -> Float[Tensor, "B N h w"]:
    r"""Uncertainty of the predicted probabilities.

    - ``ratio``: :math:`p_2 / p_1` of the two most probable among background and objects after soft aggregation, the same for
      every object. AFB-URR's :math:`\exp(1 - p_1 / p_2)` orders cells alike, but is zero in float32 for :math:`p_1 > 104\,p_2`.
    - ``margin``: :math:`1 - 2\,|\sigma(l) - 1/2|` of each object by itself. For one object both order cells alike.

    Args:
        logits: foreground log-odds of each object.
        valid: objects that exist.
        form: form of the uncertainty, see above.
        mode: mode of the aggregation, for ``ratio``.

    Returns:
        ``(B, N, h, w)`` in [0, 1].

    Raises:
        ValueError: ``form`` is unknown.

    Reference: AFB-URR (Liang et al., NeurIPS 2020) equation 9, which PMNet cites for its probabilities.
    """
    if form not in get_args(ProbabilityForm):
        raise ValueError(f"form must be one of {get_args(ProbabilityForm)}, not {form!r}")
    if form == "margin":
        # 1 - 2 |p - 1/2| = 2 min(p, 1 - p), which stays precise where p is near 1.
        return 2 * torch.sigmoid(-logits.float().abs())
    if logits.shape[1] == 0:
        return logits.float()
    merged, _ = soft_aggregate(logits, valid, mode)
    best = merged.topk(2, dim=1).values
    return torch.exp(best[:, 1:] - best[:, :1]).expand(-1, logits.shape[1], -1, -1)


def enlarged_boxes(masks: Bool[Tensor, "B N h w"], factor: float = 1.2) -> Bool[Tensor, "B N h w"]:
    """Bounding box of every mask, enlarged about its centre and clipped to the map.

    Args:
        masks: masks of the objects.
        factor: factor of height and width, at least 1; whole cells are added on both sides, and a half is rounded up.

    Returns:
        Cells inside the boxes; an empty mask has none.

    Reference: PMNet section 3.2.1.
    """

    def span(occupied: Bool[Tensor, "B N size"]) -> Bool[Tensor, "B N size"]:
        size = occupied.shape[-1]
        first = occupied.int().argmax(dim=-1, keepdim=True)
        last = size - 1 - occupied.flip(-1).int().argmax(dim=-1, keepdim=True)
        # The small constant makes up for rounding, as 1.2 - 1 is not exactly 0.2.
        extra = ((last - first + 1) * ((factor - 1) / 2) + (0.5 + 1e-4)).floor()
        cells = torch.arange(size, device=occupied.device)
        return (cells >= first - extra) & (cells <= last + extra) & occupied.any(dim=-1, keepdim=True)

    return span(masks.any(dim=3))[..., None] & span(masks.any(dim=2))[..., None, :]


def point_counts(
    region: Bool[Tensor, "B N h w"], masks: Bool[Tensor, "B N h w"], fraction: float, base: CountBase = "box"
) -> Int64[Tensor, "B N"]:
    """Number of points of each object: a fraction of an area in cells, rounded, and at least 1 if the area is not empty.

    Args:
        region: enlarged boxes of the objects, see :func:`enlarged_boxes`.
        masks: masks of the objects.
        fraction: share of the area, in (0, 1].
        base: area that is counted: that of the box (PMNet section 3.2.1) or of the mask (section 4.1).

    Raises:
        ValueError: ``fraction`` or ``base`` is out of range.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"the fraction of points must be in (0, 1], not {fraction}")
    if base not in get_args(CountBase):
        raise ValueError(f"base must be one of {get_args(CountBase)}, not {base!r}")
    area = (region if base == "box" else masks).flatten(2).sum(dim=2)
    return (area * fraction).round().long().clamp_min(1) * (area > 0)


@dataclass(frozen=True)
class Points:
    """Chosen cells of every object."""

    index: Int64[Tensor, "B N K"]
    valid: Bool[Tensor, "B N K"]


def sample_points(
    score: Float[Tensor, "B N h w"], region: Bool[Tensor, "B N h w"], counts: Int64[Tensor, "B N"], at_least: int = 0
) -> Points:
    """Choose the cells of a region with the largest scores, a separate number of them for each object.

    Equal scores are taken from top to bottom and left to right, so that the choice does not depend on the batch.

    Args:
        score: score of every cell, ``(B, N, h, w)``; only the order matters.
        region: cells that may be chosen.
        counts: number of points of each object, not more than its region has cells.
        at_least: smallest width of the result, so that in training every parameter gets a gradient.

    Returns:
        Points, the largest score first. Padding consists of other cells of the map, so that no cell occurs twice.
    """
    flat = score.detach().masked_fill(~region, float("-inf")).flatten(2)
    width = max(int(counts.max()) if counts.numel() else 0, at_least)
    index = flat.sort(dim=2, descending=True, stable=True).indices[..., :width]
    return Points(index, torch.arange(width, device=index.device) < counts[..., None])


# Values at points -----------------------------------------------------------------------------------------------------


def cells_table(maps: Float[Tensor, "*batch C h w"]) -> Float[Tensor, "cells C"]:
    """All maps as one table with a row for each cell; maps in channels-last order are not copied."""
    return maps.movedim(-3, -1).reshape(-1, maps.shape[-3])


def take_points(table: Float[Tensor, "cells C"], cells: Int64[Tensor, "*points"]) -> Float[Tensor, "*points C"]:
    """Rows of a table at the given cells."""
    return table.index_select(0, cells.flatten()).unflatten(0, cells.shape)


def write_points(
    maps: Float[Tensor, "B N h w"], points: Points, values: Float[Tensor, "B N K"], how: WriteBack = "replace"
) -> Float[Tensor, "B N h w"]:
    """Write values into maps at points; the given maps are not changed.

    Args:
        maps: maps that are copied and written to.
        points: cells that are written; padding is skipped.
        values: values at the points.
        how: ``replace`` or ``add``.

    Raises:
        ValueError: ``how`` is unknown.
    """
    if how not in get_args(WriteBack):
        raise ValueError(f"how must be one of {get_args(WriteBack)}, not {how!r}")
    flat = maps.flatten(2)
    old = flat.gather(2, points.index)
    new = torch.where(points.valid, values.to(flat.dtype) + (old if how == "add" else 0), old)
    return flat.scatter(2, points.index, new).view_as(maps)


# Matching -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PointGrid:
    """The cells of its first frame that the points of every object may read: a strided grid of ``S`` cells."""

    key: Float[Tensor, "B N CK S"] = per_object()  # noqa: RUF009
    value: Float[Tensor, "B N C S"] = per_object()  # noqa: RUF009


@dataclass(frozen=True)
class PointMap:
    """A frame as points read it: each reads a window of its cells."""

    key: Float[Tensor, "B CK h w"]
    shared: Float[Tensor, "B C h w"]
    """Part of the value that all objects share."""
    own: Float[Tensor, "B N D h w"] = per_object()  # noqa: RUF009
    """Part of the value that depends on the object."""


def strided_grid(seen: PointMap, stride: int) -> PointGrid:
    """Every ``stride``-th cell of every ``stride``-th row, starting with the first, separately for each object."""
    num_objects = seen.own.shape[1]

    def sparse(maps: Tensor) -> Tensor:
        return maps[..., ::stride, ::stride].flatten(-2)

    def each(maps: Tensor) -> Tensor:
        return sparse(maps).unsqueeze(1).expand(-1, num_objects, -1, -1)

    return PointGrid(each(seen.key), torch.cat([each(seen.shared), sparse(seen.own)], dim=2))


def window_cells(
    index: Int64[Tensor, "*points"], height: int, width: int, window: int
) -> tuple[Int64[Tensor, "*points W"], Bool[Tensor, "*points W"]]:
    """Cells of a square window around each point, and which of them lie inside the map.

    Args:
        index: points of a ``height x width`` map.
        height: height of the map.
        width: width of the map.
        window: side of the window in cells; an even window reaches one cell further up and left.

    Returns:
        Cells row by row, where cells outside the map are replaced by the nearest one inside; and whether they are inside.
    """
    along = torch.arange(window, device=index.device) - window // 2
    rows = index.div(width, rounding_mode="floor")[..., None] + along
    columns = (index % width)[..., None] + along
    inside = ((rows >= 0) & (rows < height))[..., :, None] & ((columns >= 0) & (columns < width))[..., None, :]
    cells = rows.clamp(0, height - 1)[..., :, None] * width + columns.clamp(0, width - 1)[..., None, :]
    return cells.flatten(-2), inside.flatten(-2)


def match_points(
    query: Float[Tensor, "R K CK"],
    index: Int64[Tensor, "R K"],
    rows: Int64[Tensor, " R"],
    grid: PointGrid,
    previous: PointMap,
    *,
    window: int = 15,
    similarity: Similarity = "l2",
    scale: float | None = None,
    grid_open: Bool[Tensor, "B N"] | None = None,
) -> Float[Tensor, "R K E"]:
    r"""Values that points read from the grid of the first and a window of the previous frame, in one softmax.

    .. math:: r_k = \sum_j \mathrm{softmax}_j(c\, s(q_k, m_{kj}))\, v_{kj}, \quad j \in \text{grid} \cup \text{window}(k)

    A linear layer on the values may be applied after the readout as well, because the weights sum to 1. Keys of the windows are
    gathered, which are ``R * K * window^2 * CK`` numbers; values are not. Callers should therefore bound ``R * K``.

    Args:
        query: keys of the points.
        index: cells of the points.
        rows: object slot ``b * N + n`` that each row of points belongs to.
        grid: grid of the first frame of each object.
        previous: the previous frame, with the size of the points' map.
        window: side of the window in cells.
        similarity: ``l2``, the negative squared distance, ``dot`` or ``cosine``.
        scale: factor of the similarity; None for ``CK ** -0.5``, or 1 with ``cosine``.
        grid_open: objects that read the grid; the others read only their window. None for all objects.

    Returns:
        ``(R, K, E)`` with ``E = C + D`` channels, shared ones first, in the type of the values; the weights are at least float32.

    Reference: PMNet equations 2 and 3. Equation 2 prints the distance itself, by which the least similar value would win. Its
    text and the tensor product of STCN that it refers to mean the negative distance.
    """
    if scale is None:
        scale = 1.0 if similarity == "cosine" else query.shape[-1] ** -0.5
    num_objects, (height, width) = previous.own.shape[1], previous.key.shape[-2:]
    size = grid.key.shape[-1]
    sample = rows.div(num_objects, rounding_mode="floor")
    logits = memory_logits(grid.key.flatten(0, 1)[rows], query.transpose(1, 2), similarity, scale)
    lowest = torch.finfo(logits.dtype).min
    if grid_open is not None:
        logits = logits.masked_fill(~grid_open.flatten()[rows][:, None, None], lowest)

    cells, inside = window_cells(index, height, width, window)
    shared_cells = cells + (sample * height * width)[:, None, None]
    with torch.autocast(query.device.type, enabled=False):
        near = _window_logits(previous.key.to(logits.dtype), query.to(logits.dtype), shared_cells, similarity, scale)
    weights = torch.cat([logits, near.masked_fill(~inside, lowest)], dim=2).softmax(dim=2)

    values = grid.value.flatten(0, 1)[rows]
    far = weights[..., :size].to(values.dtype) @ values.transpose(1, 2)
    near_weights = weights[..., size:].to(values.dtype).flatten(0, 1)
    own_cells = cells + (rows * height * width)[:, None, None]
    parts = [
        F.embedding_bag(where.flatten(0, 1), cells_table(maps).to(values.dtype), per_sample_weights=near_weights, mode="sum")
        for where, maps in ((shared_cells, previous.shared), (own_cells, previous.own))
    ]
    return far + torch.cat(parts, dim=1).view_as(far)


def _window_logits(
    keys: Float[Tensor, "B CK h w"],
    query: Float[Tensor, "R K CK"],
    cells: Int64[Tensor, "R K W"],
    similarity: Similarity,
    scale: float,
) -> Float[Tensor, "R K W"]:
    """As :func:`vos_lightning.matching.similarity.memory_logits`, for each point and the cells of its own window."""
    if similarity == "cosine":
        keys, query = l2_normalize(keys), F.normalize(query, dim=-1, eps=1e-12)
    table = cells_table(keys)
    gathered = take_points(table, cells.flatten(0, 1))
    product = (gathered @ query.flatten(0, 1).unsqueeze(2)).view(cells.shape)
    if similarity != "l2":
        return scale * product
    return scale * (2 * product - table.square().sum(dim=1)[cells])
