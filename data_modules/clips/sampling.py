"""Which frames and which objects make a clip: pure functions of a generator that is seeded for every sample."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np

from data_modules.clips.recipe import ClipRecipe, FrameChoice


class Stream(IntEnum):
    """Purpose of a random generator, so that two uses of the same numbers stay independent."""

    CLIP = 0
    ORDER = 1
    SWAP = 2
    SCENE = 3


def sample_generator(seed: int, epoch: int, index: int, stream: Stream = Stream.CLIP) -> np.random.Generator:
    """Random generator of one sample: it depends only on its arguments, not on the worker, process or run.

    Args:
        seed: seed of the run, >= 0.
        epoch: number of the pass over the data, >= 0.
        index: index of the sample in the data set, >= 0.
        stream: purpose of the draws.
    """
    return np.random.Generator(np.random.PCG64([seed, epoch, index, stream]))


def choose_frames(
    rng: np.random.Generator,
    num_available: int,
    num_frames: int,
    max_gap: int = 1,
    reverse_probability: float = 0.5,
    choice: FrameChoice = "repeat_last",
    stride: int = 1,
) -> tuple[int, ...]:
    """Frame indices of a clip.

    Args:
        rng: random generator of the sample.
        num_available: number of frames of the video.
        num_frames: number of frames of the clip; may exceed ``num_available``.
        max_gap: largest step; steps are uniform in 1..max_gap.
        reverse_probability: probability of a reversed clip, in [0, 1]; it is a clip of the reversed video.
        choice: how frames are chosen, see ``frame_choice`` of :class:`data_modules.clips.recipe.ClipRecipe`.
        stride: factor of every step.

    Returns:
        ``num_frames`` indices in 0..num_available-1, monotone except for ``shuffled``.

    Reference: EMVOS released code (``repeat_last`` with max_gap = 1), STCN released code (``stcn``), AFB-URR (``shuffled``).
    """
    if choice == "shuffled":
        enough = num_available >= num_frames
        return tuple(int(i) for i in rng.choice(num_available, size=num_frames, replace=not enough))
    reverse = rng.random() < reverse_probability
    if choice == "stcn":
        frames = _stcn_frames(rng, num_available, max_gap)
        return frames[::-1] if reverse else frames
    steps = stride * rng.integers(1, max_gap + 1, size=num_frames - 1)
    room = max(num_available - int(steps.sum()), 1) if choice == "inside" else num_available
    start = rng.integers(room)
    indices = np.minimum(start + np.concatenate([[0], np.cumsum(steps)]), num_available - 1)
    if reverse:
        indices = num_available - 1 - indices
    return tuple(int(i) for i in indices)


def choose_by_recipe(rng: np.random.Generator, num_available: int, recipe: ClipRecipe) -> tuple[int, ...]:
    """:func:`choose_frames` with the values of a recipe."""
    return choose_frames(
        rng,
        num_available,
        recipe.num_frames,
        recipe.max_gap,
        recipe.reverse_probability,
        recipe.frame_choice,
        recipe.frame_stride,
    )


def _stcn_frames(rng: np.random.Generator, num_available: int, max_gap: int) -> tuple[int, int, int]:
    """STCN's three frames. Its limits are kept: the second frame may equal the first if that is the last allowed one."""
    jump = min(num_available, max_gap)
    first = int(rng.integers(num_available - jump + 1))
    second = min(first + int(rng.integers(1, jump + 2)), num_available - jump, num_available - 1)
    third = min(second + int(rng.integers(1, jump + 2)), num_available - jump // 2, num_available - 1)
    return first, second, third


def choose_objects(rng: np.random.Generator, object_ids: Sequence[int], max_objects: int) -> tuple[int, ...]:
    """At most ``max_objects`` of the ids, drawn uniformly, in ascending order."""
    if len(object_ids) > max_objects:
        object_ids = [int(i) for i in rng.choice(np.asarray(object_ids), size=max_objects, replace=False)]
    return tuple(sorted(object_ids))
