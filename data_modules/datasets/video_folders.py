"""Video sets whose splits are folders: MOSE, LVOS, and any folder of videos."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from data_modules.base import DEFAULT_LOADING, Loading, VOSDataModule
from data_modules.clips.recipe import DEFAULT_RECIPE, ClipRecipe
from data_modules.clips.videos import RecordClips
from data_modules.records import find_record, folders_in, read_names
from data_modules.videos import RecordVideos
from vos_lightning.io.meta import read_lvos_meta
from vos_lightning.structures import VideoRecord


class VideoFoldersDataModule(VOSDataModule):
    """Videos under ``<split>/JPEGImages/<video>`` and ``<split>/Annotations/<video>``; split ``.`` is the root itself.

    MOSE is such a set. Its ``train`` is fully annotated; of ``valid`` only the first frames are, so ``predict`` writes the files
    for submission.

    Args:
        root: folder that contains the splits.
        train_split: folder of the training videos.
        val_split: folder of annotated videos to validate on; None for no validation.
        test_split: folder of the videos to test or predict.
        train_list: text file of the training videos, one a line; None takes all.
        val_list: text file of the validation videos, also if both splits are one folder; None takes all.
        test_list: text file of the test videos; None takes all.
        merge_objects: whether any non-zero label is the one object. Otherwise masks hold ids 1, 2, ..., or are black and white (0
            and 255, object 1); such sets have no void.
        recipe: how clips are made; its gaps count stored frames.
        loading: batches, workers and seed, see :class:`Loading`.
    """

    def __init__(
        self,
        root: str,
        train_split: str = "train",
        val_split: str | None = None,
        test_split: str = "valid",
        train_list: str | None = None,
        val_list: str | None = None,
        test_list: str | None = None,
        merge_objects: bool = False,
        recipe: ClipRecipe = DEFAULT_RECIPE,
        loading: Loading = DEFAULT_LOADING,
    ) -> None:
        super().__init__(loading, recipe)
        self.root = Path(root)
        self.train_split = train_split
        self.val_split = val_split
        self.test_split = test_split
        self.train_list = train_list
        self.val_list = val_list
        self.test_list = test_list
        self.merge_objects = merge_objects

    def clip_source(self) -> RecordClips:
        """Clips of the training videos."""
        return RecordClips(self.records(self.train_split, self.train_list))

    def val_videos(self) -> RecordVideos:
        """Validation videos."""
        records = self.records(self.val_split, self.val_list) if self.val_split is not None else []
        return RecordVideos(records, with_targets=True)

    def test_videos(self) -> RecordVideos:
        """Test videos, with targets if there are label maps besides the given ones."""
        return RecordVideos(self.records(self.test_split, self.test_list), with_targets=True)

    def records(self, split: str, names_file: str | None = None) -> list[VideoRecord]:
        """Videos of a split, in the order of their names or of the list.

        Raises:
            FileNotFoundError: a folder or the list is missing.
            ValueError: there is no video, or a video has no frames or no label maps.
        """
        images, labels = self.root / split / "JPEGImages", self.root / split / "Annotations"
        if not images.is_dir():
            raise FileNotFoundError(f"{self.root} has no {split}/JPEGImages: pass --data.init_args.root")
        names = read_names(names_file) if names_file is not None else folders_in(images)
        return [find_record(name, images, labels, self.root, merge_objects=self.merge_objects) for name in names]


class LVOSDataModule(VideoFoldersDataModule):
    """LVOS v1 and v2: late objects, every fifth frame of long videos under its original number, and all label maps published.

    The objects and their first frames come from ``<split>_meta.json``, beside the splits or in the split's folder.

    Args:
        root: folder of ``train``, ``val`` and ``test``.
        train_split: folder of the training videos.
        val_split: folder of the videos to validate on.
        test_split: folder of the videos to test; the videos of ``test`` have no targets.
        recipe: how clips are made; its gaps count stored frames, which are five frames apart.
        loading: batches, workers and seed, see :class:`Loading`.
    """

    def __init__(
        self,
        root: str,
        train_split: str = "train",
        val_split: str | None = "val",
        test_split: str = "val",
        recipe: ClipRecipe = DEFAULT_RECIPE,
        loading: Loading = DEFAULT_LOADING,
    ) -> None:
        super().__init__(
            root,
            train_split,
            val_split,
            test_split,
            recipe=recipe,
            loading=loading,
        )

    def records(self, split: str, names_file: str | None = None) -> list[VideoRecord]:
        """Videos of a split; training videos need no meta file."""
        records = super().records(split, names_file)
        if split == self.train_split:
            return records
        meta, path = self._meta(split)
        return [_starting_at(record, meta, path) for record in records]

    def _meta(self, split: str) -> tuple[dict[str, dict[int, int]], Path]:
        """First frame number of every object of every video."""
        # The official scorer says "valid" where the folders say "val".
        names = [f"{name}_meta.json" for name in (split, *(["valid"] if split == "val" else []))]
        places = [folder / name for folder in (self.root, self.root / split) for name in names]
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            raise FileNotFoundError(f"{places[0]} does not exist: every split of LVOS has one, copy it there")
        return {
            name: {int(i): int(entry["frame_range"]["start"]) for i, entry in video["objects"].items()}
            for name, video in read_lvos_meta(path).items()
        }, path


def _starting_at(record: VideoRecord, meta: dict[str, dict[int, int]], path: Path) -> VideoRecord:
    """The record with its objects, whose first frames are given by their original numbers."""
    if record.name not in meta:
        raise ValueError(f"{path} has no video {record.name}: take the meta file of the same release")
    position = {int(stem): i for i, stem in enumerate(record.frame_names) if stem.isdecimal()}
    missing = [number for number in meta[record.name].values() if number not in position]
    if missing:
        raise FileNotFoundError(
            f"{Path(record.frame_paths[0]).parent} has no frame {missing[0]:08d}, where {path} starts an object"
        )
    return dataclasses.replace(record, first_frame={i: position[number] for i, number in meta[record.name].items()})
