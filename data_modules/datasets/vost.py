"""VOST: objects that change their shape and appearance strongly."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from data_modules.base import DEFAULT_LOADING, Loading, VOSDataModule
from data_modules.clips.recipe import DEFAULT_RECIPE, ClipRecipe
from data_modules.clips.videos import RecordClips
from data_modules.records import find_record, read_names
from data_modules.videos import RecordVideos
from vos_lightning.structures import VideoRecord


class VOSTDataModule(VOSDataModule):
    """VOST as published: ``JPEGImages/<video>``, ``Annotations/<video>`` and ``ImageSets/<split>.txt``.

    Label 255 marks ambiguous pixels: they are left out of the training loss and count as background for scoring.

    Args:
        root: folder that contains ``JPEGImages``.
        frames: folder of the frames to segment; ``JPEGImages`` has the annotated ones, ``JPEGImages_10fps`` has more.
        train_split: list of training videos.
        val_split: list of validation videos.
        test_split: list of test videos.
        recipe: how clips are made.
        loading: batches, workers and seed, see :class:`Loading`.
    """

    def __init__(
        self,
        root: str,
        frames: Literal["JPEGImages", "JPEGImages_10fps"] = "JPEGImages",
        train_split: str = "train",
        val_split: str = "val",
        test_split: str = "val",
        recipe: ClipRecipe = DEFAULT_RECIPE,
        loading: Loading = DEFAULT_LOADING,
    ) -> None:
        super().__init__(loading, recipe)
        self.root = Path(root)
        self.frames: Literal["JPEGImages", "JPEGImages_10fps"] = frames
        self.train_split = train_split
        self.val_split = val_split
        self.test_split = test_split

    def clip_source(self) -> RecordClips:
        """Clips of the training videos, whose labelled frames are in ``JPEGImages``."""
        return RecordClips(self.records(self.train_split, "JPEGImages"))

    def val_videos(self) -> RecordVideos:
        """Validation videos."""
        return RecordVideos(self.records(self.val_split, self.frames), with_targets=True)

    def test_videos(self) -> RecordVideos:
        """Test videos."""
        return RecordVideos(self.records(self.test_split, self.frames), with_targets=True)

    def records(self, split: str, frames: str) -> list[VideoRecord]:
        """Videos of a split, in the order of its list.

        Raises:
            FileNotFoundError: the folder does not have the layout of VOST.
            ValueError: a list or a folder is empty.
        """
        images, labels = self.root / frames, self.root / "Annotations"
        if not images.is_dir():
            raise FileNotFoundError(f"VOST root {self.root} has no {frames}: pass --data.init_args.root")
        names = read_names(self.root / "ImageSets" / f"{split}.txt")
        return [find_record(name, images, labels, self.root, has_void=True) for name in names]
