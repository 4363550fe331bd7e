"""Refinement of uncertain points: where a decoded mask may be wrong, and what finer features say about it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vos_lightning.matching.points import (
    CountBase,
    PointGrid,
    PointMap,
    PointMemory,
    Points,
    ProbabilityForm,
    cells_table,
    enlarged_boxes,
    match_points,
    point_counts,
    point_memory,
    probability_uncertainty,
    sample_points,
    take_points,
)
from vos_lightning.matching.similarity import Similarity

PointSource = Literal["learned", "probabilities", "all", "none"]
EmptyMask = Literal["skip", "whole_frame"]
DetectorForm = Literal["top_down", "top_down_3x3", "concatenated"]
WriteBack = Literal["replace", "add", "replace_pixels"]


@dataclass(frozen=True)
class PointSampling:
    """Which points of an object are refined.

    Attributes:
        source: which points: the most uncertain ones, by the ``learned`` map or by the predicted ``probabilities``; ``all`` cells
            of the frame; or ``none``.
        fraction: share of the cells of an area that become points, in (0, 1].
        count_base: the area: that of the enlarged ``box`` (section 3.2.1 of the paper) or that of the ``mask`` (section 4.1).
        box_factor: factor that enlarges height and width of the object's bounding box, in which points are chosen.
        empty_mask: an object whose first mask is empty gets no points (``skip``), or points from the ``whole_frame``.
        probability_form: form of the uncertainty of probabilities, see
            :func:`vos_lightning.matching.points.probability_uncertainty`.
    """

    source: PointSource = "learned"
    fraction: float = 0.2
    count_base: CountBase = "box"
    box_factor: float = 1.2
    empty_mask: EmptyMask = "skip"
    probability_form: ProbabilityForm = "ratio"

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("source", self.source, get_args(PointSource)),
            ("empty_mask", self.empty_mask, get_args(EmptyMask)),
        ):
            if value not in allowed:
                raise ValueError(f"sampling.{name} must be one of {allowed}, not {value!r}")
        if self.box_factor < 1:
            raise ValueError(f"sampling.box_factor must be at least 1, not {self.box_factor}")

    def score(self, logits: Float[Tensor, "B N h w"], introduced: Bool[Tensor, "B N"]) -> Float[Tensor, "B N h w"]:
        """Uncertainty of the predicted probabilities."""
        return probability_uncertainty(logits.detach(), introduced, self.probability_form)

    def choose(
        self,
        source: PointSource,
        score: Float[Tensor, "B N h w"],
        logits: Float[Tensor, "B N h w"],
        introduced: Bool[Tensor, "B N"],
        at_least: int = 0,
    ) -> Points:
        """Choose the points of the objects that are introduced.

        Args:
            source: which points, as ``self.source``; a training may choose another source.
            score: uncertainty of every cell; not used with ``all``.
            logits: logits of the first mask of every object.
            introduced: objects that are known.
            at_least: smallest width of the result, see :func:`vos_lightning.matching.points.sample_points`.
        """
        known = introduced[:, :, None, None]
        masks = (logits > 0) & known
        if source == "all":
            region = known.expand_as(masks)
            counts = region.flatten(2).sum(dim=2)
        else:
            region = enlarged_boxes(masks, self.box_factor)
            if self.empty_mask == "whole_frame":
                empty = known & ~masks.flatten(2).any(dim=2)[:, :, None, None]
                region, masks = region | empty, masks | empty
            counts = point_counts(region, masks, self.fraction, self.count_base)
        return sample_points(score, region, counts, at_least)


class UncertaintyDetector(nn.Module):
    """Predicts where the mask of an object is likely to be wrong, from the decoder's features.

    Features at strides 16, 8 and 4 are projected to ``width`` channels, merged to stride 4 and read out by two convolutions.
    There is no normalisation: the batches are very small, and all other statistics are fixed.

    Args:
        channels: numbers of channels of the decoder's features at strides 16, 8 and 4.
        width: number of channels of the projections.
        form: ``top_down``: 1 x 1 projections; the coarse ones are enlarged, added to the next finer and convolved;
            ``top_down_3x3``: the same with 3 x 3 projections; ``concatenated``: all are enlarged to stride 4 and stacked.

    Raises:
        ValueError: ``form`` is unknown.

    Reference: PMNet section 3.2.1, which states inputs, output and the cost of a lightweight network but not its layers.
    """

    def __init__(
        self, channels: tuple[int, int, int] = (512, 256, 256), width: int = 64, form: DetectorForm = "top_down"
    ) -> None:
        super().__init__()
        if form not in get_args(DetectorForm):
            raise ValueError(f"form must be one of {get_args(DetectorForm)}, not {form!r}")
        self.top_down = form != "concatenated"
        size = 3 if form == "top_down_3x3" else 1
        self.lateral16, self.lateral8, self.lateral4 = (nn.Conv2d(c, width, size, padding=size // 2) for c in channels)
        self.merge8 = nn.Conv2d(width, width, 3, padding=1) if self.top_down else None
        self.merge4 = nn.Conv2d(width if self.top_down else 3 * width, width, 3, padding=1)
        self.hidden = nn.Conv2d(width, max(width // 2, 1), 3, padding=1)
        self.predictor = nn.Conv2d(max(width // 2, 1), 1, 1)

    def forward(
        self, s16: Float[Tensor, "B N C16 h w"], s8: Float[Tensor, "B N C8 h8 w8"], s4: Float[Tensor, "B N C4 h4 w4"]
    ) -> Float[Tensor, "B N h4 w4"]:
        """Uncertainty in [0, 1] of every object; no gradient reaches the features."""
        a, b, c = (
            F.relu(layer(x.detach().flatten(0, 1)), inplace=True)
            for layer, x in ((self.lateral16, s16), (self.lateral8, s8), (self.lateral4, s4))
        )
        if self.merge8 is not None:
            b = F.relu(self.merge8(_enlarge(a, 2) + b), inplace=True)
            c = _enlarge(b, 2) + c
        else:
            c = torch.cat([_enlarge(a, 4), _enlarge(b, 2), c], dim=1)
        x = F.relu(self.hidden(F.relu(self.merge4(c), inplace=True)), inplace=True)
        return self.predictor(x).float().sigmoid().squeeze(1).unflatten(0, s4.shape[:2])


@dataclass(frozen=True)
class PointRefinement:
    """Options of the refinement of uncertain points.

    Attributes:
        detector: form of the network that learns where a mask may be wrong, see :class:`UncertaintyDetector`.
        grid_stride: distance between the cells of the first frame that are read, in cells at stride 4.
        grid_while_previous: whether the grid is read while the first frame is also the previous one.
        window: side of the window that is read from the previous frame, in cells at stride 4.
        share_key: use one layer for the point keys of query and memory.
        aggregation: widths of the layers that join the read values with the query; the last is the width of the decoder at stride
            4.
        prediction: widths of the hidden layers that predict the new logits.
        chunk_bytes: memory that the points which are matched at a time may take; it decides how many they are.
        write_back: new logits replace the old ones at stride 4 (``replace``), are added to them (``add``), or replace the pixels
            of a point after enlargement (``replace_pixels``).
        relu_decoded: pass the decoder's features at points through a ReLU before the new ones are added.

    Raises:
        ValueError: a value is unknown or out of range.

    Reference: PMNet sections 3.2.1 to 3.2.3.
    """

    detector: DetectorForm = "top_down"
    grid_stride: int = 2
    grid_while_previous: bool = True
    window: int = 15
    share_key: bool = False
    aggregation: tuple[int, ...] = (512, 256, 256)
    prediction: tuple[int, ...] = (256, 256)
    chunk_bytes: int = 2**26
    write_back: WriteBack = "replace"
    relu_decoded: bool = False

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("detector", self.detector, get_args(DetectorForm)),
            ("write_back", self.write_back, get_args(WriteBack)),
        ):
            if value not in allowed:
                raise ValueError(f"refinement.{name} must be one of {allowed}, not {value!r}")
        for name, number in (("grid_stride", self.grid_stride), ("window", self.window), ("chunk_bytes", self.chunk_bytes)):
            if number < 1:
                raise ValueError(f"refinement.{name} must be at least 1, not {number}")


DEFAULT_REFINEMENT = PointRefinement()


class PointRefiner(nn.Module):
    r"""Predicts new logits at points, from features at stride 4 of the current, the first and the previous frame.

    .. math:: l_k = B\big(A([\,F(r_k), V x_k\,]) + d_k\big)

    Here :math:`x_k` are the frame's features, :math:`r_k` the features that the point reads from the memory (see
    :func:`vos_lightning.matching.points.match_points`), :math:`d_k` the decoder's features, :math:`F` (fusion) and :math:`V`
    (query value) linear layers, and :math:`A, B` stacks of linear layers with ReLUs between them. The paper applies the fusion to
    the memory and reads the result. Both are linear and the weights sum to 1, so here the fusion is applied to what was read.

    Args:
        feature_channels: number of channels of the frame's features at stride 4.
        own_channels: number of channels of the features at stride 4 that depend on the object.
        decoder_channels: number of channels of the decoder's features at stride 4.
        key_channels: number of channels of the keys of query and memory.
        value_channels: number of channels of the values of query and memory.
        options: options; they give the widths of the stacks A (``aggregation``, which ends with ``decoder_channels``) and B
            (``prediction``).
        similarity: similarity of point keys, see :func:`vos_lightning.matching.points.point_memory`.
        scale: factor of the similarity, see :func:`vos_lightning.matching.points.point_memory`.
        recompute: in training, recompute a chunk in the backward pass instead of keeping its gathered keys.

    Raises:
        ValueError: the stack A does not end with ``decoder_channels``.

    Reference: PMNet sections 3.2.2 and 3.2.3 and Figure 3; the paper gives neither widths nor activations of the stacks.
    """

    def __init__(
        self,
        feature_channels: int = 256,
        own_channels: int = 64,
        decoder_channels: int = 256,
        key_channels: int = 64,
        value_channels: int = 512,
        options: PointRefinement = DEFAULT_REFINEMENT,
        *,
        similarity: Similarity = "l2",
        scale: float | None = None,
        recompute: bool = True,
    ) -> None:
        super().__init__()
        if options.aggregation[-1] != decoder_channels:
            raise ValueError(
                f"refinement.aggregation must end with the decoder's {decoder_channels} channels, not {options.aggregation[-1]}"
            )
        self.query_key = nn.Linear(feature_channels, key_channels)
        self.query_value = nn.Linear(feature_channels, value_channels)
        self.memory_key = None if options.share_key else nn.Linear(feature_channels, key_channels)
        self.fusion = nn.Linear(feature_channels + own_channels, value_channels)
        self.aggregation = _stack(2 * value_channels, options.aggregation)
        self.prediction = _stack(decoder_channels, (*options.prediction, 1))
        self.window, self.scale = options.window, scale
        self.similarity: Similarity = similarity
        self.chunk_bytes, self.recompute = options.chunk_bytes, recompute

    @torch.no_grad()
    def start_as_copier(self, evidence: float = 6.0) -> None:
        """Initialise so that refined logits follow the decoder's first two channels, which hold the object and the rest.

        Args:
            evidence: logit of a readout that lies wholly inside the object, see
                :meth:`vos_lightning.decoders.refine.RefineDecoder.start_as_copier`.
        """
        *hidden, last = (layer for layer in self.prediction if isinstance(layer, nn.Linear))
        *_, aggregated = (layer for layer in self.aggregation if isinstance(layer, nn.Linear))
        for layer in (aggregated, *hidden):
            layer.weight[:2] = 0
            layer.bias[:2] = 0
        for layer in hidden:
            layer.weight[:2, :2].fill_diagonal_(1.0)
        last.weight *= 0.05
        last.weight[0, :2] = torch.tensor([evidence, -evidence])
        last.bias.zero_()

    def remember(self, features: Float[Tensor, "B C h w"], own: Float[Tensor, "B N D h w"]) -> PointMap:
        """The features that points of later frames may read from this frame."""
        layer = self.query_key if self.memory_key is None else self.memory_key
        return PointMap(F.conv2d(features, layer.weight[:, :, None, None], layer.bias), features, own)

    def forward(
        self,
        points: Points,
        features: Float[Tensor, "B C h w"],
        decoded: Float[Tensor, "B N C4 h w"],
        grid: PointGrid,
        previous: PointMap,
        grid_open: Bool[Tensor, "B N"] | None = None,
    ) -> Float[Tensor, "B N K"]:
        """Foreground logits at the points of every object.

        Args:
            points: cells at which logits are predicted.
            features: features of the frame.
            decoded: features of the decoder for every object.
            grid: cells of the first frame of every object.
            previous: features of the previous frame.
            grid_open: objects that read the grid; None for all.

        Returns:
            Logits in float32; values at padding are meaningless.
        """
        batch, num_objects, width = points.index.shape
        # Objects with more points come first, so that those that have points left are the first rows in every chunk.
        rows = points.valid.flatten(0, 1).sum(dim=1).sort(descending=True, stable=True).indices
        numbers = sorted(points.numbers, reverse=True)
        index = points.index.flatten(0, 1).index_select(0, rows)
        seen = point_memory(grid, previous, rows, self.similarity, self.scale, grid_open)
        frame_table, decoded_table = cells_table(features), cells_table(decoded)
        at_once = max(1, self.chunk_bytes // seen.bytes_of_a_point(self.window))
        out, start = torch.zeros(index.shape, device=index.device), 0
        while start < width:
            # If no object has a point, one row is used, so that every parameter gets a gradient.
            alive = max(1, sum(number > start for number in numbers))
            stop = min(width, start + max(1, at_once // alive))
            arguments = (index[:alive, start:stop], seen, frame_table, decoded_table)
            if self.recompute and torch.is_grad_enabled():
                refined = checkpoint(self._refine, *arguments, use_reentrant=False)
            else:
                refined = self._refine(*arguments)
            out[:alive, start:stop] = refined
            start = stop
        return torch.zeros_like(out).index_copy(0, rows, out).unflatten(0, (batch, num_objects))

    def _refine(
        self,
        index: Int64[Tensor, "R K"],
        seen: PointMemory,
        frame_table: Float[Tensor, "frame_cells C"],
        decoded_table: Float[Tensor, "object_cells C4"],
    ) -> Float[Tensor, "R K"]:
        rows, cells = seen.rows[: len(index)], seen.size[0] * seen.size[1]
        sample = rows.div(seen.num_objects, rounding_mode="floor")
        x = take_points(frame_table, index + sample[:, None] * cells)
        read = match_points(self.query_key(x), index, seen, self.window, self.similarity)
        joined = self.aggregation(torch.cat([self.fusion(read), self.query_value(x)], dim=2))
        return self.prediction(joined + take_points(decoded_table, index + rows[:, None] * cells)).squeeze(2).float()


def _stack(in_channels: int, widths: tuple[int, ...]) -> nn.Sequential:
    """Linear layers with ReLUs between them."""
    layers: list[nn.Module] = []
    for a, b in pairwise((in_channels, *widths)):
        layers += [nn.Linear(a, b), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


def _enlarge(x: Float[Tensor, "B C h w"], factor: int) -> Float[Tensor, "B C h2 w2"]:
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
