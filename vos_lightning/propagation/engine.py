"""Streaming inference: takes frames, and returns label maps with original ids and sizes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

from vos_lightning.mask_ops import ids_to_slots, label_map_from_probabilities, masks_from_label_map, object_ids_in, slots_to_ids
from vos_lightning.propagation.cuts import AtCut
from vos_lightning.propagation.directions import Direction, run_in_direction
from vos_lightning.propagation.frame_step import FrameStep, resize_masks, resize_proposals, without_object
from vos_lightning.propagation.inputs import MAX_OBJECTS, Array, Masks, as_frame, as_label_map
from vos_lightning.propagation.memory import State, bytes_of_latest, drop_unread, grow
from vos_lightning.propagation.network import VOSNetwork
from vos_lightning.propagation.snapshots import Snapshot
from vos_lightning.propagation.step import Propagation, StepOutput, advance, show_given
from vos_lightning.propagation.streaming import OUT_OF_MEMORY, StreamingEngine
from vos_lightning.propagation.videos import MasksByFrame, Video, as_video
from vos_lightning.structures import FrameInput, FramePrediction, FrameProposals, Given, Proposals, VideoSample, map_tensors


class InferenceEngine(StreamingEngine):
    """Segments a video frame by frame, for any network. Memory is bounded if the memory policy bounds it.

    The network keeps no state, so several engines may share it. Frames may have any size. Objects may appear in any frame, be
    annotated several times and be removed.

    Args:
        network: any system in ``eval`` mode.
        propagation: policy, aggregation and introduction.
        short_side: process frames resized to this short side in pixels (bicubic; given masks nearest); None keeps their size.
            Predictions are returned at the size of the frames, and given masks exactly as they were given. A given mask that
            would lose all its pixels in resizing marks every resized pixel that it touches instead, so that no object vanishes.
        enlarge: enlarge frames with a smaller short side too.
        min_object_pixels: :meth:`run` keeps the original size for a whole video if a resized given mask of some object has
            fewer pixels than this (EMVOS's released code: 1000). 0 switches the rule off.
        precision: autocast type on the network's device (``torch.bfloat16``, ``torch.float16``); None for full precision.

    Raises:
        ValueError: ``short_side`` is below 1.
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
        self.precision = precision
        super().__init__(short_side, enlarge, min_object_pixels)

    def another(self) -> InferenceEngine:
        """An engine on the same network, with the same options and a state of its own; it may run in another thread."""
        return InferenceEngine(
            self.network,
            self.propagation,
            short_side=self.short_side,
            enlarge=self.enlarge,
            min_object_pixels=self.min_object_pixels,
            precision=self.precision,
        )

    def reset(self) -> None:
        """Forget everything; the next frame starts a new video."""
        super().reset()
        self._state: State[Any, Any] | None = None
        self._latest: FrameStep | None = None

    @torch.inference_mode()
    def step(
        self,
        frame: Array,
        masks: Masks | None = None,
        *,
        proposals: Proposals | None = None,
    ) -> FramePrediction:
        """Process the next frame. If this raises, the engine is unchanged, and another frame may follow.

        Args:
            frame: RGB, a tensor ``(3, H, W)`` or a NumPy array ``(H, W, 3)``, uint8 or float in [0, 1], on any device; see
                :func:`vos_lightning.propagation.inputs.as_frame`.
            masks: annotations of this frame, as tensors or NumPy arrays. Either a label map ``(H, W)`` in original ids 1..254,
                where 0 is not annotated and a map that holds only 0 and 255 is a black-and-white mask of object 1. Or a mapping
                from object ids to masks ``(H, W)``, where later masks cover earlier ones. New ids start to be tracked; known ones
                are corrected. See :func:`vos_lightning.propagation.inputs.as_label_map`.
            proposals: proposals of this frame, one row, in pixels of the frame; needed from the first annotation on by networks
                that match proposals. A row without boxes, or with scores of 0, means that the detector found nothing.

        Returns:
            Label map and probabilities at the size of the frame, on the host. Given masks are in the label map exactly, and given
            objects are absent outside them. Frames before the first annotation are empty.

        Raises:
            ValueError: a frame or mask has a wrong type, size or range; a mask is empty; there are too many objects; proposals
                are missing although the network needs them; or a frame does not fit into memory.
        """
        frame = as_frame(frame).clone()  # callers may write the next frame into the same array
        size = self._check_size(frame)
        annotation = None if masks is None else as_label_map(masks, size)
        return self._take(FrameStep(self._frame_index + 1, frame, annotation, proposals, self._state, self._ids))

    @torch.inference_mode()
    def add_object(self, mask: Array, object_id: int | None = None) -> FramePrediction:
        """Begin to track an object that is seen in the frame of the last :meth:`step`.

        The frame is processed again, as if the mask had been given to :meth:`step` with whatever else was given there.

        Args:
            mask: mask ``(H, W)`` of the object in that frame, see :func:`vos_lightning.propagation.inputs.as_label_map`.
            object_id: id of the new object, 1..254; None for the lowest free one. It is the last of the prediction's
                ``object_ids``.

        Returns:
            The prediction of that frame with the new object.

        Raises:
            ValueError: there was no :meth:`step`, the id is tracked already, or what :meth:`step` says of masks.
        """
        if object_id is None:
            object_id = next((i for i in range(1, MAX_OBJECTS + 1) if i not in self._ids), MAX_OBJECTS)
        if object_id in self._ids:
            raise ValueError(f"object {object_id} is tracked already: correct() changes its mask")
        return self._annotate(object_id, mask)

    @torch.inference_mode()
    def correct(self, object_id: int, mask: Array) -> FramePrediction:
        """Mend the mask of a tracked object in the frame of the last :meth:`step`; later frames follow the mended mask.

        The frame is processed again, as if the mask had been given to :meth:`step` with whatever else was given there. Where an
        object cannot be seen any more, :meth:`remove_object` ends it.

        Args:
            object_id: id of the object.
            mask: mask ``(H, W)`` of the object in that frame, see :func:`vos_lightning.propagation.inputs.as_label_map`.

        Returns:
            The mended prediction of that frame.

        Raises:
            ValueError: there was no :meth:`step`, the object is not tracked, or what :meth:`step` says of masks.
        """
        if object_id not in self._ids:
            raise ValueError(f"object {object_id} is not tracked; tracked are {list(self._ids)}: add_object() begins another")
        return self._annotate(object_id, mask)

    def remove_object(self, object_id: int) -> None:
        """Stop tracking an object, and forget everything that was remembered of it; its id may be used again.

        Raises:
            ValueError: no object with this id is tracked.
        """
        self._check_tracked(object_id)
        self._state, self._ids = without_object(self._state, self._ids, object_id)
        if self._latest is not None:
            self._latest = self._latest.without(object_id)

    def segment(
        self,
        video: Video,
        masks: MasksByFrame | None = None,
        *,
        direction: Direction = "forward",
        at_cut: AtCut = "follow",
        gone: Mapping[int, Collection[int]] | None = None,
        proposals: FrameProposals | None = None,
    ) -> Iterator[FramePrediction]:
        """Segment every frame of a video once, with masks in any of its frames; ``frame_index`` says which frame it is.

        Everything that can be checked without decoding the video is checked before this returns.

        Args:
            video: a file, a folder of images, a :class:`VideoSample`, or frames in memory, see
                :func:`vos_lightning.propagation.videos.as_video`.
            masks: annotations by the index of their frame, each as :meth:`step` takes them; None for those of a
                :class:`VideoSample`.
            direction: from where each frame gets its objects: the annotations before it (``forward``), those after it
                (``backward``), or those on both sides (``both``). The last two return frames in another order than that of
                time, see :func:`vos_lightning.propagation.directions.run_in_direction`.
            at_cut: what happens where another scene begins, see :meth:`run`; with ``both``, annotations reach as far as their
                scene.
            gone: ids of objects that are gone from a frame on, until they are annotated again, by the index of that frame.
            proposals: proposals of the frames, for networks that match them.

        Returns:
            An iterator over the predictions. With ``forward``, objects may be added, corrected and removed between two frames.

        Raises:
            FileNotFoundError: there is no such file or folder.
            ValueError: the video, a mask or the direction cannot be used; what is found later is raised by the iterator.
        """
        sample = as_video(video, masks, gone=gone, proposals=proposals)
        run = functools.partial(self.run, at_cut=at_cut)
        return run_in_direction(run, sample, direction, self.propagation.aggregation)

    def snapshot(self) -> Snapshot:
        """What is known after the last frame, for :meth:`run` to go on from; it is a value, and later frames do not change it."""
        return Snapshot(self._state, self._ids, self._size, self._frame_index, self._keep_size)

    def bytes_remembered(self) -> int:
        """Bytes of the latest frame in the memory; 0 without one."""
        return 0 if self._state is None else bytes_of_latest(self._state.memory.bank)

    # Details ----------------------------------------------------------------------------------------------------------

    def _check_video(self, video: VideoSample) -> None:
        if video.proposals is None:
            self.network.check_proposals(None, f"video {video.name!r}")

    def _restore(self, snapshot: Snapshot) -> None:
        device = self.network.device
        super()._restore(snapshot)
        self._state, self._latest = map_tensors(lambda tensor: tensor.to(device), snapshot.state), None

    def _annotate(self, object_id: int, mask: Array) -> FramePrediction:
        last = self._latest
        if last is None:
            raise ValueError("there is no frame yet: call step() with the frame in which the object is seen")
        known = {} if last.annotation is None else {i: last.annotation == i for i in object_ids_in(last.annotation)}
        known.pop(object_id, None)
        return self._take(dataclasses.replace(last, annotation=as_label_map({**known, object_id: mask}, last.size)))

    def _take(self, step: FrameStep) -> FramePrediction:
        """Process a frame, and keep what follows from it; on an error, nothing changes."""
        if step.state is not None or step.annotation is not None:
            self.network.check_proposals(step.proposals, f"frame {step.index}")
        ids = step.ids if step.annotation is None else self._with_new(step.ids, step.annotation)
        out_of_memory = False
        try:
            prediction, state = self._segment(step, ids)
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and not OUT_OF_MEMORY.search(str(error)):
                raise
            out_of_memory = True
        if out_of_memory:  # outside the handler, whose exception would keep the memory alive
            raise ValueError(self._too_large(step.index, step.size, len(ids)))
        self._latest = step.slim(state)
        self._state, self._ids, self._size, self._frame_index = state, ids, step.size, step.index
        return prediction

    def _segment(self, step: FrameStep, ids: tuple[int, ...]) -> tuple[FramePrediction, State[Any, Any] | None]:
        """The result of :meth:`step`, and the state after the frame."""
        frame, annotation, proposals, size = step.frame, step.annotation, step.proposals, step.size
        if step.state is None and annotation is None:
            empty = torch.zeros(size, dtype=torch.uint8)
            return FramePrediction(step.index, frame, empty, torch.zeros(0, *size), (), processed_size=size), None
        image = frame.to(self.network.device)
        image = (image.float() / 255 if image.dtype == torch.uint8 else image.float()).unsqueeze(0)
        inner = self.inner_size(size)
        if inner != size:
            image = F.interpolate(image, size=inner, mode="bicubic", align_corners=False)
        if proposals is not None:
            proposals = resize_proposals(proposals.to(image.device), size, inner)
        given = None if annotation is None else self._given(annotation, ids)
        resized = given if given is None or inner == size else Given(resize_masks(given.masks, inner), given.which)
        with self._autocast():
            before = None if step.state is None else grow(step.state, len(ids))
            output, state = advance(self.network, self.propagation, before, FrameInput(image, proposals), resized)
        if given is not None:
            state = drop_unread(state)
        return self._predict(output, step, ids, given), state

    def _given(self, annotation: UInt8[Tensor, "H W"], ids: tuple[int, ...]) -> Given:
        slots = ids_to_slots(annotation, ids).to(self.network.device)
        masks = masks_from_label_map(slots, len(ids)).unsqueeze(0)
        return Given(masks, masks.flatten(2).any(dim=2))

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision is None:
            return contextlib.nullcontext()
        return torch.autocast(self.network.device.type, dtype=self.precision)

    @staticmethod
    def _predict(output: StepOutput, step: FrameStep, ids: tuple[int, ...], given: Given | None) -> FramePrediction:
        size = step.size
        probabilities = output.probabilities
        processed = (int(probabilities.shape[-2]), int(probabilities.shape[-1]))
        if processed != size:
            probabilities = F.interpolate(probabilities, size=size, mode="bilinear", align_corners=False)
            if given is not None:
                probabilities = show_given(probabilities, given)
        label_map = slots_to_ids(label_map_from_probabilities(probabilities)[0], ids).cpu()
        given_ids = () if step.annotation is None else object_ids_in(step.annotation)
        planes = probabilities[0, 1:].cpu()
        return FramePrediction(step.index, step.frame, label_map, planes, ids, given_ids, processed, output.aux)
