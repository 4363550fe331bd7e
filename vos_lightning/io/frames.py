"""Frames of a video, in and one at a time: what every source of frames has, and folders of images."""

from __future__ import annotations

import functools
import itertools
import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import ClassVar, TypeAlias

from jaxtyping import UInt8

from vos_lightning.arrays import Tensor
from vos_lightning.io.files import list_files
from vos_lightning.io.images import IMAGE_SUFFIXES, read_image
from vos_lightning.structures import FOLDER_FPS

FRAME_SUFFIXES = IMAGE_SUFFIXES | {".bmp", ".webp", ".tif", ".tiff"}
"""Images that are read as frames of a user's video."""
SMALLEST_STEP = Fraction(1, 1000)
"""Seconds between two frames whose times do not increase, as in damaged files."""

Position: TypeAlias = int | Fraction
"""A place in a video: a frame number counted from 0, or a time in seconds."""
_CLOCK = re.compile(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d*)?|\.\d+)(s?)")


def parse_position(text: str) -> Position:
    """A place in a video as users write it.

    Args:
        text: ``120`` is a frame number, counted from 0; ``4.5``, ``4s``, ``1:02.5`` and ``0:01:02.5`` are times in seconds,
            minutes and hours.

    Raises:
        ValueError: it is neither.
    """
    if text.isascii() and text.isdigit():
        return int(text)
    found = _CLOCK.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is neither a frame number (120) nor a time (4.5, 4s, 1:02.5)")
    hours, minutes, seconds = found[1] or 0, found[2] or 0, found[3]
    return int(hours) * 3600 + int(minutes) * 60 + Fraction(seconds)


def time_code(seconds: Fraction) -> str:
    """A time as ``hours:minutes:seconds``, with milliseconds."""
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}.{rest % 1000:03d}"


class FrameSource(ABC):
    """Frames of one video in time order; every iteration decodes from the start and holds one frame at a time.

    Attributes:
        path: the file or folder; for a camera or an address, its name in messages.
        name: name of the video in outputs.
        fps: frames a second, of the chosen frames; on average where the rate varies.
        length: number of frames; for a video file, the number that the container claims, or None.
        names: names of all chosen frames; None for a video file, whose true length is known only at its end.
        whole_names: names of all frames of the whole video, or None.
        first: number of the first chosen frame in the whole video, see :meth:`choose`.
        stride: step between the numbers of chosen frames.
        pixel_aspect: width of a pixel divided by its height, as the frames are shown.
        live: whether the frames come once and from outside, so that no second iteration is possible.
        audio: file with the sound of the video; None if there is none to copy.
        origin: time of the first frame by the clock of that file, in seconds; known after :meth:`size`.
    """

    path: Path
    name: str
    fps: Fraction
    length: int | None
    names: tuple[str, ...] | None
    whole_names: tuple[str, ...] | None = None
    first: int = 0
    stride: int = 1
    pixel_aspect: Fraction = Fraction(1)
    live: ClassVar[bool] = False
    audio: Path | None = None
    origin: Fraction = Fraction(0)
    _end: Position | None = None
    _size: tuple[int, int] | None = None

    def __init__(self) -> None:
        self._times: list[Fraction] = []

    def __iter__(self) -> Iterator[UInt8[Tensor, "3 H W"]]:
        """RGB of each frame.

        Raises:
            ValueError: a frame cannot be decoded or differs in size from the first, or there is no frame.
        """
        count, last = 0, None
        first: tuple[int, ...] | None = None
        for number, (time, picture) in enumerate(self._decode()):
            if self._end is not None and (time if isinstance(self._end, Fraction) else number) >= self._end:
                break
            if number < self.first or (number - self.first) % self.stride:
                continue
            frame = picture()
            size = tuple(frame.shape[-2:])
            first = first or size
            if size != first:
                raise ValueError(
                    f"{self._where(number)} is {size[1]}x{size[0]}, the frames before are {first[1]}x{first[0]}: "
                    "all frames of a video must have one size"
                )
            last = time if last is None else max(time, last + SMALLEST_STEP)
            if count == len(self._times):
                self._times.append(last)
            count += 1
            yield frame
        if first is None:
            chosen = " in the chosen part" if self.first or self._end is not None else ""
            raise ValueError(f"{self.path}: not a single frame could be decoded{chosen}")

    def since(self, index: int) -> Iterator[UInt8[Tensor, "3 H W"]]:
        """RGB of each chosen frame from one on, without the work for the frames before it where that is possible.

        Args:
            index: index of the first frame that is returned, among the chosen ones.

        Raises:
            ValueError: a frame cannot be decoded.
        """
        start = self.number_of(index)
        for number, (time, picture) in enumerate(self._decode_from(start), start):
            if self._end is not None and (time if isinstance(self._end, Fraction) else number) >= self._end:
                break
            if (number - start) % self.stride == 0:
                yield picture()

    def time_of(self, index: int) -> Fraction:
        """Seconds from the first frame of the whole video to a chosen frame.

        Args:
            index: index of a chosen frame; where times vary, they are known of frames that were decoded before.
        """
        return self._times[index] if index < len(self._times) else self.number_of(index) / self._rate

    def size(self) -> tuple[int, int]:
        """Height and width in pixels, those of the first frame.

        Raises:
            ValueError: there is no frame, or it cannot be decoded.
        """
        if self._size is None:
            for _, picture in self._decode():
                frame = picture()
                self._size = (int(frame.shape[1]), int(frame.shape[2]))
                break
            else:
                raise ValueError(f"{self.path}: there is no frame")
        return self._size

    def notes(self) -> tuple[str, ...]:
        """Lines about the video that its user should know before it is segmented."""
        return ()

    def choose(self, start: Position | None = None, end: Position | None = None, stride: int = 1) -> FrameSource:
        """Keep a part of the frames. Frames keep the numbers and times that they have in the whole video.

        Args:
            start: first frame that is kept.
            end: first frame that is not kept any more.
            stride: keep every frame with this step from the first one on, >= 1.

        Returns:
            This source.

        Raises:
            ValueError: the part is empty, or a time cannot be found.
        """
        if stride < 1:
            raise ValueError(f"--stride must be at least 1, not {stride}")
        if start is not None:
            self.first = self._number_of(start) if isinstance(start, Fraction) else start
        end = self._number_of(end) if isinstance(end, Fraction) and not self.live else end
        self._end, self.stride = end, stride
        whole = self.length
        if (isinstance(end, int) and end <= self.first) or (whole is not None and self.first >= whole):
            there = "" if whole is None else f"; there are {whole} frames, 0 to {whole - 1}"
            upto = "the end of the video" if end is None else f"--end {end}"
            raise ValueError(f"{self.path}: no frame lies between --start {start or 0} and {upto}{there}")
        self.fps /= stride
        last = end if isinstance(end, int) else None
        if whole is not None:
            self.length = len(range(self.first, min(whole, last or whole), stride))
        if self.names is not None:
            self.names = self.names[self.first : last : stride]
        return self

    def number_of(self, index: int) -> int:
        """Number in the whole video of a chosen frame."""
        return self.first + index * self.stride

    def index_of(self, number: int) -> int | None:
        """Index among the chosen frames of a frame of the whole video; None if it is not chosen."""
        index, rest = divmod(number - self.first, self.stride)
        return None if index < 0 or rest or (isinstance(self._end, int) and number >= self._end) else index

    @property
    def _rate(self) -> Fraction:
        """Frames a second of the whole video."""
        return self.fps * self.stride

    def _number_of(self, time: Fraction) -> int:
        """Number of the first frame that is not before a time."""
        return math.ceil(time * self._rate)

    @abstractmethod
    def _decode(self) -> Iterator[tuple[Fraction, Callable[[], Tensor]]]:
        """Time in seconds of every frame of the whole video, and a function that makes its picture while it is the latest."""

    def _decode_from(self, number: int) -> Iterator[tuple[Fraction, Callable[[], Tensor]]]:
        """The same from one frame on."""
        return itertools.islice(self._decode(), number, None)

    @abstractmethod
    def _where(self, number: int) -> str:
        """Description of a frame of the whole video for an error message."""


class ImageFrames(FrameSource):
    """Images that are the frames of a video, in the natural order of their names.

    Args:
        path: the folder, for messages.
        files: name of a frame -> its file, in order.
        name: name of the video in outputs.
    """

    names: tuple[str, ...]

    def __init__(self, path: Path, files: dict[str, Path], name: str) -> None:
        super().__init__()
        self.path, self.name, self.fps = path, name, FOLDER_FPS
        self._files = list(files.values())
        self.names = self.whole_names = tuple(files)
        self.length = len(files)

    def _decode(self) -> Iterator[tuple[Fraction, Callable[[], Tensor]]]:
        for number, file in enumerate(self._files):
            yield number / self._rate, functools.partial(read_image, file)

    def _decode_from(self, number: int) -> Iterator[tuple[Fraction, Callable[[], Tensor]]]:
        for later, file in enumerate(self._files[number:], number):
            yield later / self._rate, functools.partial(read_image, file)

    def _where(self, number: int) -> str:
        return str(self._files[number])


def open_folder(path: Path, links_into: Sequence[str | os.PathLike[str]] = ()) -> ImageFrames:
    """A folder of images; see :func:`vos_lightning.io.videos.open_frames`."""
    files = list_files(path, FRAME_SUFFIXES, (*links_into, path))
    if not files:
        raise ValueError(f"{path}: the folder holds no .jpg, .png, .bmp, .webp or .tif images")
    return ImageFrames(path, files, path.resolve().name)
