"""Frames of a video in any order, as they are looked at."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator

from jaxtyping import UInt8
from torch import Tensor

from vos_lightning.io.frames import FrameSource

MOST_FRAMES = 24
"""Frames that are kept in memory."""
AHEAD = 16
"""Frames that are decoded on the way to a later one, instead of a new search for the key frame before it."""


class FrameReader:
    """Reads frames in any order; it may be used from several threads.

    Args:
        frames: the video, for this reader alone.
    """

    def __init__(self, frames: FrameSource) -> None:
        self._frames = frames
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, Tensor] = OrderedDict()
        self._next: tuple[int, Iterator[Tensor]] | None = None

    def __getitem__(self, index: int) -> UInt8[Tensor, "3 H W"]:
        """A frame.

        Raises:
            IndexError: the video has fewer frames.
            ValueError: it cannot be decoded.
        """
        with self._lock:
            if index not in self._kept:
                self._read(index)
            self._kept.move_to_end(index)
            return self._kept[index]

    def _read(self, index: int) -> None:
        if self._next is None or not 0 <= index - self._next[0] < AHEAD:
            self._next = index, self._frames.since(index)
        at, later = self._next
        self._next = None  # an error ends the iterator
        for position in range(at, index + 1):
            frame = next(later, None)
            if frame is None:
                raise IndexError(f"{self._frames.path}: there is no frame {index}")
            self._kept[position] = frame
            if len(self._kept) > MOST_FRAMES:
                self._kept.popitem(last=False)
        self._next = index + 1, later
