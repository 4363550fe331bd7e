"""Checks and conversions of whole videos that users pass to the engine."""

from __future__ import annotations

import dataclasses
import itertools
import operator
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from vos_lightning.io.videos import FrameSource, open_frames
from vos_lightning.mask_ops import object_ids_in
from vos_lightning.propagation.inputs import Masks, as_frame, as_label_map
from vos_lightning.structures import FOLDER_FPS, FrameProposals, Frames, VideoSample

Video: TypeAlias = str | os.PathLike[str] | VideoSample | Tensor | np.ndarray | Frames
"""A video: its file or folder, a sample of a data set, or its frames, each as :func:`as_frame` takes them."""

MasksByFrame: TypeAlias = Mapping[int, Masks] | Mapping[np.integer, Masks]
"""Annotations by the index of their frame, counted from 0."""


def as_video(
    video: Video,
    masks: MasksByFrame | None = None,
    *,
    gone: Mapping[int, Collection[int]] | None = None,
    proposals: FrameProposals | None = None,
) -> VideoSample:
    """A video with its masks, checked before any frame is segmented.

    Args:
        video: a video file or a folder of images; a :class:`VideoSample`; or frames as :func:`as_frame` takes them: a list, an
            array ``(T, H, W, 3)``, a tensor ``(T, 3, H, W)``, or anything else that yields them, such as a generator.
        masks: annotations by the index of their frame, each as :func:`as_label_map` takes them; None for those of a
            :class:`VideoSample`.
        gone: ids of objects that are gone from a frame on, until they are annotated again, by the index of that frame; None for
            those of a :class:`VideoSample`.
        proposals: proposals of the frames; None for those of a :class:`VideoSample`.

    Returns:
        The video. Frames are not copied.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: the video cannot be read or has no frame; a mask cannot be used, or belongs to no frame; no mask is given; an
            object is given and gone in one frame, or gone without being given before.
    """
    sample = video if isinstance(video, VideoSample) else _sample(video)
    changes: dict[str, Any] = {"proposals": sample.proposals if proposals is None else proposals}
    if masks is not None:
        changes["annotations"] = _annotations(masks, sample.original_size)
    if gone is not None:
        changes["gone"] = {operator.index(t): tuple(map(operator.index, ids)) for t, ids in gone.items()}
    sample = dataclasses.replace(sample, **changes)
    given = {t: object_ids_in(annotation) for t, annotation in sample.annotations.items()}
    if not any(given.values()):
        raise ValueError("no mask is given: pass the masks by the index of their frame, as masks={0: label_map}")
    wrong = [t for t in given if t < 0 or (sample.length is not None and t >= sample.length)]
    if wrong:
        raise ValueError(f"a mask is given for frame {wrong[0]}, and the frames are 0 to {(sample.length or 0) - 1}")
    for t, ids in sample.gone.items():
        for i in ids:
            if i in given.get(t, ()):
                raise ValueError(f"object {i} is given in frame {t}, and gone from that frame on: leave one of the two out")
            if not any(i in others for earlier, others in given.items() if earlier < t):
                raise ValueError(f"object {i} is gone from frame {t} on, and no mask of it is given in an earlier frame")
    return dataclasses.replace(sample, object_ids=tuple(sorted({i for ids in given.values() for i in ids})))


def _sample(video: Any) -> VideoSample:
    """A video without annotations."""
    name, names, fps = "video", None, FOLDER_FPS
    if isinstance(video, (str, os.PathLike)):
        video = open_frames(video)
    if isinstance(video, FrameSource):
        name, names, fps = video.name, video.names, video.fps
        size, frames = video.size(), video
    else:
        frames, size = _frames(video)
        if isinstance(frames, Sequence):
            names = tuple(f"{index:05d}" for index in range(len(frames)))
    return VideoSample(name, frames, {}, {}, (), size, names, fps=fps)


def _annotations(masks: Mapping[Any, Masks], size: tuple[int, int]) -> dict[int, Tensor]:
    annotations: dict[int, Tensor] = {}
    for key in masks:
        try:
            index = operator.index(key)
        except TypeError:
            raise ValueError(f"masks are given by the index of their frame, not by {key!r}: masks={{0: label_map}}") from None
        try:
            annotation = as_label_map(masks[key], size)
        except ValueError as error:
            raise ValueError(f"masks of frame {index}: {error}") from error
        if annotation is None:
            raise ValueError(
                f"masks of frame {index}: there is no object; leave the frame out, or pass gone={{{index}: ids}} to say that "
                "objects are gone from there on"
            )
        annotations[index] = annotation
    return annotations


def _frames(frames: Any) -> tuple[Any, tuple[int, int]]:
    """Frames that are converted when they are asked for, and the height and width of the first."""
    if not isinstance(frames, Frames):
        raise ValueError(f"a video is a file, a folder, or a sequence of frames, not {type(frames).__name__}")
    once: Iterator[Any] = iter(frames)  # type: ignore[assignment]
    first = next(once, None)
    if first is None:
        raise ValueError("the video has no frame")
    height, width = as_frame(first).shape[1:]
    if once is frames:  # a generator: what was taken is put back
        return map(as_frame, itertools.chain([first], once)), (int(height), int(width))
    indexed: Any = frames if hasattr(frames, "__len__") and hasattr(frames, "__getitem__") else None
    return _Iterated(frames) if indexed is None else _Indexed(indexed), (int(height), int(width))


class _Iterated:
    """Frames as tensors ``(3, H, W)``, converted when they are asked for."""

    def __init__(self, frames: Any) -> None:
        self._frames = frames

    def __iter__(self) -> Iterator[Tensor]:
        return map(as_frame, self._frames)


class _Indexed(Sequence[Tensor]):
    """The same for frames that can be indexed."""

    def __init__(self, frames: Any) -> None:
        self._frames = frames

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
        return as_frame(self._frames[index])
