"""A data module in which a signal arrives while a certain clip or video is read."""

from __future__ import annotations

import os
import signal
from typing import Any

import numpy as np
from torch.utils.data import get_worker_info

from data_modules.clips.dataset import RawClip
from data_modules.clips.recipe import ClipRecipe
from data_modules.datasets.synthetic import VAL, SyntheticClips, SyntheticDataModule, SyntheticVideos
from vos_lightning.structures import VideoSample


class SignalledDataModule(SyntheticDataModule):
    """Sends signals to the process that reads the clip, or the video of a validation, with a certain number.

    Args:
        signals: names of the signals, sent one after the other.
        clip: 1 for the first clip that the process reads; None for no clip.
        video: 1 for the first video that is validated; None for no video.
        rank: only in the process with this ``LOCAL_RANK``; None for every one.
        in_worker: whether only a worker of the loader is signalled.
        arguments: those of every data module.
    """

    def __init__(
        self,
        signals: list[str],
        clip: int | None = None,
        video: int | None = None,
        rank: int | None = None,
        in_worker: bool = False,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        self.signals, self.clip, self.video, self.rank, self.in_worker = signals, clip, video, rank, in_worker
        self.counts = {"clip": 0, "video": 0}

    def count(self, kind: str, wanted: int | None) -> None:
        self.counts[kind] += 1
        here = self.rank is None or os.environ.get("LOCAL_RANK") == str(self.rank)
        if here and self.counts[kind] == wanted and self.in_worker == (get_worker_info() is not None):
            for name in self.signals:
                os.kill(os.getpid(), getattr(signal, name))

    def clip_source(self) -> SyntheticClips:
        source = _Clips(self.num_train_videos, self.scene, self.scene_seed)
        source.data = self
        return source

    def val_videos(self) -> SyntheticVideos:
        videos = _Videos(self.num_val_videos, VAL, self.scene, self.scene_seed)
        videos.data = self
        return videos


class _Clips(SyntheticClips):
    data: SignalledDataModule

    def draw(self, index: int, rng: np.random.Generator, recipe: ClipRecipe) -> RawClip:
        self.data.count("clip", self.data.clip)
        return super().draw(index, rng, recipe)


class _Videos(SyntheticVideos):
    data: SignalledDataModule

    def __getitem__(self, index: int) -> VideoSample:
        self.data.count("video", self.data.video)
        return super().__getitem__(index)
