"""PMNet: fine matching at uncertain points and adaptive matching, on STCN."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.profiler import record_function

from vos_lightning.backbones.resnet import ResNetWeights
from vos_lightning.decoders.point_refinement import (
    DEFAULT_REFINEMENT,
    PointRefinement,
    PointRefiner,
    PointSampling,
    PointSource,
    UncertaintyDetector,
)
from vos_lightning.mask_ops import by_objects
from vos_lightning.matching.local_window import best_match
from vos_lightning.matching.points import PointGrid, PointMap, strided_grid, write_points
from vos_lightning.matching.similarity import Similarity
from vos_lightning.matching.trajectories import AdaptiveMatching, Trajectories, read_followed, step_spread
from vos_lightning.networks.stcn import STCN, Entry, Features
from vos_lightning.propagation.memory import Memory, map_objects
from vos_lightning.propagation.network import VOSNetwork
from vos_lightning.structures import FrameInput, per_object

DEFAULT_SAMPLING = PointSampling()
DEFAULT_ADAPTIVE = AdaptiveMatching()


@dataclass(frozen=True)
class Tracking:
    """Positions of the pixels of the remembered frames in the latest frame; the same for all objects."""

    frames: tuple[int, ...]
    """Indices of the remembered frames."""
    trajectories: Trajectories
    """Trajectories of the pixels of these frames, frame after frame."""
    key: Float[Tensor, "B CK h w"]
    """Key of the latest frame."""

    @cached_property
    def next(self) -> dict[tuple[int, ...], tuple[Tensor, Trajectories]]:
        """Key of the next frame and the trajectories in it, by remembered frames; reading and remembering a frame share them."""
        return {}


@dataclass(frozen=True)
class Fine:
    """What points read, at stride 4."""

    grid: PointGrid
    """Cells of the first frame of every object."""
    previous: PointMap
    fresh: Bool[Tensor, "B N"] = per_object()  # noqa: RUF009
    """Objects whose first frame is the previous one."""


@dataclass(frozen=True)
class Carry:
    """State that is folded over time; parts that are not used are None."""

    t: int
    """Index of the latest frame."""
    tracking: Tracking | None
    fine: Fine | None
    introduced: Bool[Tensor, "B N"] = per_object()  # noqa: RUF009


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Auxiliary outputs of some objects at a time, for all objects; those with fewer points are padded."""
    if len(parts) == 1:
        return parts[0]
    joined = {}
    for name in parts[0]:
        tensors = [part[name] for part in parts]
        widest = max(tensor.shape[-1] for tensor in tensors)
        joined[name] = torch.cat([F.pad(tensor, (0, widest - tensor.shape[-1])) for tensor in tensors], dim=1)
    return joined


class PMNet(VOSNetwork[Features, Entry, Carry]):
    """PMNet, a point-based memory network for video object segmentation (2022).

    The base is STCN: every pixel reads the values of the memory frames by the similarity of its key, and the readout is decoded
    to a mask of each object. In evaluation mode, each memory pixel is followed through the video and matched near its present
    place; the more certain its trajectory, the nearer (adaptive matching). A small network then marks the points where the mask
    may be wrong. Only at these points, features of stride 4 are matched to the first and the previous frame, and the mask is
    corrected.

    Deviations. The decoder's stride 16 has STCN's 512 channels, where the paper prints 256 (``decoder_channels``), and the value
    encoder sees the other objects too, where the paper prints four input channels (``others``), so that STCN's parameters fit.
    The first frame of an object that appears later is the frame in which it is given. The memory holds refined masks.

    Args:
        stcn: the space-time correspondence network.
        sampling: which points are refined.
        refinement: options of the refinement of points.
        adaptive: options of adaptive matching in evaluation mode; None reads the memory as STCN does.
        copier_start: initialise the point refinement to pass on the decoder's result, for training from scratch; ``stcn`` has its
            own ``copier_start``.

    Raises:
        ValueError: arguments contradict each other.
    """

    reads_previous = False
    training_arguments = VOSNetwork.training_arguments | {"refinement.chunk_bytes"}

    def __init__(
        self,
        stcn: STCN,
        *,
        sampling: PointSampling = DEFAULT_SAMPLING,
        refinement: PointRefinement = DEFAULT_REFINEMENT,
        adaptive: AdaptiveMatching | None = DEFAULT_ADAPTIVE,
        copier_start: bool = False,
    ) -> None:
        super().__init__()
        if adaptive is not None and adaptive.spread_form.startswith("inverse") and stcn.similarity != "l2":
            raise ValueError(f"adaptive.spread_form {adaptive.spread_form!r} is of distances; set stcn.similarity to 'l2'")
        self.padding = stcn.padding
        self.sampling, self.refinement, self.adaptive = sampling, refinement, adaptive
        self.point_source: PointSource = sampling.source
        self.stcn = stcn
        channels = stcn.decoder.channels
        self.detector = UncertaintyDetector(channels, min(64, channels[2]), refinement.detector)
        self.refiner = PointRefiner(
            stcn.key_encoder.channels[0],
            stcn.value_encoder.fine_channels,
            channels[2],
            stcn.key_channels,
            stcn.value_channels,
            refinement,
            similarity=stcn.similarity,
            scale=stcn.scale,
        )
        if copier_start:
            self.refiner.start_as_copier()

    @classmethod
    def published(
        cls,
        weights: ResNetWeights | None = "IMAGENET1K_V1",
        *,
        sampling: PointSampling = DEFAULT_SAMPLING,
        refinement: PointRefinement = DEFAULT_REFINEMENT,
        adaptive: AdaptiveMatching | None = DEFAULT_ADAPTIVE,
        copier_start: bool = False,
        **options: Any,
    ) -> PMNet:
        """The network on :meth:`STCN.published`.

        Args:
            weights: pretrained weights of both encoders; None for a random initialisation.
            sampling: which points are refined, see the constructor.
            refinement: options of the refinement of points, see the constructor.
            adaptive: options of adaptive matching, see the constructor.
            copier_start: use the copier start of STCN and of the point refinement.
            options: further arguments of :meth:`STCN.published`.
        """
        stcn = STCN.published(weights, copier_start=copier_start, **options)
        return cls(stcn, sampling=sampling, refinement=refinement, adaptive=adaptive, copier_start=copier_start)

    @classmethod
    def small(cls) -> PMNet:
        """A random network with about 110 thousand parameters."""
        return cls(STCN.small(), refinement=PointRefinement(window=5, aggregation=(16, 8), prediction=(8,)))

    def with_points_from(self, source: PointSource) -> PMNet:
        """The same network, parameters included, with points from another source; a schedule may choose one for each step."""
        other = copy.copy(self)
        other.point_source = source
        return other

    # The three methods ------------------------------------------------------------------------------------------------

    def encode(self, frame: FrameInput) -> Features:
        """Pyramid, key and query value of a frame."""
        return self.stcn.encode(frame)

    def segment(self, features: Features, memory: Memory[Entry, Carry]) -> tuple[Float[Tensor, "B N H W"], dict[str, Tensor]]:
        """Read the memory, decode, and refine uncertain points.

        Returns:
            Logits, and a dictionary for losses and pictures. At stride 4: ``coarse`` logits before and ``refined`` logits after
            the refinement; the learned ``uncertainty``; the ``score`` by which points were chosen; ``points``, which of them are
            ``points_valid``, and their ``point_logits``. At stride 16: ``positions`` and ``spreads`` of the memory pixels.
            Entries that were not computed are missing.
        """
        aux: dict[str, Tensor] = {}
        with record_function("vos/readout"):
            readout = self._read(features, memory, aux)
        decoder, fine = self.stcn.decoder, memory.carry.fine
        with record_function("vos/decoder"):
            refine = decoder.of_frame(features.pyramid, features.query_value)
        parts: list[dict[str, Tensor]] = []
        done = 0

        def decode(readout: Tensor, introduced: Tensor) -> Tensor:
            nonlocal done
            part: dict[str, Tensor] = {}
            parts.append(part)
            first, count = done, readout.shape[1]
            done += count
            with record_function("vos/decoder"):
                decoded = refine(readout)
                part["coarse"] = decoder.predict(decoded[2])
            if self.point_source == "none" or fine is None:
                return decoder.enlarge(part["coarse"])
            own = fine if count == fine.fresh.shape[1] else map_objects(fine, lambda tensor: tensor.narrow(1, first, count))
            with record_function("vos/points"):
                return self._refine(features, decoded, introduced, own, part)

        logits: Tensor = by_objects(decode, decoder.bytes_of_one(features.pyramid), readout, memory.carry.introduced)
        return logits, aux | _joined(parts)

    def memorize(
        self,
        features: Features,
        masks: Float[Tensor, "B N H W"],
        memory: Memory[Entry, Carry] | None,
        introduced: Bool[Tensor, "B N"],
        keep: bool,
    ) -> tuple[Entry | None, Carry]:
        """Encode the masks: to the value if the frame is remembered, else to the features at stride 4 that points read."""
        known = None if memory is None else memory.carry
        t = 0 if known is None else known.t + 1
        entry, fine, tracking = None, None, None
        if keep or self.point_source != "none":
            with record_function("vos/value_encoder"):
                if keep:
                    own, value = self.stcn.value_encoder.fine_and_value(features.image, masks, features.pyramid.s16)
                    entry = Entry(features.key, value)
                else:
                    own = self.stcn.value_encoder.fine(features.image, masks)
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
        if self.adaptive is None or tracking is None:
            return self.stcn.read(query, bank)
        now = self._follow(tracking, query, tuple(frame.t for frame in bank.frames))
        aux["positions"], aux["spreads"] = now.position, now.spread
        return read_followed(
            bank.entry.key,
            query,
            bank.entry.value,
            bank.readers,
            now,
            self.adaptive,
            similarity=self.stcn.similarity,
            scale=self.stcn.scale,
            top_k=None if self.training else self.stcn.top_k,
        ).unflatten(3, query.shape[-2:])

    def _track(self, key: Float[Tensor, "B CK h w"], memory: Memory[Entry, Carry] | None, new: int | None) -> Tracking:
        """Trajectories up to this frame, for the frames that are still in the bank, and for this one if it is remembered."""
        frames: tuple[int, ...] = () if memory is None else tuple(frame.t for frame in memory.bank.frames)
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
        """Trajectories of the pixels of some remembered frames, continued to the frame with this key; computed once a frame."""
        found = tracking.next.get(frames)
        if found is None or found[0] is not key:
            kept = tracking.trajectories
            if frames != tracking.frames:
                rows = [tracking.frames.index(t) for t in frames]
                position, widest = (
                    torch.stack([x.unflatten(1, (len(tracking.frames), -1))[:, row] for row in rows], dim=1).flatten(1)
                    for x in (kept.position, kept.spread)
                )
                kept = Trajectories(position, widest)
            found = tracking.next[frames] = key, kept.follow(*self._step(tracking.key, key))
        return found[1]

    def _step(
        self, before: Float[Tensor, "B CK h w"], now: Float[Tensor, "B CK h w"]
    ) -> tuple[Int64[Tensor, "B q"], Float[Tensor, "B q"]]:
        """The position of every pixel of a frame in the next one, and its spread (equation 9)."""
        options = self.adaptive
        assert options is not None
        measure: Similarity = "cosine" if options.spread_form == "cosine" else self.stcn.similarity
        match = best_match(before, now, options.window, measure, options.exclusion_radius)
        spread = step_spread(match, options.beta, options.spread_form, self.stcn.scale)
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
            return Fine(strided_grid(present, self.refinement.grid_stride), present, introduced)
        if introduced is known.introduced:  # a frame without annotations passes it on, which no device has to be asked for
            return Fine(known.fine.grid, present, torch.zeros_like(introduced))
        fresh, grid = introduced & ~known.introduced, known.fine.grid
        new, fill = strided_grid(present, self.refinement.grid_stride), fresh[:, :, None, None]
        return Fine(PointGrid(torch.where(fill, new.key, grid.key), torch.where(fill, new.value, grid.value)), present, fresh)

    def _refine(
        self,
        features: Features,
        decoded: tuple[Float[Tensor, "B N C16 h w"], Float[Tensor, "B N C8 h8 w8"], Float[Tensor, "B N C4 h4 w4"]],
        introduced: Bool[Tensor, "B N"],
        fine: Fine,
        aux: dict[str, Tensor],
    ) -> Float[Tensor, "B N H W"]:
        coarse, source = aux["coarse"], self.point_source
        # In training, the map is learned from the first step on, whatever the source of the points.
        if self.training or source == "learned":
            aux["uncertainty"] = self.detector(*decoded)
        score = aux["uncertainty"] if source == "learned" else self.sampling.score(coarse, introduced)
        points = self.sampling.choose(source, score, coarse, introduced, at_least=1 if self.training else 0)
        at_points = F.relu(decoded[2]) if self.refinement.relu_decoded else decoded[2]
        opened = None if self.refinement.grid_while_previous else ~fine.fresh
        logits = self.refiner(points, features.pyramid.s4, at_points, fine.grid, fine.previous, opened)
        refined = write_points(coarse, points, logits, "add" if self.refinement.write_back == "add" else "replace")
        aux |= {"score": score, "refined": refined, "points": points.index, "points_valid": points.valid, "point_logits": logits}
        if self.refinement.write_back != "replace_pixels":
            return self.stcn.decoder.enlarge(refined)
        chosen = torch.zeros_like(coarse, dtype=torch.bool).flatten(2).scatter(2, points.index, points.valid).view_as(coarse)
        pixels = [F.interpolate(x, scale_factor=4, mode="nearest") for x in (chosen.float(), refined)]
        return torch.where(pixels[0] > 0, pixels[1], self.stcn.decoder.enlarge(coarse))
