"""DAVIS 2016 (one object) and 2017 (several)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from data_modules.base import DEFAULT_LOADING, Loading, VOSDataModule
from data_modules.clips.recipe import DEFAULT_RECIPE, ClipRecipe
from data_modules.clips.videos import RecordClips
from data_modules.records import find_record, read_names
from data_modules.videos import RecordVideos
from vos_lightning.structures import VideoRecord


class DAVISDataModule(VOSDataModule):
    """DAVIS in its published layout: ``JPEGImages/480p/<video>``, ``Annotations/480p/<video>``, ``ImageSets/<year>/<split>.txt``.

    In 2017, label 255 is void: left out of the training loss, and background for scoring. The objects are those of the first
    frame. In 2016, any non-zero label is the object, so that 2017 label maps can be used too.

    Args:
        root: folder that contains ``JPEGImages``.
        year: 2016 or 2017.
        resolution: folder below ``JPEGImages`` and ``Annotations``.
        train_split: list of training videos.
        val_split: list of validation videos.
        test_split: list of test videos; the videos of ``test-dev`` have no targets.
        recipe: how clips are made.
        loading: batches, workers and seed, see :class:`Loading`.
    """

    def __init__(
        self,
        root: str,
        year: Literal[2016, 2017] = 2017,
        resolution: str = "480p",
        train_split: str = "train",
        val_split: str = "val",
        test_split: str = "val",
        recipe: ClipRecipe = DEFAULT_RECIPE,
        loading: Loading = DEFAULT_LOADING,
    ) -> None:
        super().__init__(loading, recipe)
        self.root = Path(root)
        self.year = year
        self.resolution = resolution
        self.train_split = train_split
        self.val_split = val_split
        self.test_split = test_split

    def clip_source(self) -> RecordClips:
        """Clips of the training videos."""
        return RecordClips(self.records(self.train_split))

    def val_videos(self) -> RecordVideos:
        """Validation videos."""
        return RecordVideos(self.records(self.val_split), with_targets=True)

    def test_videos(self) -> RecordVideos:
        """Test videos."""
        return RecordVideos(self.records(self.test_split), with_targets=True)

    def records(self, split: str) -> list[VideoRecord]:
        """Videos of a split, in the order of its list.

        Raises:
            FileNotFoundError: the folder does not have the layout of DAVIS.
            ValueError: a list or a folder is empty.
        """
        images, labels = self.root / "JPEGImages" / self.resolution, self.root / "Annotations" / self.resolution
        if not images.is_dir():
            raise FileNotFoundError(f"DAVIS root {self.root} has no JPEGImages/{self.resolution}: pass --data.init_args.root")
        names = self.root / "ImageSets" / str(self.year) / f"{split}.txt"
        if self.year == 2016 and not names.is_file():
            # The 2016 download has lists of image and mask paths, in folders by resolution.
            names = self.root / "ImageSets" / self.resolution / f"{split}.txt"
        single = self.year == 2016
        return [find_record(n, images, labels, self.root, merge_objects=single, has_void=not single) for n in read_names(names)]
