"""One's own annotated videos."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from data_modules.base import VOSDataModule
from data_modules.recipe import DEFAULT_RECIPE, ClipRecipe
from data_modules.sources import RecordClips, RecordVideos, find_record, read_names
from vos_lightning.structures import VideoRecord

MIN_SCORED = 3
"""The first annotated frame is given and the last is not scored."""


class OwnVideosDataModule(VOSDataModule):
    """A folder of videos, some frames of which have masks; a part of the videos is held out for scoring.

    ::

        <root>/JPEGImages/<video>/<frame>.jpg     or .png; every frame, names in order
        <root>/Annotations/<video>/<frame>.png    indexed masks, ids 1, 2, ...; the first one holds every object that is scored
        <root>/val.txt                            optional: names of the held-out videos, one a line

    What lies before the first mask of a video is not used. Training draws from the annotated frames alone, so their spacing is
    the step from frame to frame; held-out videos are segmented frame by frame and scored where they are annotated.

    Args:
        root: see above.
        held_out: share of the videos that is held out where there is no ``val.txt``, in (0, 1); at least one video, evenly spaced
            in the order of their names.
        recipe: how clips are made.
        batch_size: see :class:`data_modules.base.VOSDataModule`, as for the rest.
        num_workers: likewise.
        seed: likewise.
        pin_memory: likewise.
        predict_root: likewise.
        max_device_batch: likewise.
    """

    def __init__(
        self,
        root: str,
        held_out: float = 0.25,
        recipe: ClipRecipe = DEFAULT_RECIPE,
        batch_size: int = 4,
        num_workers: int = 2,
        seed: int = 0,
        pin_memory: bool = False,
        predict_root: str | None = None,
        max_device_batch: int | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, seed, recipe, pin_memory, predict_root, max_device_batch)
        if not 0 < held_out < 1:
            raise ValueError(f"held_out is a share of the videos in (0, 1), not {held_out}")
        self.root = Path(root)
        self.held_out = held_out

    def clip_source(self) -> RecordClips:
        """Clips of the videos that are not held out."""
        return RecordClips(self.records(held_out=False))

    def val_videos(self) -> RecordVideos:
        """Held-out videos."""
        return RecordVideos(self.records(held_out=True), with_targets=True)

    def test_videos(self) -> RecordVideos:
        """Held-out videos."""
        return self.val_videos()

    def records(self, held_out: bool) -> list[VideoRecord]:
        """Videos of a part.

        Raises:
            FileNotFoundError: a folder is missing.
            ValueError: too few videos, an unknown name in ``val.txt``, or a held-out video with too few masks.
        """
        images, labels = self.root / "JPEGImages", self.root / "Annotations"
        if not images.is_dir():
            raise FileNotFoundError(f"{self.root} has no folder JPEGImages with a folder for each video: pass DATA=folder")
        names = sorted(folder.name for folder in images.iterdir() if folder.is_dir() and not folder.name.startswith("."))
        if len(names) < 2:
            raise ValueError(f"{images} holds {len(names)} videos: at least one to train on and one to hold out are needed")
        chosen = self._held_out(names)
        if len(chosen) == len(names):
            raise ValueError(f"{self.root / 'val.txt'} holds out every video: leave at least one to train on")
        records = [_from_first_mask(find_record(n, images / n, labels / n)) for n in names if (n in chosen) == held_out]
        for record in records:
            if held_out and len(record.label_paths) < MIN_SCORED:
                raise ValueError(
                    f"{labels / record.name} holds {len(record.label_paths)} masks: a held-out video needs at least {MIN_SCORED} "
                    "(the first is given, the last is not scored)"
                )
        return records

    def _held_out(self, names: list[str]) -> set[str]:
        listed = self.root / "val.txt"
        if listed.is_file():
            chosen = set(read_names(listed))
            unknown = sorted(chosen - set(names))
            if unknown:
                raise ValueError(f"{listed} names {unknown[0]}, which is no folder of {self.root / 'JPEGImages'}")
            return chosen
        count = min(max(round(self.held_out * len(names)), 1), len(names) - 1)
        return {names[(2 * i + 1) * len(names) // (2 * count)] for i in range(count)}


def _from_first_mask(record: VideoRecord) -> VideoRecord:
    """A video that begins where its first mask is."""
    first = min(record.label_paths)
    return dataclasses.replace(
        record,
        frame_names=record.frame_names[first:],
        frame_paths=record.frame_paths[first:],
        label_paths={index - first: path for index, path in record.label_paths.items()},
    )
