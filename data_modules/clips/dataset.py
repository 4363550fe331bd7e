"""Training clips, addressed by their position in the training: the same for any number of processes, workers and restarts."""

from __future__ import annotations

import bisect
import dataclasses
import functools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from data_modules.clips.recipe import ClipRecipe
from data_modules.clips.sampling import Stream, sample_generator
from data_modules.clips.transforms import ClipTransform, RawClip
from vos_lightning.structures import IGNORE_LABEL, ClipBatch, ClipSample, Proposals


class ItemNames(NamedTuple):
    """Names of a video or an image, which are known without opening it."""

    name: str
    """``video_name`` of its clips."""
    frames: Mapping[int, str] | None
    """Names of the frames that clips are drawn from, by index; None for a still image."""
    image: str = ""
    """Path of the image, or of the first frame; empty where it is not on disk."""


class ClipSource(ABC):
    """Source of raw clips: videos, images, or a generator of scenes."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of videos or images."""

    @abstractmethod
    def draw(self, index: int, rng: np.random.Generator, recipe: ClipRecipe) -> RawClip:
        """Draw a clip of ``recipe.num_frames`` frames from item ``index``."""

    def names(self, index: int) -> ItemNames:
        """Names of item ``index`` and its frames, for files that are stored elsewhere (proposals)."""
        raise NotImplementedError(f"{type(self).__name__} has no names for its items, so no proposals can be found for them")

    def check_objects(self) -> None:  # noqa: B027, as most sources draw their objects themselves
        """Raise a ValueError if a quick check finds no object to train on; called before training."""


class Draw(NamedTuple):
    """An item of the data set in one pass over it."""

    epoch: int
    item: int


class ClipKey(NamedTuple):
    """Request of a sampler to a :class:`ClipDataset`."""

    draw: Draw
    partner: Draw | None = None
    """Clip whose objects are pasted over this one (swap-and-attach); None for most clips."""
    progress: float = 0.0
    """Share of the training's steps before this clip."""


class ClipDataset(Dataset[ClipSample]):
    """Map-style data set of clips; a sample depends only on the seed and its key.

    Args:
        parts: sources with the recipe of each. The data set is their concatenation, and a source that is listed twice is drawn
            twice as often.
        seed: seed of the run, >= 0.
    """

    def __init__(self, parts: Sequence[tuple[ClipSource, ClipRecipe]], seed: int) -> None:
        self.parts = [(source, ClipTransform(recipe)) for source, recipe in parts]
        self.ends = list(accumulate(len(source) for source, _ in parts))
        self.seed = seed

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, key: ClipKey) -> ClipSample:
        sample = self._load(key.draw, key.progress)
        return sample if key.partner is None else attach_objects(sample, self._load(key.partner, key.progress))

    def _load(self, draw: Draw, progress: float) -> ClipSample:
        part = bisect.bisect_right(self.ends, draw.item)
        source, transform = self.parts[part]
        rng = sample_generator(self.seed, draw.epoch, draw.item)
        index = draw.item - self.ends[part] + len(source)
        recipe = transform.recipe.at(progress)
        for _ in range(recipe.clip_attempts):
            sample = transform(rng, source.draw(index, rng, recipe))
            if sample.object_ids:
                break
        return sample


def attach_objects(sample: ClipSample, occluder: ClipSample) -> ClipSample:
    """Paste the objects of another clip at the same places of every frame, where they count as background (swap-and-attach).

    Reference: EMVOS section 3.7 and TBD (Cho et al., 2022).
    """
    if sample.frames.shape != occluder.frames.shape:
        raise ValueError(
            f"swap-and-attach needs clips of one size, not {tuple(sample.frames.shape)} ({sample.video_name}) and "
            f"{tuple(occluder.frames.shape)} ({occluder.video_name}): set recipe.crop, or recipe.swap_probability to 0"
        )
    pasted = (occluder.label_maps > 0) & (occluder.label_maps != IGNORE_LABEL)
    return dataclasses.replace(
        sample,
        frames=torch.where(pasted[:, None], occluder.frames, sample.frames),
        label_maps=sample.label_maps.masked_fill(pasted, 0),
    )


class ClipBatchSampler(Sampler[list[ClipKey]]):
    """Batches addressed by their number in the training, which is counted in batches and not in passes over the data.

    A step has ``accumulate`` batches, together ``global_batch_size`` clips. Position ``p = step * global_batch_size + (part *
    world_size + rank) * m + j``, with ``m`` clips for each batch and process, is item ``permutation(seed, epoch)[p mod n]`` of
    epoch ``p div n``. The clips of a step are therefore the same for any number of processes and parts, and a resumed training
    gets the batches that it would have got without the interruption.

    Args:
        num_items: length ``n`` of the data set.
        num_batches: length of the whole training, which is the length of the sampler, also if it starts later.
        global_batch_size: number of clips of a step over all processes.
        seed: seed of the run.
        swap_probability: probability that a step gets swap-and-attach: each clip then has its predecessor in the step
            (cyclically) as partner.
        start_batch: first batch to yield.
        rank: rank of this process.
        world_size: number of processes.
        accumulate: number of batches of a step; ``accumulate * world_size`` divides ``global_batch_size``.
    """

    def __init__(
        self,
        num_items: int,
        num_batches: int,
        global_batch_size: int,
        seed: int,
        swap_probability: float = 0.0,
        start_batch: int = 0,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
    ) -> None:
        if global_batch_size % world_size != 0:
            raise ValueError(f"batch_size {global_batch_size} (over all processes) is not a multiple of {world_size} processes")
        if global_batch_size % (world_size * accumulate) != 0:
            raise ValueError(f"batch_size {global_batch_size} is not a multiple of {accumulate} parts on {world_size} processes")
        self.num_items = num_items
        self.num_batches = num_batches
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.swap_probability = swap_probability
        self.start_batch = start_batch
        self.rank = rank
        self.world_size = world_size
        self.accumulate = accumulate
        # A batch belongs to few epochs, so only the last permutations are kept.
        self._permutation = functools.lru_cache(maxsize=4)(self._draw_permutation)

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[ClipKey]]:
        per_batch = self.global_batch_size // (self.world_size * self.accumulate)
        num_steps = self.num_batches / self.accumulate
        for batch in range(self.start_batch, self.num_batches):
            step, part = divmod(batch, self.accumulate)
            first = step * self.global_batch_size
            mine = (part * self.world_size + self.rank) * per_batch
            swap = sample_generator(self.seed, 0, step, Stream.SWAP).random() < self.swap_probability
            yield [
                ClipKey(
                    self._draw(first + j),
                    self._draw(first + (j - 1) % self.global_batch_size) if swap else None,
                    step / num_steps,
                )
                for j in range(mine, mine + per_batch)
            ]

    def _draw(self, position: int) -> Draw:
        epoch, place = divmod(position, self.num_items)
        return Draw(epoch, int(self._permutation(epoch)[place]))

    def _draw_permutation(self, epoch: int) -> np.ndarray:
        return sample_generator(self.seed, epoch, 0, Stream.ORDER).permutation(self.num_items)


def collate_clips(samples: Sequence[ClipSample], num_slots: int) -> ClipBatch:
    """Stack clips into a batch with ``num_slots`` object slots each.

    Raises:
        ValueError: the clips have different sizes.
    """
    sizes = {tuple(sample.frames.shape): sample.video_name for sample in samples}
    if len(sizes) > 1:
        raise ValueError(f"clips of a batch have different sizes {sizes}: set recipe.crop")
    counts = torch.tensor([len(sample.object_ids) for sample in samples])
    return ClipBatch(
        frames=torch.stack([sample.frames for sample in samples]).float().div_(255),
        label_maps=torch.stack([sample.label_maps for sample in samples]),
        object_valid=torch.arange(num_slots) < counts[:, None],
        video_names=tuple(sample.video_name for sample in samples),
        frame_indices=torch.tensor([sample.frame_indices for sample in samples]),
        proposals=_collate_proposals([sample.proposals for sample in samples]),
    )


def _collate_proposals(samples: Sequence[Proposals | None]) -> Proposals | None:
    """Proposals of all frames as time-major rows."""
    known = [sample for sample in samples if sample is not None]
    if not known:
        return None
    if len(known) < len(samples):
        raise ValueError("some clips of a batch have proposals and some have none: give all parts of a mixture proposals")
    return Proposals(*(torch.stack([getattr(p, f) for p in known], dim=1).flatten(0, 1) for f in ("boxes", "masks", "scores")))
