"""Streaming inference: frames in, label maps with original ids and size out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

from vos_lightning.mask_ops import ids_to_slots, label_map_from_probabilities, masks_from_label_map, object_ids_in, slots_to_ids
from vos_lightning.propagation.memory import State, grow
from vos_lightning.propagation.network import VOSNetwork
from vos_lightning.propagation.step import Propagation, StepOutput, advance
from vos_lightning.structures import FrameInput, FramePrediction, Given, Proposals, VideoSample

MAX_OBJECTS = 254
"""Label maps are 8-bit: ids 1..254 (255 is ignore)."""


class InferenceEngine:
    """Segments a video frame by frame, for any network, with bounded memory where the policy bounds it.

    The network keeps no state, so that several engines may share one. Frames may have any size; objects may appear in any
    frame, be annotated several times and be removed.

    Args:
        network: any system, in ``eval`` mode.
        propagation: policy, aggregation and introduction.
        short_side: process frames resized to this short side (bicubic; given masks nearest); None keeps their size.
        enlarge: whether frames with a smaller short side are enlarged too.
        min_object_pixels: :meth:`run` keeps the original size for a whole video if a resized given mask of some object has
            fewer pixels than this (EMVOS's released code: 1000). 0 switches the rule off.
        precision: autocast type on the network's device (``torch.bfloat16``, ``torch.float16``); None for full precision.
    """

    def __init__(
        self,
        network: VOSNetwork[Any, Any, Any],
        propagation: Propagation,
        *,
        short_side: int | None = None,
        enlarge: bool = True,
        min_object_pixels: int = 0,
        precision: torch.dtype | None = None,
    ) -> None:
        self.network = network
        self.propagation = propagation
        self.short_side = short_side
        self.enlarge = enlarge
        self.min_object_pixels = min_object_pixels
        self.precision = precision
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next frame starts a new video."""
        self._state: State[Any, Any] | None = None
        self._slots: list[int | None] = []
        self._size: tuple[int, int] | None = None
        self._frame_index = -1
        self._keep_size = False

    @property
    def object_ids(self) -> tuple[int, ...]:
        """Original ids of the objects that are being tracked."""
        return tuple(i for i in self._slots if i is not None)

    @torch.inference_mode()
    def step(
        self,
        frame: Tensor,
        masks: Tensor | Mapping[int, Tensor] | None = None,
        *,
        proposals: Proposals | None = None,
    ) -> FramePrediction:
        """Process the next frame.

        Args:
            frame: RGB ``(3, H, W)``, uint8 or float in [0, 1], on any device.
            masks: annotations of this frame: a uint8 label map ``(H, W)`` in original ids (0 and 255 say nothing), or object id
                -> mask ``(H, W)``. Ids that are not yet known start to be tracked; known ones are corrected.
            proposals: one row, in pixels of the frame, for networks that need them (from the first annotation on); one without
                any box, or with scores of 0, says that a detector found nothing.

        Returns:
            Label map and probabilities at the size of the frame, on the host. Frames before the first annotation are empty.

        Raises:
            ValueError: a frame or mask of a wrong type or size, a mask without a pixel, too many objects, no proposals where the
                network needs them.
        """
        size = self._check_frame(frame)
        annotation = None if masks is None else _as_label_map(masks, size)
        if self._state is not None or annotation is not None:
            self.network.check_proposals(proposals, f"frame {self._frame_index + 1}")
        self._frame_index += 1
        if annotation is not None:
            annotation = self._add_objects(annotation)
        if self._state is None and annotation is None:
            return self._empty(size)
        image = frame.to(self.network.device)
        image = (image.float() / 255 if image.dtype == torch.uint8 else image.float()).unsqueeze(0)
        inner = self._inner_size(size)
        if inner != size:
            image = F.interpolate(image, size=inner, mode="bicubic", align_corners=False)
        if proposals is not None:
            proposals = _resize_proposals(proposals.to(image.device), size, inner)
        given = None if annotation is None else self._given(annotation, inner)
        with self._autocast():
            state = self._state if self._state is None else grow(self._state, len(self._slots))
            output, self._state = advance(self.network, self.propagation, state, FrameInput(image, proposals), given)
        return self._predict(output, size)

    def remove_object(self, object_id: int) -> None:
        """Stop tracking an object; its slot stays empty.

        Raises:
            ValueError: the id is not tracked.
        """
        if object_id not in self._slots:
            raise ValueError(f"object {object_id} is not tracked; tracked are {list(self.object_ids)}")
        slot = self._slots.index(object_id)
        self._slots[slot] = None
        assert self._state is not None
        introduced = self._state.introduced.clone()
        introduced[:, slot] = False
        self._state = State(self._state.memory, introduced, self._state.t)

    def run(self, video: VideoSample) -> Iterator[FramePrediction]:
        """Segment a whole video, frame by frame; frames are decoded as they are needed.

        Raises:
            ValueError: the network needs proposals and the video has none.
        """
        if video.proposals is None:
            self.network.check_proposals(None, f"video {video.name!r}")
        self.reset()
        self._keep_size = self._has_tiny_object(video)
        for index in range(len(video.frames)):
            proposals = None if video.proposals is None else video.proposals.get(index)
            yield self.step(video.frames[index], video.annotations.get(index), proposals=proposals)

    # Details ----------------------------------------------------------------------------------------------------------

    def _check_frame(self, frame: Tensor) -> tuple[int, int]:
        if frame.ndim != 3 or frame.shape[0] != 3:
            raise ValueError(f"a frame must have shape (3, H, W), not {tuple(frame.shape)}")
        size = (int(frame.shape[1]), int(frame.shape[2]))
        if self._size is None:
            self._size = size
        elif size != self._size:
            raise ValueError(
                f"frame {self._frame_index + 1} is {size[1]}x{size[0]}, the ones before are {self._size[1]}x{self._size[0]}: "
                "call reset() to start another video"
            )
        return size

    def _add_objects(self, annotation: UInt8[Tensor, "H W"]) -> UInt8[Tensor, "H W"] | None:
        ids = object_ids_in(annotation)
        new = [i for i in ids if i not in self._slots]
        if len(self._slots) + len(new) > MAX_OBJECTS:
            raise ValueError(f"more than {MAX_OBJECTS} objects")
        self._slots.extend(new)
        return annotation if ids else None

    def _given(self, annotation: UInt8[Tensor, "H W"], inner: tuple[int, int]) -> Given:
        slots = ids_to_slots(annotation, [0 if i is None else i for i in self._slots]).to(self.network.device)
        masks = masks_from_label_map(slots, len(self._slots)).unsqueeze(0)
        # An object that is annotated counts as given even if resizing leaves none of its pixels.
        which = masks.flatten(2).any(dim=2)
        if tuple(masks.shape[-2:]) != inner:
            masks = F.interpolate(masks, size=inner, mode="nearest")
        return Given(masks, which)

    def _inner_size(self, size: tuple[int, int]) -> tuple[int, int]:
        short = min(size)
        if self.short_side is None or self._keep_size or short == self.short_side:
            return size
        if short < self.short_side and not self.enlarge:
            return size
        height, width = (int(side * self.short_side / short) for side in size)
        return height, width

    def _has_tiny_object(self, video: VideoSample) -> bool:
        if self.min_object_pixels <= 0 or not video.annotations:
            return False
        size = next(iter(video.annotations.values())).shape
        inner = self._inner_size((int(size[0]), int(size[1])))
        if inner == tuple(size):
            return False
        for annotation in video.annotations.values():
            resized = F.interpolate(annotation[None, None].float(), size=inner, mode="nearest")[0, 0]
            if any(int((resized == i).sum()) < self.min_object_pixels for i in object_ids_in(annotation)):
                return True
        return False

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision is None:
            return contextlib.nullcontext()
        return torch.autocast(self.network.device.type, dtype=self.precision)

    def _empty(self, size: tuple[int, int]) -> FramePrediction:
        return FramePrediction(self._frame_index, torch.zeros(size, dtype=torch.uint8), torch.zeros(0, *size), (), size)

    def _predict(self, output: StepOutput, size: tuple[int, int]) -> FramePrediction:
        probabilities = output.probabilities
        processed = (int(probabilities.shape[-2]), int(probabilities.shape[-1]))
        if processed != size:
            probabilities = F.interpolate(probabilities, size=size, mode="bilinear", align_corners=False)
        slots = label_map_from_probabilities(probabilities)[0]
        label_map = slots_to_ids(slots, [0 if i is None else i for i in self._slots]).cpu()
        kept = [slot for slot, i in enumerate(self._slots) if i is not None]
        planes = probabilities[0, 1:][kept].cpu()
        return FramePrediction(self._frame_index, label_map, planes, self.object_ids, processed, output.aux)


def _as_label_map(masks: Tensor | Mapping[int, Tensor], size: tuple[int, int]) -> UInt8[Tensor, "H W"]:
    """Annotations as one label map; a mapping's later masks lie over earlier ones."""
    if isinstance(masks, Tensor):
        if masks.dtype != torch.uint8:
            raise ValueError(f"a label map must be uint8, not {masks.dtype}; pass a mapping id -> mask for anything else")
        if tuple(masks.shape) != size:
            raise ValueError(f"the label map is {tuple(masks.shape)}, the frame {size} (height, width)")
        return masks
    label_map = torch.zeros(size, dtype=torch.uint8)
    for object_id, mask in masks.items():
        if not 0 < object_id <= MAX_OBJECTS:
            raise ValueError(f"object id {object_id} is not in 1..{MAX_OBJECTS}")
        if tuple(mask.shape) != size:
            raise ValueError(f"the mask of object {object_id} is {tuple(mask.shape)}, the frame {size} (height, width)")
        if not bool((mask > 0.5).any()):
            raise ValueError(f"the mask of object {object_id} is empty: annotate it in a frame where it is visible")
        label_map[mask.cpu() > 0.5] = object_id
    return label_map


def _resize_proposals(proposals: Proposals, size: tuple[int, int], inner: tuple[int, int]) -> Proposals:
    """Proposals in pixels of a resized frame."""
    if inner == size:
        return proposals
    scale = proposals.boxes.new_tensor([inner[1] / size[1], inner[0] / size[0]] * 2)
    return Proposals(proposals.boxes * scale, proposals.masks, proposals.scores)
