"""Whole videos on disk, for validation, test and prediction: what is given to the network, and what is scored."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from data_modules.records import check_size, find_record, folders_in, read_labels, without_ignored
from vos_lightning.io.images import read_image
from vos_lightning.mask_ops import object_ids_in
from vos_lightning.structures import LazySequence, VideoRecord, VideoSample


class _LazyFiles:
    """Files of a video, decoded when they are accessed.

    Args:
        record: record of the video.
        size: height and width that every file must have.
        size_path: path of the file that has this size, for the message.
    """

    def __init__(self, record: VideoRecord, size: tuple[int, int], size_path: str) -> None:
        self.record = record
        self.size = size
        self.size_path = size_path


class LazyFrames(_LazyFiles, Sequence[Tensor]):
    """Frames of a video, decoded when they are accessed."""

    def __len__(self) -> int:
        return len(self.record.frame_paths)

    def __getitem__(self, index: int) -> UInt8[Tensor, "3 H W"]:  # type: ignore[override]
        path = self.record.frame_paths[index]
        frame = read_image(path)
        check_size(path, frame.shape[1:], self.size_path, self.size)
        return frame


class LazyTargets(_LazyFiles, Mapping[int, Tensor]):
    """Label maps for the metrics, decoded when they are accessed; void (255) is background."""

    def __len__(self) -> int:
        return len(self.record.label_paths)

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self.record.label_paths))

    def __getitem__(self, index: int) -> UInt8[Tensor, "H W"]:
        label_map = without_ignored(read_labels(self.record, index))
        check_size(self.record.label_paths[index], label_map.shape, self.size_path, self.size)
        return label_map


class LazyVideos(LazySequence[VideoSample]):
    """Videos that are made when they are accessed."""

    def __iter__(self) -> Iterator[VideoSample]:
        return (self[index] for index in range(len(self)))


class RecordVideos(LazyVideos):
    """Whole videos, opened when they are accessed.

    Args:
        records: records of the videos.
        with_targets: whether their label maps are ground truth for metrics.
    """

    def __init__(self, records: Sequence[VideoRecord], with_targets: bool) -> None:
        self.records = records
        self.with_targets = with_targets

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> VideoSample:
        return open_video(self.records[index], self.with_targets)


def folder_videos(root: str | os.PathLike[str]) -> RecordVideos:
    """Videos to predict: ``JPEGImages/<video>`` has the frames, ``Annotations/<video>`` the given masks.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: there is no video.
    """
    images = Path(root) / "JPEGImages"
    if not images.is_dir():
        raise FileNotFoundError(f"{root} has no folder JPEGImages: pass --data.init_args.loading.predict_root")
    annotations = Path(root) / "Annotations"
    records = [find_record(n, images, annotations, root, exhaustive=False) for n in folders_in(images)]
    return RecordVideos(records, with_targets=False)


def _has_truth(record: VideoRecord, num_given: int) -> bool:
    """Whether there is truth to score: more label maps than the given ones (unlike DAVIS test-dev), for all required frames."""
    required = record.required_frames or ()
    return len(record.label_paths) > num_given and all(i in record.label_paths for i in required)


def open_video(record: VideoRecord, with_targets: bool) -> VideoSample:
    """Whole video of a record.

    The network is given: every object of ``record.first_frame``, if that is known, in the first label map from there on that
    shows it; otherwise all label maps, if they are not exhaustive; otherwise the label map of the first frame.

    Raises:
        FileNotFoundError: the first frame has no label map.
        ValueError: a given mask is empty or differs in size from the frames.
    """
    if record.first_frame is not None:
        annotations = _introductions(record, record.first_frame)
    else:
        if record.exhaustive and 0 not in record.label_paths:
            raise FileNotFoundError(f"{record.name}: the first frame {record.frame_paths[0]} has no label map")
        indices = [0] if record.exhaustive else sorted(record.label_paths)
        annotations = {i: without_ignored(read_labels(record, i)) for i in indices}
    first = next(iter(annotations), min(record.label_paths))
    first_path, first_map = record.label_paths[first], annotations.get(first)
    if first_map is None or not first_map.any():
        raise ValueError(f"{first_path}: the first mask of {record.name} has no object")
    size = (int(first_map.shape[0]), int(first_map.shape[1]))
    for i, label_map in annotations.items():
        check_size(record.label_paths[i], label_map.shape, first_path, size)
    frames = LazyFrames(record, size, first_path)
    frames[first]  # a mismatch of sizes is reported now, not in the middle of a run
    return VideoSample(
        name=record.name,
        frames=frames,
        annotations=annotations,
        targets=LazyTargets(record, size, first_path) if with_targets and _has_truth(record, len(annotations)) else {},
        object_ids=tuple(sorted({i for label_map in annotations.values() for i in object_ids_in(label_map)})),
        required_frames=record.required_frames,
        original_size=size,
        frame_names=record.frame_names,
        unseen_ids=record.unseen_ids,
    )


def _introductions(record: VideoRecord, first_frame: Mapping[int, int]) -> dict[int, Tensor]:
    """Label maps of new objects only. An object may be listed from a frame on that does not show it."""
    annotations = {}
    waiting: set[int] = set()
    for i in sorted(record.label_paths):
        waiting |= {object_id for object_id, first in first_frame.items() if first == i}
        if waiting:
            label_map = without_ignored(read_labels(record, i))
            shown = waiting.intersection(object_ids_in(label_map))
            if shown:
                annotations[i] = label_map * torch.isin(label_map, torch.tensor(sorted(shown), dtype=torch.uint8))
            waiting -= shown
    return annotations
