"""Training clips from the labelled frames of videos on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from data_modules.clips.dataset import ClipSource, ItemNames
from data_modules.clips.recipe import ClipRecipe
from data_modules.clips.sampling import choose_by_recipe
from data_modules.clips.transforms import RawClip
from data_modules.records import check_size, read_labels, without_ignored
from vos_lightning.io.images import read_pixels
from vos_lightning.structures import IGNORE_LABEL, VideoRecord

REFERENCE_ATTEMPTS = 5
"""Number of draws of a clip without an object in its first frame before the last one is accepted (STCN)."""
CHECKED_ITEMS = 100
"""Number of evenly spread videos or images in which a source of clips looks for an object before training."""


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
        return ItemNames(record.name, {i: record.frame_names[i] for i in self.labelled[index]}, record.frame_paths[0])

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
