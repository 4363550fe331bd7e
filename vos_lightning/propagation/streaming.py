"""What an engine does with the frames of a video, whatever computes them: ids, sizes, and which frame gets what. No PyTorch."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from vos_lightning.arrays import to_array
from vos_lightning.labels import MAX_OBJECTS, object_ids_in
from vos_lightning.propagation.cuts import AtCut, SceneCuts
from vos_lightning.propagation.snapshots import Snapshot, Stored
from vos_lightning.structures import FramePrediction, VideoSample

OUT_OF_MEMORY = re.compile(
    r"out of memory|(can't|cannot|failed to) allocate|not enough memory|bad_?alloc|alloc_failed", re.IGNORECASE
)
"""Out-of-memory messages of allocators that raise a plain RuntimeError (CPUs, oneDNN, cuBLAS, cuDNN, MPS, ONNX Runtime)."""


class StreamingEngine(ABC):
    """Segments a video frame by frame.

    Args:
        short_side: process frames resized to this short side in pixels; None keeps their size.
        enlarge: enlarge frames with a smaller short side too.
        min_object_pixels: :meth:`run` keeps the original size for a whole video if a resized given mask of some object has
            fewer pixels than this. 0 switches the rule off.

    Raises:
        ValueError: ``short_side`` is below 1.
    """

    def __init__(self, short_side: int | None, enlarge: bool, min_object_pixels: int) -> None:
        if short_side is not None and short_side < 1:
            raise ValueError(
                f"the short side must be at least 1 pixel, not {short_side}; leave it out to keep the size of the frames"
            )
        self.short_side = short_side
        self.enlarge = enlarge
        self.min_object_pixels = min_object_pixels
        self.reset()

    def reset(self) -> None:
        """Forget everything; the next frame starts a new video."""
        self._ids: tuple[int, ...] = ()
        self._size: tuple[int, int] | None = None
        self._frame_index = -1
        self._keep_size = False

    @property
    def object_ids(self) -> tuple[int, ...]:
        """Original ids of the objects that are being tracked."""
        return self._ids

    @abstractmethod
    def step(self, frame: Any, masks: Any = None, *, proposals: Any = None) -> FramePrediction:
        """Process the next frame. If this raises, the engine is unchanged, and another frame may follow."""

    @abstractmethod
    def remove_object(self, object_id: int) -> None:
        """Stop tracking an object, and forget everything that was remembered of it; its id may be used again."""

    def run(self, video: VideoSample, stored: Stored | None = None, *, at_cut: AtCut = "follow") -> Iterator[FramePrediction]:
        """Segment a whole video frame by frame; a frame is decoded once, when it is its turn, and comes with its prediction.

        Proposals are asked for from the first annotated frame on. Objects that are gone from a frame on (``video.gone``) are
        removed before that frame.

        Args:
            video: the video with its annotations.
            stored: what an earlier run of the same video knew after one of its frames, and its predictions up to that frame,
                which are returned instead of being computed again.
            at_cut: what happens at a frame that shows another scene than the frame before
                (:func:`vos_lightning.propagation.cuts.is_cut`). ``follow``: nothing, and nobody looks for such frames, as in the
                papers. ``ask``: the objects are let go, because what looks like them in the other scene is usually something
                else. The prediction says ``scene_cut``, and has only objects that are annotated in that frame; the others have to
                be annotated again to be followed further. Nobody looks while no object is followed.

        Raises:
            ValueError: the network needs proposals and the video has none; or the video ends before a frame that is annotated.
        """
        self._check_video(video)
        self.reset()
        self._keep_size = self.keeps_size(video)
        done = -1 if stored is None else stored.snapshot.frame_index
        cuts = SceneCuts() if at_cut == "ask" else None
        index = -1
        for index, frame in enumerate(video.frames):
            if stored is not None and index <= done:
                if cuts is not None and index == done:
                    cuts.is_next(frame)
                yield stored.prediction(index, frame)
                continue
            if stored is not None and index == done + 1:
                self._restore(stored.snapshot)
            annotation = video.annotations.get(index)
            self._let_go(video.gone.get(index, ()))
            looks = bool(self._ids) or annotation is not None
            let_go = self._ids if cuts is not None and looks and cuts.is_next(frame) else ()
            self._let_go(let_go)
            starts = annotation is not None or bool(self._ids)
            proposals = video.proposals.of_frame(index, frame) if video.proposals is not None and starts else None
            prediction = self.step(frame, annotation, proposals=proposals)
            if let_go:
                missing = tuple(i for i in let_go if i not in prediction.object_ids)
                prediction = replace(prediction, scene_cut=True, let_go=missing)
            yield prediction
        late = [t for t in video.annotations if t > index]
        if late:
            raise ValueError(
                f"{video.name}: the video ended after {index + 1} frames, before frame {min(late)} (counted from 0), "
                "for which a mask is given"
            )

    def _let_go(self, object_ids: Iterable[int]) -> None:
        for object_id in object_ids:
            if object_id in self._ids:
                self.remove_object(object_id)

    # For engines ------------------------------------------------------------------------------------------------------

    def _check_video(self, video: VideoSample) -> None:  # noqa: B027
        """Refuse a video that cannot be segmented, before its first frame is decoded."""

    def _restore(self, snapshot: Snapshot) -> None:
        self._ids, self._size, self._keep_size = snapshot.ids, snapshot.size, snapshot.keep_size
        self._frame_index = snapshot.frame_index

    def _check_size(self, frame: Any) -> tuple[int, int]:
        size = (int(frame.shape[1]), int(frame.shape[2]))
        if self._size is not None and size != self._size:
            raise ValueError(
                f"frame {self._frame_index + 1} is {size[1]}x{size[0]}, the ones before are {self._size[1]}x{self._size[0]}: "
                "call reset() to start another video"
            )
        return size

    def _check_tracked(self, object_id: int) -> None:
        if object_id not in self._ids:
            raise ValueError(f"object {object_id} is not tracked; tracked are {list(self._ids)}")

    @staticmethod
    def _with_new(known: tuple[int, ...], annotation: Any) -> tuple[int, ...]:
        ids = (*known, *(i for i in object_ids_in(annotation) if i not in known))
        if len(ids) > MAX_OBJECTS:
            raise ValueError(f"more than {MAX_OBJECTS} objects")
        return ids

    def inner_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width at which frames of a size are processed."""
        short = min(size)
        if self.short_side is None or self._keep_size or short == self.short_side:
            return size
        if short < self.short_side and not self.enlarge:
            return size
        height, width = (int(side * self.short_side / short) for side in size)
        return height, width

    def keeps_size(self, video: VideoSample) -> bool:
        """Whether :meth:`run` would process a video at its own size because of ``min_object_pixels``."""
        if self.min_object_pixels <= 0 or not video.annotations:
            return False
        size = next(iter(video.annotations.values())).shape
        inner = self.inner_size((int(size[0]), int(size[1])))
        if inner == tuple(size):
            return False
        for annotation in map(to_array, video.annotations.values()):
            resized = annotation[nearest(size[0], inner[0])][:, nearest(size[1], inner[1])]
            if any(int((resized == i).sum()) < self.min_object_pixels for i in object_ids_in(annotation)):
                return True
        return False

    def _too_large(self, index: int, size: tuple[int, int], num_objects: int) -> str:
        height, width = self.inner_size(size)
        inner = "" if (height, width) == size else f", processed at {width}x{height},"
        smaller = 480 if min(height, width) > 480 else max(min(height, width) // 2, 1)
        return (
            f"frame {index} of {size[1]}x{size[0]} pixels{inner} with {num_objects} object(s) does not fit into "
            f"memory: process it at a smaller size with short_side={smaller} (--short-side {smaller}), or remember fewer frames"
        )


def nearest(length: int, wanted: int) -> np.ndarray:
    """The pixels that a row of another length shows if it is resized to the nearest pixel, as PyTorch rounds."""
    scale = np.float32(length) / np.float32(wanted)
    return np.minimum((np.arange(wanted, dtype=np.float32) * scale).astype(np.int64), length - 1)
