"""The data module that every data set builds on: global-batch training loaders and one-video evaluation loaders."""

from __future__ import annotations

import functools
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import cv2
import lightning
from torch.utils.data import DataLoader

from data_modules.clips.dataset import ClipBatchSampler, ClipDataset, ClipSource, collate_clips
from data_modules.clips.proposals import check_proposals, name_of
from data_modules.clips.recipe import DEFAULT_RECIPE, ClipRecipe
from data_modules.clips.videos import evenly_spread
from data_modules.videos import folder_videos
from vos_lightning.structures import ClipSample, LazySequence, UnusableVideo, VideoSample

T_ = TypeVar("T_")
V_ = TypeVar("V_", VideoSample, VideoSample | UnusableVideo)


class ClipLoader(DataLoader[Any]):
    """A data loader that can be resumed.

    Its sampler starts where the restored trainer stopped, so it has no state of its own. Lightning checks for these two methods
    to decide whether a training can be resumed exactly.
    """

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the trainer stores the position."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing: the trainer stores the position."""


@dataclass(frozen=True)
class Loading:
    """Options of the loading of clips and videos.

    Attributes:
        batch_size: number of clips of a batch over ALL processes, so that a result does not depend on their number.
        max_device_batch: largest number of clips that a process takes at once. A larger share of ``batch_size`` is split into
            equal parts whose gradients are accumulated (``trainer.accumulate_grad_batches`` is set, and
            ``trainer.val_check_interval``, which counts parts, is multiplied). None takes the share unsplit.
        num_workers: number of worker processes of the training loader, per training process.
        seed: seed of the order of clips and of all random draws, >= 0.
        pin_memory: copy batches into page-locked memory (for GPUs).
        predict_root: folder with ``JPEGImages/<video>/<frame>.jpg`` and ``Annotations/<video>/<frame>.png`` (at least the first
            mask of every object) to predict; None predicts the test videos.

    Raises:
        ValueError: a number is too small.
    """

    batch_size: int = 8
    max_device_batch: int | None = None
    num_workers: int = 4
    seed: int = 0
    pin_memory: bool = False
    predict_root: str | None = None

    def __post_init__(self) -> None:
        for name, value, least in (
            ("batch_size", self.batch_size, 1),
            ("max_device_batch", self.max_device_batch, 1),
            ("num_workers", self.num_workers, 0),
            ("seed", self.seed, 0),
        ):
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, not {value}")


DEFAULT_LOADING = Loading()


class VOSDataModule(lightning.LightningDataModule, ABC):
    """Clips for training and whole videos for validation, test and prediction.

    The whole training is one Lightning epoch of ``trainer.max_steps`` optimiser steps. To validate, set
    ``trainer.val_check_interval`` in batches and ``trainer.check_val_every_n_epoch: null``. Loaders divide clips and videos among
    the processes themselves, so ``trainer.use_distributed_sampler`` must be false if there are several processes.

    Args:
        loading: batches, workers and seed.
        recipe: how clips are made.
    """

    proposals_option = "wrap the data module in data_modules.proposals.ProposalsDataModule"
    """How a user adds proposals to this data module; part of an error message."""

    def __init__(
        self,
        loading: Loading = DEFAULT_LOADING,
        recipe: ClipRecipe = DEFAULT_RECIPE,
    ) -> None:
        super().__init__()
        self.loading = loading
        self.recipe = recipe
        self.has_proposals: bool | None = None
        """Whether all clips and videos of the current stage have object proposals; None before ``setup``."""
        self.num_parts = 1
        """Number of parts of a step that a process takes one after the other."""
        self._videos: dict[str, LazySequence[VideoSample]] = {}

    # What a data set provides ------------------------------------------------------------------------------------------

    @abstractmethod
    def clip_source(self) -> ClipSource:
        """Source of the training clips."""

    @abstractmethod
    def val_videos(self) -> LazySequence[VideoSample]:
        """Videos of the validation split, made when they are accessed."""

    @abstractmethod
    def test_videos(self) -> LazySequence[VideoSample]:
        """Videos of the test split."""

    def predict_videos(self) -> LazySequence[VideoSample]:
        """Videos under ``predict_root``, or those of the test split."""
        return folder_videos(self.loading.predict_root) if self.loading.predict_root is not None else self.test_videos()

    def clip_parts(self) -> list[tuple[ClipSource, ClipRecipe]]:
        """Sources and recipes of the training clips."""
        return [(self.clip_source(), self.recipe)]

    # Found once --------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def training_parts(self) -> list[tuple[ClipSource, ClipRecipe]]:
        """The :meth:`clip_parts`, found once: listing the folders of a large data set takes long on a network drive."""
        return self.clip_parts()

    def videos(self, stage: Literal["validate", "test", "predict"]) -> LazySequence[VideoSample]:
        """The videos of a stage, found once."""
        if stage not in self._videos:
            find = {"validate": self.val_videos, "test": self.test_videos, "predict": self.predict_videos}[stage]
            self._videos[stage] = find()
        return self._videos[stage]

    def setup(self, stage: Literal["fit", "validate", "test", "predict"]) -> None:  # type: ignore[override]
        """Check the data of a Lightning stage, so that a wrong path is reported before anything is computed."""
        clips: list[ClipSource] = []
        videos: list[LazySequence[VideoSample]] = []
        if stage == "fit":
            clips = [source for source, _ in self.training_parts]
            for source in {id(source): source for source in clips}.values():  # a source may be listed several times
                source.check_objects()
            if self.trainer is not None and self.loading.max_device_batch is not None:
                self._accumulate(self.trainer, self.loading.max_device_batch)
        if stage in ("fit", "validate"):
            videos = [self.videos("validate")]
        elif stage in ("test", "predict"):
            videos = [self.videos(stage)]
        self.has_proposals = check_proposals(clips, videos)

    def _accumulate(self, trainer: lightning.Trainer, max_device_batch: int) -> None:
        """Split the batch among the processes and over time."""
        if trainer.accumulate_grad_batches != self.num_parts:
            raise ValueError("set either trainer.accumulate_grad_batches or data.init_args.loading.max_device_batch, not both")
        parts = split_batch(self.loading.batch_size, trainer.world_size, max_device_batch)
        trainer.accumulate_grad_batches = parts
        if isinstance(trainer.val_check_interval, int):
            trainer.val_check_interval = trainer.val_check_interval // self.num_parts * parts
        self.num_parts = parts

    def state_dict(self) -> dict[str, Any]:
        """Numbers of parts and clips of a step, on which the meaning of the trainer's position depends."""
        return {"num_parts": self.num_parts, "batch_size": self.loading.batch_size}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse to continue with another number of parts or clips in a step."""
        clips = state_dict.get("batch_size", self.loading.batch_size)
        if clips != self.loading.batch_size:
            raise ValueError(
                f"the run was started with {clips} clips a step, now {self.loading.batch_size}: continue with "
                f"data.init_args.loading.batch_size={clips}, or with --scale_batch=true on as many devices as before"
            )
        before = state_dict.get("num_parts", 1)
        if before != self.num_parts:
            raise ValueError(
                f"the run was started with a batch in {before} parts, now in {self.num_parts}: continue with as many devices, "
                f"or set data.init_args.loading.max_device_batch so that there are {before} again"
            )

    # Loaders -----------------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches from the next one that the trainer needs to the last one of the training."""
        trainer = self._trainer()
        if trainer.max_steps < 1:
            raise ValueError(f"trainer.max_steps must be positive, not {trainer.max_steps}: training is counted in steps")
        dataset = ClipDataset(self.training_parts, self.loading.seed)
        sampler = self._sampler(
            len(dataset),
            trainer.max_steps * trainer.accumulate_grad_batches,
            # `processed` counts a batch whose end was not reached before the checkpoint (checkpoints are saved in
            # on_train_batch_end), but not an interrupted one; Lightning's counters get this value when the loop restarts.
            start_batch=trainer.fit_loop.epoch_loop.batch_progress.current.processed,  # type: ignore[attr-defined]
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            accumulate=self.num_parts,
        )
        return ClipLoader(
            dataset=dataset,
            batch_sampler=sampler,
            num_workers=self.loading.num_workers,
            collate_fn=functools.partial(collate_clips, num_slots=self.recipe.max_objects),
            pin_memory=self.loading.pin_memory,
            persistent_workers=self.loading.num_workers > 0,
            worker_init_fn=_start_worker,
        )

    def clips_of_training(self, num_clips: int, num_steps: int) -> Iterator[tuple[int, ClipSample]]:
        """Some of the clips that a training gets, to look at: the first clip of evenly spread steps.

        Args:
            num_clips: number of clips, at most ``num_steps``.
            num_steps: number of steps of the training, on which the gaps between frames may depend.

        Yields:
            The step, counted from 0, and the clip.
        """
        dataset = ClipDataset(self.training_parts, self.loading.seed)
        for step in evenly_spread(num_steps, num_clips):
            first, *_ = next(iter(self._sampler(len(dataset), num_steps, start_batch=step)))
            yield step, dataset[first]

    def _sampler(self, num_items: int, num_batches: int, start_batch: int, **place: int) -> ClipBatchSampler:
        return ClipBatchSampler(
            num_items=num_items,
            num_batches=num_batches,
            global_batch_size=self.loading.batch_size,
            seed=self.loading.seed,
            swap_probability=self.recipe.swap_probability,
            start_batch=start_batch,
            **place,
        )

    def val_dataloader(self) -> DataLoader[VideoSample]:
        """This process's share of the videos, one at a time."""
        return self._video_loader(self.videos("validate"))

    def test_dataloader(self) -> DataLoader[VideoSample]:
        """This process's share of the videos, one at a time."""
        return self._video_loader(self.videos("test"))

    def predict_dataloader(self) -> DataLoader[VideoSample | UnusableVideo]:
        """This process's share of the videos, one at a time; one that cannot be opened does not keep the others back."""
        return self._video_loader(_Openable(self.videos("predict")))

    def _video_loader(self, videos: LazySequence[V_]) -> DataLoader[V_]:
        trainer = self._trainer()
        # As Lightning's UnrepeatedDistributedSampler, which refuses more processes than videos: no video is repeated, unlike with
        # a padding DistributedSampler. A process for which none is left repeats one, because Lightning leaves a process without
        # videos out, for which the others would wait for ever. Frames are decoded on access in this process, so workers would
        # have nothing to do.
        rank, total = trainer.global_rank, len(videos)
        share: Sequence[int] = range(rank, total, trainer.world_size) or [rank % total] if total else []
        return DataLoader(dataset=videos, sampler=share, batch_size=None, collate_fn=_identity, num_workers=0)  # type: ignore[arg-type]

    def _trainer(self) -> lightning.Trainer:
        if self.trainer is None:
            raise ValueError("loaders depend on the trainer: pass the data module to trainer.fit, validate, test or predict")
        if self.trainer.world_size > 1 and self.trainer._accelerator_connector.use_distributed_sampler:
            raise ValueError("set trainer.use_distributed_sampler=false: the loaders share clips and videos among the processes")
        return self.trainer


def split_batch(batch_size: int, world_size: int, max_device_batch: int) -> int:
    """Smallest number of equal parts of a process's share of a batch that have at most ``max_device_batch`` clips each.

    Raises:
        ValueError: the processes cannot share the batch equally.
    """
    if batch_size % world_size != 0:
        raise ValueError(f"batch_size {batch_size} (over all processes) is not a multiple of {world_size} processes")
    share = batch_size // world_size
    return next(parts for parts in range(1, share + 1) if share % parts == 0 and share // parts <= max_device_batch)


def _one_thread(worker: int) -> None:  # noqa: ARG001
    """Limit OpenCV to one thread in a worker: a thread for each core in every worker would overload the cores.

    ``setNumThreads(1)`` is not used: it would wait forever for the threads of the parent, which a forked worker does not have.
    """
    cv2.setNumThreads(0)


def _start_worker(worker: int) -> None:
    """Limit the threads of a worker, and let it survive the signals that stop a training.

    Terminals and schedulers signal all processes of a training, which would lose its workers before it has finished its step. A
    worker ends with its training; where nobody tells it to, SIGTERM ends it after a minute.
    """
    _one_thread(worker)
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(60))


class _Openable(LazySequence[VideoSample | UnusableVideo]):
    """Videos, with those that cannot be opened named instead."""

    def __init__(self, videos: LazySequence[VideoSample]) -> None:
        self.videos = videos

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> VideoSample | UnusableVideo:
        try:
            return self.videos[index]
        except (ValueError, OSError) as error:
            return UnusableVideo(name_of(self.videos, index), error)

    def __iter__(self) -> Iterator[VideoSample | UnusableVideo]:
        return (self[index] for index in range(len(self)))


def _identity(value: T_) -> T_:
    return value
