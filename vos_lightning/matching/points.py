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
from vos_lightning.matching.similarity import Similarity, memory_part, query_part
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
    numbers: tuple[int, ...]
    """How many points are valid, for every row ``b * N + n``, known to the host."""


def sample_points(
    score: Float[Tensor, "B N h w"], region: Bool[Tensor, "B N h w"], counts: Int64[Tensor, "B N"], at_least: int = 0
) -> Points:
    """Choose the cells of a region with the largest scores, a separate number of them for each object.

    Equal scores are taken from top to bottom and left to right, so that the choice does not depend on the batch. The numbers of
    points go to the host, once: what is computed for points would otherwise be computed for the largest possible number of them.

    Args:
        score: score of every cell, ``(B, N, h, w)``; only the order matters.
        region: cells that may be chosen.
        counts: number of points of each object, not more than its region has cells.
        at_least: smallest width of the result, so that in training every parameter gets a gradient.

    Returns:
        Points, the largest score first. Padding consists of other cells of the map, so that no cell occurs twice.
    """
    flat = score.detach().masked_fill(~region, float("-inf")).flatten(2)
    order = flat.sort(dim=2, descending=True, stable=True).indices
    numbers: tuple[int, ...] = tuple(counts.flatten().tolist())
    width = max(*numbers, at_least, 0)
    return Points(order[..., :width], torch.arange(width, device=order.device) < counts[..., None], numbers)


# Values at points -----------------------------------------------------------------------------------------------------


def cells_table(maps: Float[Tensor, "*batch C h w"]) -> Float[Tensor, "cells C"]:
    """All maps as one table with a contiguous row for each cell; maps in channels-last order are not copied."""
    # Of a single map, a reshape alone would be a view whose rows are scattered over memory, which is slow to gather from.
    return maps.movedim(-3, -1).contiguous().view(-1, maps.shape[-3])


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


@dataclass(frozen=True)
class PointMemory:
    """What points of ``R`` objects read, prepared once a frame for all chunks of its points, see :func:`point_memory`."""

    rows: Int64[Tensor, " R"]
    """Object slot ``b * N + n`` of each row."""
    num_objects: int
    grid_key: Float[Tensor, "R S C1"]
    grid_value: Float[Tensor, "R S E"]
    key: Float[Tensor, "frame_cells C1"]
    """Keys of the previous frame, a row for each cell; keys have the form of :func:`memory_part`."""
    shared: Float[Tensor, "frame_cells C"]
    own: Float[Tensor, "object_cells D"]
    size: tuple[int, int]
    """Height and width of the previous frame in cells."""

    def bytes_of_a_point(self, window: int) -> int:
        """Memory that a point takes while it is matched: its window's keys, and four times its affinities."""
        seen, channels = self.grid_key.shape[1] + window**2, self.key.shape[1]
        return self.key.element_size() * (window**2 * channels + 4 * seen)


def point_memory(
    grid: PointGrid,
    previous: PointMap,
    rows: Int64[Tensor, " R"],
    similarity: Similarity = "l2",
    scale: float | None = None,
    grid_open: Bool[Tensor, "B N"] | None = None,
) -> PointMemory:
    """Prepare two earlier frames for the matching of points.

    Args:
        grid: grid of the first frame of each object.
        previous: the previous frame, with the size of the points' map.
        rows: object slot ``b * N + n`` of each row of points.
        similarity: ``l2``, the negative squared distance, ``dot`` or ``cosine``.
        scale: factor of the similarity; None for ``CK ** -0.5``, or 1 with ``cosine``.
        grid_open: objects that read the grid; the others read only their window. None for all objects.
    """
    if scale is None:
        scale = 1.0 if similarity == "cosine" else previous.key.shape[1] ** -0.5
    with torch.autocast(rows.device.type, enabled=False):
        far = memory_part(grid.key.flatten(0, 1).index_select(0, rows).transpose(1, 2), similarity, scale)
        if grid_open is not None:
            # Half of the lowest value, so that its sum with a similarity does not overflow.
            closed = ~grid_open.flatten()[rows, None]
            far = torch.cat([far[..., :-1], far[..., -1].masked_fill(closed, torch.finfo(far.dtype).min / 2)[..., None]], dim=2)
        near = memory_part(cells_table(previous.key), similarity, scale)
    values = grid.value.flatten(0, 1).index_select(0, rows).transpose(1, 2)
    shared, own = (cells_table(maps).to(values.dtype) for maps in (previous.shared, previous.own))
    height, width = previous.key.shape[-2:]
    return PointMemory(rows, previous.own.shape[1], far, values, near, shared, own, (height, width))


def match_points(
    query: Float[Tensor, "R K CK"],
    index: Int64[Tensor, "R K"],
    seen: PointMemory,
    window: int = 15,
    similarity: Similarity = "l2",
) -> Float[Tensor, "R K E"]:
    r"""Values that points read from the grid of the first and a window of the previous frame, in one softmax.

    .. math:: r_k = \sum_j \mathrm{softmax}_j(c\, s(q_k, m_{kj}))\, v_{kj}, \quad j \in \text{grid} \cup \text{window}(k)

    A linear layer on the values may be applied after the readout as well, because the weights sum to 1. Keys of the windows are
    gathered, values are not. Callers should bound ``R * K``, see :meth:`PointMemory.bytes_of_a_point`.

    Args:
        query: keys of the points.
        index: cells of the points.
        seen: what is read; its first ``R`` rows are those of the points.
        window: side of the window in cells.
        similarity: similarity for which ``seen`` is prepared.

    Returns:
        ``(R, K, E)`` with ``E = C + D`` channels, shared ones first, in the type of the values; the weights are at least float32.

    Reference: PMNet equations 2 and 3. Equation 2 prints the distance itself, by which the least similar value would win. Its
    text and the tensor product of STCN that it refers to mean the negative distance.
    """
    (height, width), count = seen.size, index.shape[0]
    rows, size = seen.rows[:count], seen.grid_key.shape[1]
    cells, inside = window_cells(index, height, width, window)
    shared_cells = cells + (rows.div(seen.num_objects, rounding_mode="floor") * height * width)[:, None, None]
    with torch.autocast(query.device.type, enabled=False):
        keys = query_part(query, similarity)
        far = keys @ seen.grid_key[:count].transpose(1, 2)
        near = (take_points(seen.key, shared_cells.flatten(0, 1)) @ keys.flatten(0, 1).unsqueeze(2)).view(cells.shape)
    lowest = torch.finfo(near.dtype).min
    weights = torch.cat([far, near.masked_fill(~inside, lowest)], dim=2).softmax(dim=2).to(seen.own.dtype)

    read = weights[..., :size] @ seen.grid_value[:count]
    near_weights = weights[..., size:].flatten(0, 1)
    own_cells = cells + (rows * height * width)[:, None, None]
    parts = [
        F.embedding_bag(where.flatten(0, 1), table, per_sample_weights=near_weights, mode="sum")
        for where, table in ((shared_cells, seen.shared), (own_cells, seen.own))
    ]
    return read + torch.cat(parts, dim=1).view_as(read)
