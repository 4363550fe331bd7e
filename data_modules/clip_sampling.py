"""Which frames and which objects make a clip: pure functions of a generator that is seeded for every sample."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What a generator is for, so that two uses of the same numbers stay independent."""

    CLIP = 0
    ORDER = 1
    SWAP = 2
    SCENE = 3


def sample_generator(seed: int, epoch: int, index: int, stream: Stream = Stream.CLIP) -> np.random.Generator:
    """Generator of one sample: a function of its arguments only, whichever worker, process or run asks.

    Args:
        seed: of the run, >= 0.
        epoch: pass over the data, >= 0.
        index: of the sample in the data set, >= 0.
        stream: what the draws are for.
    """
    return np.random.Generator(np.random.PCG64([seed, epoch, index, stream]))


def choose_frames(
    rng: np.random.Generator, num_available: int, num_frames: int, max_gap: int = 1, reverse_probability: float = 0.5
) -> tuple[int, ...]:
    """Frame indices of a clip.

    The start is uniform over all frames, every step is uniform in 1..max_gap, and past the end the last frame repeats. A
    reversed clip is a clip of the reversed video.

    Args:
        rng: generator of the sample.
        num_available: frames of the video.
        num_frames: frames of the clip; may exceed ``num_available``.
        max_gap: largest step, in frames.
        reverse_probability: in [0, 1].

    Returns:
        ``num_frames`` indices in 0..num_available-1, monotone.

    Reference: EMVOS released code (with max_gap = 1).
    """
    reverse = rng.random() < reverse_probability
    steps = rng.integers(1, max_gap + 1, size=num_frames - 1)
    start = rng.integers(num_available)
    frames = np.minimum(start + np.concatenate([[0], np.cumsum(steps)]), num_available - 1)
    if reverse:
        frames = num_available - 1 - frames
    return tuple(int(i) for i in frames)


def choose_objects(rng: np.random.Generator, object_ids: Sequence[int], max_objects: int) -> tuple[int, ...]:
    """At most ``max_objects`` of the ids, uniformly, in ascending order."""
    if len(object_ids) > max_objects:
        object_ids = [int(i) for i in rng.choice(np.asarray(object_ids), size=max_objects, replace=False)]
    return tuple(sorted(object_ids))
