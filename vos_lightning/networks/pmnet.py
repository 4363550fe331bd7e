"""PMNet: fine matching at uncertain points and adaptive matching, on STCN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.profiler import record_function

from vos_lightning.backbones.normalization import Norm, PyramidNorm
from vos_lightning.backbones.resnet import ResNetPyramid
from vos_lightning.decoders.points import DetectorForm, PointRefiner, PointSampling, PointSource, UncertaintyDetector
from vos_lightning.decoders.refine import RefineDecoder
from vos_lightning.encoders.masked import OtherObjects
from vos_lightning.encoders.projection import KeyValueProjection
from vos_lightning.encoders.value import ValueEncoder
from vos_lightning.mask_ops import PaddingRule
from vos_lightning.matching.local_window import best_match
from vos_lightning.matching.points import PointGrid, PointMap, strided_grid, write_points
from vos_lightning.matching.readout import read_memory
from vos_lightning.matching.similarity import Similarity
from vos_lightning.matching.trajectories import AdaptiveMatching, Trajectories, read_followed, step_spread
from vos_lightning.propagation.memory import Memory
from vos_lightning.propagation.network import VOSNetwork
from vos_lightning.structures import FeaturePyramid, FrameInput, per_object

Weights = Literal["IMAGENET1K_V1"]
WriteBack = Literal["replace", "add", "replace_pixels"]
DEFAULT_SAMPLING = PointSampling()
DEFAULT_ADAPTIVE = AdaptiveMatching()


@dataclass(frozen=True)
class Features:
    """A frame, without masks and objects."""

    image: Float[Tensor, "B 3 H W"]
    pyramid: FeaturePyramid
    key: Float[Tensor, "B CK h w"]
    query_value: Float[Tensor, "B CV h w"]


@dataclass(frozen=True)
class Entry:
    """A remembered frame; ``cells`` are ``h w``, or ``S`` where frames are stacked."""

    key: Float[Tensor, "B CK *cells"]
    value: Float[Tensor, "B N CV *cells"] = per_object()  # noqa: RUF009


@dataclass(frozen=True)
class Tracking:
    """Where the pixels of the remembered frames are in the latest frame; the same for all objects."""

    frames: tuple[int, ...]
    """Indices of the remembered frames."""
    trajectories: Trajectories
    """Of their pixels, frame by frame."""
    key: Float[Tensor, "B CK h w"]
    """Of the latest frame."""


@dataclass(frozen=True)
class Fine:
    """What points read, at stride 4."""

    grid: PointGrid
    """First frame of every object."""
    previous: PointMap
    fresh: Bool[Tensor, "B N"] = per_object()  # noqa: RUF009
    """Objects whose first frame is the previous one."""


@dataclass(frozen=True)
class Carry:
    """What is folded over time; parts that nobody reads are None."""

    t: int
    """Index of the latest frame."""
    tracking: Tracking | None
    fine: Fine | None
    introduced: Bool[Tensor, "B N"] = per_object()  # noqa: RUF009


class PMNet(VOSNetwork[Features, Entry, Carry]):
    """PMNet, a point-based memory network for video object segmentation (2022).

    STCN first: every pixel reads the values of the memory frames by the similarity of its key, and the readout is decoded to a
    mask of each object. While testing, each memory pixel is followed through the video and matched near where it is now,
    the nearer the surer its trajectory is (adaptive matching). Then a small network marks the points where the mask may be wrong;
    at these alone, features of stride 4 are matched to the first and the previous frame, and the mask is corrected.

    Deviations. The decoder's stride 16 has STCN's 512 channels, where the paper prints 256 (``decoder_channels``), and the value
    encoder sees the other objects too, where it prints four input channels (``others``): so STCN's parameters fit. The first
    frame of an object that appears later is the frame in which it is given. The memory holds refined masks.

    Args:
        sampling: which points are refined.
        detector: see :class:`vos_lightning.decoders.points.UncertaintyDetector`.
        adaptive: follow memory pixels while testing; None reads the memory as STCN does.
        top_k: memory pixels that a query pixel reads while testing; None for all.
        similarity: of keys, at stride 16 and at points.
        cosine_scale: factor of the similarity with ``cosine``; the paper gives none. The others have one over the root of the
            number of channels.
        grid_stride: of the points that are read of the first frame, in cells at stride 4.
        point_window: side of the window that is read of the previous frame, in cells at stride 4.
        grid_while_previous: whether the grid is read where first and previous frame are the same.
        share_point_key: one layer for the point keys of query and memory.
        point_aggregation, point_prediction: widths of the two stacks, see :class:`vos_lightning.decoders.points.PointRefiner`.
        point_chunk: points that are matched at a time.
        write_back: new logits replace the old ones at stride 4 (``replace``), are added to them (``add``), or replace the pixels
            of a point after enlarging (``replace_pixels``).
        rectify_decoded: rectify the decoder's features at points before the new ones are added.
        weights: of both backbones (ResNet-50 and ResNet-18 of torchvision); None for a random initialisation.
        others: second mask channel of the value encoder, see :class:`vos_lightning.encoders.masked.MaskedEncoder`; None for an
            object's own mask alone.
        norm: of the backbones. ``frozen_statistics``: scale and shift are trained.
        key_channels: of the keys, at stride 16 and at points.
        value_channels: of the values, likewise.
        decoder_channels: at strides 16, 8 and 4.
        blocks: of the first three stages of the key encoder; other than ResNet-50's only without ``weights``.
        value_blocks: of the value encoder's ResNet, likewise.
        width: of the stems of both, likewise.
        reduction: of the channel gate in the value encoder.
        normalize_features: instance-normalise the features of a frame at every scale, before anything reads them.
        copier_start: initialise so that keys follow colours and edges and the rest hands masks on: the untrained network moves
            masks along the affinities. See :meth:`ValueEncoder.start_as_copier`.

    The last two are not in the paper: they are for training without pretrained weights.

    Raises:
        ValueError: arguments that are unknown or contradict each other.
    """

    padding = PaddingRule(mode="mean", larger_half_first=False)
    reads_previous = False
    training_arguments = VOSNetwork.training_arguments | {"norm", "point_chunk"}

    def __init__(
        self,
        sampling: PointSampling = DEFAULT_SAMPLING,
        detector: DetectorForm = "top_down",
        adaptive: AdaptiveMatching | None = DEFAULT_ADAPTIVE,
        top_k: int | None = 20,
        similarity: Similarity = "l2",
        cosine_scale: float = 1.0,
        grid_stride: int = 2,
        point_window: int = 15,
        grid_while_previous: bool = True,
        share_point_key: bool = False,
        point_aggregation: tuple[int, ...] = (512, 256, 256),
        point_prediction: tuple[int, ...] = (256, 256),
        point_chunk: int = 512,
        write_back: WriteBack = "replace",
        rectify_decoded: bool = False,
        weights: Weights | None = "IMAGENET1K_V1",
        others: OtherObjects | None = "sum",
        norm: Norm = "frozen_statistics",
        key_channels: int = 64,
        value_channels: int = 512,
        decoder_channels: tuple[int, int, int] = (512, 256, 256),
        blocks: tuple[int, int, int] = (3, 4, 6),
        value_blocks: tuple[int, int, int] = (2, 2, 2),
        width: int = 64,
        reduction: int = 16,
        normalize_features: bool = False,
        copier_start: bool = False,
    ) -> None:
        super().__init__()
        for name, value, allowed in (
            ("similarity", similarity, get_args(Similarity)),
            ("write_back", write_back, get_args(WriteBack)),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, not {value!r}")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k must be at least 1 or None, not {top_k}")
        if grid_stride < 1:
            raise ValueError(f"grid_stride must be at least 1 cell, not {grid_stride}")
        if adaptive is not None and adaptive.spread_form.startswith("inverse") and similarity != "l2":
            raise ValueError(f"adaptive.spread_form {adaptive.spread_form!r} is of distances; set similarity to 'l2'")
        self.sampling, self.adaptive, self.top_k = sampling, adaptive, top_k
        self.training_source: PointSource | None = None
        """Where points come from in training mode; None for ``sampling.source``. Set by the training schedule."""
        self.similarity, self.scale = similarity, cosine_scale if similarity == "cosine" else key_channels**-0.5
        self.grid_stride, self.grid_while_previous = grid_stride, grid_while_previous
        self.write_back, self.rectify_decoded = write_back, rectify_decoded
        self.key_encoder = ResNetPyramid("bottleneck", (*blocks, 3), width, "layer3", weights, "stem", norm)
        s4, _, s16 = self.key_encoder.channels
        self.feature_norm = PyramidNorm(self.key_encoder.channels) if normalize_features else nn.Identity()
        self.projection = KeyValueProjection(s16, key_channels, value_channels, orthogonal_key=True)
        self.value_encoder = ValueEncoder(s16, value_channels, others, weights, norm, value_blocks, width, reduction=reduction)
        self.decoder = RefineDecoder(self.key_encoder.channels, value_channels, value_channels, decoder_channels)
        self.detector = UncertaintyDetector(decoder_channels, min(64, decoder_channels[2]), detector)
        self.refiner = PointRefiner(
            s4,
            self.value_encoder.fine_channels,
            decoder_channels[2],
            key_channels,
            value_channels,
            point_aggregation,
            point_prediction,
            share_point_key,
            point_window,
            similarity,
            self.scale,
            point_chunk,
        )
        if copier_start:
            self.key_encoder.damp_residuals()
            self.projection.start_as_matcher()
            self.value_encoder.start_as_copier()
            self.decoder.start_as_copier()
            self.refiner.start_as_copier()

    @classmethod
    def small(cls) -> PMNet:
        """A random network of some 110 thousand parameters."""
        return cls(
            point_window=5,
            point_aggregation=(16, 8),
            point_prediction=(8,),
            weights=None,
            key_channels=8,
            value_channels=8,
            decoder_channels=(8, 8, 8),
            blocks=(1, 1, 1),
            value_blocks=(1, 1, 1),
            width=8,
            reduction=2,
        )

    @property
    def point_source(self) -> PointSource:
        """Where points come from in the present mode."""
        return self.training_source if self.training and self.training_source is not None else self.sampling.source

    # The three methods ------------------------------------------------------------------------------------------------

    def encode(self, frame: FrameInput) -> Features:
        """Pyramid, key and query value of a frame."""
        with record_function("vos/key_encoder"):
            pyramid = self.feature_norm(self.key_encoder(frame.image))
            key, query_value = self.projection(pyramid.s16)
        return Features(frame.image, pyramid, key.float(), query_value)

    def segment(self, features: Features, memory: Memory[Entry, Carry]) -> tuple[Float[Tensor, "B N H W"], dict[str, Tensor]]:
        """Read the memory, decode, and refine uncertain points.

        Returns:
            Logits, and for losses and pictures, at stride 4: ``coarse`` logits before and ``refined`` ones after the refinement;
            the learned ``uncertainty``; the ``score`` by which points were chosen; ``points``, which of them are ``points_valid``
            and their ``point_logits``; and at stride 16 ``positions`` and ``spreads`` of the memory pixels. What was not computed
            is missing.
        """
        aux: dict[str, Tensor] = {}
        with record_function("vos/readout"):
            readout = self._read(features, memory, aux)
        with record_function("vos/decoder"):
            decoded = self.decoder.refine(features.pyramid, readout, features.query_value)
            aux["coarse"] = coarse = self.decoder.predict(decoded[2])
        if self.point_source == "none" or memory.carry.fine is None:
            return self.decoder.enlarge(coarse), aux
        with record_function("vos/points"):
            return self._refine(features, decoded, memory.carry.introduced, memory.carry.fine, aux), aux

    def memorize(
        self,
        features: Features,
        masks: Float[Tensor, "B N H W"],
        memory: Memory[Entry, Carry] | None,
        introduced: Bool[Tensor, "B N"],
        keep: bool,
    ) -> tuple[Entry | None, Carry]:
        """Encode the masks: to the value where the frame is remembered, else to the features at stride 4 that points read."""
        known = None if memory is None else memory.carry
        t = 0 if known is None else known.t + 1
        entry, fine, tracking = None, None, None
        if keep or self.point_source != "none":
            with record_function("vos/value_encoder"):
                own = self.value_encoder.fine(features.image, masks)
                if keep:
                    entry = Entry(features.key, self.value_encoder.value(own, features.pyramid.s16))
            if self.point_source != "none":
                with record_function("vos/points"):
                    fine = self._remember(features, own, introduced, known)
        if self.adaptive is not None and not self.training:
            with record_function("vos/tracking"):
                tracking = self._track(features.key, memory, t if keep else None)
        return entry, Carry(t, tracking, fine, introduced)

    # Adaptive matching at stride 16 -----------------------------------------------------------------------------------

    def _read(self, features: Features, memory: Memory[Entry, Carry], aux: dict[str, Tensor]) -> Float[Tensor, "B N CV h w"]:
        bank, query, tracking = memory.bank, features.key, memory.carry.tracking
        top_k = None if self.training else self.top_k
        arguments = (bank.entry.value, bank.readers)
        if self.adaptive is None or tracking is None:
            read = read_memory(
                bank.entry.key, query.flatten(2), *arguments, similarity=self.similarity, scale=self.scale, top_k=top_k
            )
        else:
            now = self._follow(tracking, query, tuple(slot.t for slot in bank.slots))
            aux["positions"], aux["spreads"] = now.position, now.spread
            read = read_followed(
                bank.entry.key,
                query,
                *arguments,
                now,
                self.adaptive,
                similarity=self.similarity,
                scale=self.scale,
                top_k=top_k,
            )
        return read.unflatten(3, query.shape[-2:])

    def _track(self, key: Float[Tensor, "B CK h w"], memory: Memory[Entry, Carry] | None, new: int | None) -> Tracking:
        """Trajectories up to this frame, of the frames that the bank still has and of this one if it is remembered."""
        frames: tuple[int, ...] = () if memory is None else tuple(slot.t for slot in memory.bank.slots)
        batch, cells = len(key), key.shape[-2] * key.shape[-1]
        parts: list[Trajectories] = []
        if memory is not None and memory.carry.tracking is not None:
            parts.append(self._follow(memory.carry.tracking, key, frames))
        if new is not None:
            frames = (*frames, new)
            own_place = torch.arange(cells, device=key.device).expand(batch, -1)
            parts.append(Trajectories(own_place, torch.zeros(batch, cells, device=key.device)))
        position = torch.cat([part.position for part in parts], dim=1)
        return Tracking(frames, Trajectories(position, torch.cat([part.spread for part in parts], dim=1)), key)

    def _follow(self, tracking: Tracking, key: Float[Tensor, "B CK h w"], frames: tuple[int, ...]) -> Trajectories:
        """Trajectories of the pixels of some remembered frames, gone on to a frame with this key."""
        assert self.adaptive is not None
        step, spread = self._step(tracking.key, key)
        kept = tracking.trajectories
        if frames != tracking.frames:
            rows = torch.tensor([tracking.frames.index(t) for t in frames], device=key.device)
            position, widest = (
                x.unflatten(1, (len(tracking.frames), -1))[:, rows].flatten(1) for x in (kept.position, kept.spread)
            )
            kept = Trajectories(position, widest)
        return kept.follow(step, spread)

    def _step(
        self, before: Float[Tensor, "B CK h w"], now: Float[Tensor, "B CK h w"]
    ) -> tuple[Int64[Tensor, "B q"], Float[Tensor, "B q"]]:
        """Where every pixel of a frame is in the next one, and its spread."""
        options = self.adaptive
        assert options is not None
        measure: Similarity = "cosine" if options.spread_form == "cosine" else self.similarity
        match = best_match(before, now, options.window, measure, options.exclusion_radius)
        spread = step_spread(match, options.beta, options.spread_form, self.scale)
        return match.index.flatten(1), spread.flatten(1)

    # Points at stride 4 -----------------------------------------------------------------------------------------------

    def _remember(
        self,
        features: Features,
        own: Float[Tensor, "B N C4 h4 w4"],
        introduced: Bool[Tensor, "B N"],
        known: Carry | None,
    ) -> Fine:
        present = self.refiner.remember(features.pyramid.s4, own)
        if known is None or known.fine is None:
            return Fine(strided_grid(present, self.grid_stride), present, introduced)
        fresh, grid = introduced & ~known.introduced, known.fine.grid
        if bool(fresh.any()):
            new, fill = strided_grid(present, self.grid_stride), fresh[:, :, None, None]
            grid = PointGrid(torch.where(fill, new.key, grid.key), torch.where(fill, new.value, grid.value))
        return Fine(grid, present, fresh)

    def _refine(
        self,
        features: Features,
        decoded: tuple[Float[Tensor, "B N C16 h w"], Float[Tensor, "B N C8 h8 w8"], Float[Tensor, "B N C4 h4 w4"]],
        introduced: Bool[Tensor, "B N"],
        fine: Fine,
        aux: dict[str, Tensor],
    ) -> Float[Tensor, "B N H W"]:
        coarse, source = aux["coarse"], self.point_source
        # In training the map is learned from the first step on, wherever points come from.
        if self.training or source == "learned":
            aux["uncertainty"] = self.detector(*decoded)
        score = aux["uncertainty"] if source == "learned" else self.sampling.score(coarse, introduced)
        points = self.sampling.choose(source, score, coarse, introduced, at_least=1 if self.training else 0)
        at_points = F.relu(decoded[2]) if self.rectify_decoded else decoded[2]
        opened = None if self.grid_while_previous else ~fine.fresh
        logits = self.refiner(points, features.pyramid.s4, at_points, fine.grid, fine.previous, opened)
        refined = write_points(coarse, points, logits, "add" if self.write_back == "add" else "replace")
        aux |= {"score": score, "refined": refined, "points": points.index, "points_valid": points.valid, "point_logits": logits}
        if self.write_back != "replace_pixels":
            return self.decoder.enlarge(refined)
        chosen = torch.zeros_like(coarse, dtype=torch.bool).flatten(2).scatter(2, points.index, points.valid).view_as(coarse)
        pixels = [F.interpolate(x, scale_factor=4, mode="nearest") for x in (chosen.float(), refined)]
        return torch.where(pixels[0] > 0, pixels[1], self.decoder.enlarge(coarse))
