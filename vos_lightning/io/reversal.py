"""The frames of a video from the last to the first, in bounded memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from vos_lightning.arrays import Tensor
from vos_lightning.io.videos import FrameSource

HELD_BYTES = 2**28
"""Most bytes of decoded frames that are held at a time (256 MiB: 200 frames at 480p, 41 at 1080p)."""


def backwards(frames: Any, count: int, held_bytes: int = HELD_BYTES) -> Iterator[Tensor]:
    """The first ``count`` frames of a video, the last of them first.

    What can be indexed is. Anything else is read in pieces that fit into ``held_bytes``, the last piece first: a video file from
    the key frame before each piece on, other frames from the start.

    Args:
        frames: frames in time order, which can be iterated again and again: a sequence, a :class:`FrameSource`, or any other.
        count: number of frames, at least 1.
        held_bytes: most bytes of decoded frames that are held at a time; one frame is always held.

    Raises:
        ValueError: the video has fewer frames, or its frames can be read only once.
    """
    if isinstance(frames, Sequence):
        if len(frames) < count:
            raise ValueError(f"the video ended before frame {count - 1} (counted from 0), from which it is to be read backwards")
        yield from (frames[index] for index in range(count - 1, -1, -1))
        return
    if iter(frames) is frames or (isinstance(frames, FrameSource) and frames.live):
        raise ValueError("frames that come only once, as those of a generator or a camera, cannot be read backwards")
    size = 1
    end = count
    while end > 0:
        start = max(0, end - size)
        piece = list(itertools.islice(_since(frames, start), end - start))
        if len(piece) < end - start:
            raise ValueError(f"the video ended before frame {count - 1} (counted from 0), from which it is to be read backwards")
        yield from reversed(piece)
        end = start
        size = max(1, held_bytes // max(1, piece[0].nbytes))


def _since(frames: Any, index: int) -> Iterator[Tensor]:
    return frames.since(index) if isinstance(frames, FrameSource) else itertools.islice(iter(frames), index, None)
