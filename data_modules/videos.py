"""Videos on disk: finding them, reading frames and label maps, and serving them as clips or as whole videos."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from data_modules.clips.dataset import ClipSource, ItemNames
from data_modules.clips.recipe import ClipRecipe
from data_modules.clips.sampling import choose_by_recipe
from data_modules.clips.transforms import RawClip
from vos_lightning.io.files import list_files, list_folders
from vos_lightning.io.images import IMAGE_SUFFIXES, read_image, read_pixels
from vos_lightning.io.label_maps import read_label_map
from vos_lightning.mask_ops import as_object_map, object_ids_in
from vos_lightning.structures import IGNORE_LABEL, LazySequence, VideoRecord, VideoSample

REFERENCE_ATTEMPTS = 5
"""Number of draws of a clip without an object in its first frame before the last one is accepted (STCN)."""
CHECKED_ITEMS = 100
"""Number of evenly spread videos or images in which a source of clips looks for an object before training."""


# Finding --------------------------------------------------------------------------------------------------------------


def read_names(path: str | os.PathLike[str]) -> list[str]:
    """Names in a split file with one name a line, without repetition.

    A line as in DAVIS 2016 (``/JPEGImages/480p/bear/00000.jpg /Annotations/480p/bear/00000.png``) names the folder of its image.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file lists nothing.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"split file {path} does not exist")
    entries = [line.split()[0] for line in Path(path).read_text().splitlines() if line.strip()]
    names = dict.fromkeys(Path(entry).parent.name if "/" in entry else entry for entry in entries)
    if not names:
        raise ValueError(f"split file {path} lists no video")
    return list(names)


def folders_in(folder: str | os.PathLike[str]) -> list[str]:
    """Names of the folders of videos in a folder, in natural order.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: there are no folders in it.
    """
    names = list_folders(folder)
    if not names:
        raise ValueError(f"{folder} has no video folders")
    return names


def find_record(
    name: str,
    image_folder: str | os.PathLike[str],
    label_folder: str | os.PathLike[str],
    exhaustive: bool = True,
    merge_objects: bool = False,
    has_void: bool = False,
) -> VideoRecord:
    """Record of a video from a folder of frames and one of label maps with the same stems.

    The last three arguments are those of :class:`vos_lightning.structures.VideoRecord`.

    Raises:
        FileNotFoundError: a folder, or the frame of a label map, is missing.
        ValueError: there are no frames or no label maps, or two files for one frame.
    """
    frames = list_files(image_folder, IMAGE_SUFFIXES)
    labels = list_files(label_folder, (".png",))
    if not frames:
        raise ValueError(f"{image_folder} has no {', '.join(sorted(IMAGE_SUFFIXES))} files")
    if not labels:
        raise ValueError(f"{label_folder} has no .png files: a video needs at least the mask of its first frame")
    missing = [stem for stem in labels if stem not in frames]
    if missing:
        raise FileNotFoundError(f"{image_folder} has no frame {missing[0]} for the label map {labels[missing[0]]}")
    position = {stem: i for i, stem in enumerate(frames)}
    return VideoRecord(
        name=name,
        frame_names=tuple(frames),
        frame_paths=tuple(map(str, frames.values())),
        label_paths={position[stem]: str(path) for stem, path in labels.items()},
        exhaustive=exhaustive,
        merge_objects=merge_objects,
        has_void=has_void,
    )


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
    records = [find_record(n, images / n, annotations / n, exhaustive=False) for n in folders_in(images)]
    return RecordVideos(records, with_targets=False)


# Reading --------------------------------------------------------------------------------------------------------------


def read_labels(record: VideoRecord, index: int) -> UInt8[Tensor, "H W"]:
    """Label map of frame ``index`` in its meaning for the record: with merged objects or void pixels (255) where it says so.

    Raises:
        ValueError: the file cannot be read, or holds 255 beside ids although the data set has no void.
    """
    path = record.label_paths[index]
    label_map = read_label_map(path)
    return (label_map > 0).to(torch.uint8) if record.merge_objects else as_object_map(label_map, record.has_void, path)


def without_ignored(label_map: UInt8[Tensor, "H W"]) -> UInt8[Tensor, "H W"]:
    """Label map with void (255) as background, as it is given to networks and scored."""
    return label_map.masked_fill(label_map == IGNORE_LABEL, 0)


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


def check_size(path: str, size: Sequence[int], expected_path: str, expected: Sequence[int]) -> None:
    """Raise a ValueError that names both files when ``(H, W)`` differ."""
    if tuple(size) != tuple(expected):
        raise ValueError(f"{path} is {size[0]}x{size[1]} but {expected_path} is {expected[0]}x{expected[1]} (height x width)")


def evenly_spread(length: int, count: int) -> list[int]:
    """At most ``count`` indices below ``length``, evenly spread."""
    count = min(length, count)
    return [i * length // count for i in range(count)]


def shows_object(record: VideoRecord) -> bool:
    """Whether any label map of a video shows an object; they are read up to the first one that does."""
    return any(bool(without_ignored(read_labels(record, i)).any()) for i in sorted(record.label_paths))


def no_object_in(record: VideoRecord, others: int = 0) -> ValueError:
    """The error for a training video without any object, if ``others`` more videos have none either."""
    folder = Path(next(iter(record.label_paths.values()))).parent
    void = " (255 is void in this data set)" if record.has_void else ""
    more = f", and none those of {others} other videos" if others else ""
    return ValueError(
        f"{folder}: the masks show no object{void}{more}; number the pixels of the objects 1, 2, ... to train on them"
    )


# Clips ----------------------------------------------------------------------------------------------------------------


class RecordClips(ClipSource):
    """Training clips from the labelled frames of videos.

    Args:
        records: records of the videos.
    """

    def __init__(self, records: Sequence[VideoRecord]) -> None:
        self.records = records
        self.labelled = [sorted(record.label_paths) for record in records]

    def __len__(self) -> int:
        return len(self.records)

    def names(self, index: int) -> ItemNames:
        """Names of a video and its labelled frames."""
        record = self.records[index]
        return ItemNames(record.name, {i: record.frame_names[i] for i in self.labelled[index]})

    def check_objects(self) -> None:
        """Look for an object in up to :data:`CHECKED_ITEMS` evenly spread videos, until one is found.

        Raises:
            ValueError: no object is found.
        """
        if not self.records:
            raise ValueError("there is no video to train on: the lists of videos leave none")
        looked_at = evenly_spread(len(self.records), CHECKED_ITEMS)
        if not any(shows_object(self.records[i]) for i in looked_at):
            raise no_object_in(self.records[0], len(looked_at) - 1)

    def draw(self, index: int, rng: np.random.Generator, recipe: ClipRecipe) -> RawClip:
        """Draw frames, and draw again if the first one shows no object."""
        record, labelled = self.records[index], self.labelled[index]
        for _ in range(REFERENCE_ATTEMPTS):
            chosen = choose_by_recipe(rng, len(labelled), recipe)
            indices = tuple(labelled[i] for i in chosen)
            first_labels = read_labels(record, indices[0])
            if ((first_labels > 0) & (first_labels != IGNORE_LABEL)).any():
                break
        distinct = {i: _read_pair(record, i, first_labels if i == indices[0] else None) for i in dict.fromkeys(indices)}
        first = distinct[indices[0]][0].shape
        for i, (frame, _) in distinct.items():
            check_size(record.frame_paths[i], frame.shape[:2], record.frame_paths[indices[0]], first[:2])
        return RawClip(
            frames=np.stack([distinct[i][0] for i in indices]),
            label_maps=np.stack([distinct[i][1] for i in indices]),
            video_name=record.name,
            frame_indices=indices,
        )


def _read_pair(
    record: VideoRecord, index: int, label_map: Tensor | None
) -> tuple[UInt8[np.ndarray, "H W 3"], UInt8[np.ndarray, "H W"]]:
    """Frame and label map; the label map is read unless it is given."""
    frame = read_pixels(record.frame_paths[index])
    label_map = read_labels(record, index) if label_map is None else label_map
    check_size(record.label_paths[index], label_map.shape, record.frame_paths[index], frame.shape[:2])
    return frame, label_map.numpy()


# Whole videos ---------------------------------------------------------------------------------------------------------


class LazyFrames(Sequence[Tensor]):
    """Frames of a video, decoded when they are accessed.

    Args:
        record: record of the video.
        size: height and width that every frame must have.
        size_path: path of the file that has this size, for the message.
    """

    def __init__(self, record: VideoRecord, size: tuple[int, int], size_path: str) -> None:
        self.record = record
        self.size = size
        self.size_path = size_path

    def __len__(self) -> int:
        return len(self.record.frame_paths)

    def __getitem__(self, index: int) -> UInt8[Tensor, "3 H W"]:  # type: ignore[override]
        path = self.record.frame_paths[index]
        frame = read_image(path)
        check_size(path, frame.shape[1:], self.size_path, self.size)
        return frame


class LazyTargets(Mapping[int, Tensor]):
    """Label maps for the metrics, decoded when they are accessed; void (255) is background.

    Args:
        record: record of the video.
        size: height and width that every label map must have.
        size_path: path of the file that has this size, for the message.
    """

    def __init__(self, record: VideoRecord, size: tuple[int, int], size_path: str) -> None:
        self.record = record
        self.size = size
        self.size_path = size_path

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
