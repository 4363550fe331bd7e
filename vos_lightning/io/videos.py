"""Video files and folders of images: frames in, one at a time; H.264 files out."""

from __future__ import annotations

import os
import re
import uuid
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
import torch
from av.error import FFmpegError
from jaxtyping import UInt8
from torch import Tensor

from vos_lightning.io.label_maps import read_image

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})
FOLDER_FPS = Fraction(24)
"""Frame rate of a folder of images, which has none of its own (DAVIS and YouTube-VOS are shown at 24)."""


# Reading --------------------------------------------------------------------------------------------------------------


class FrameSource(ABC):
    """Frames of one video in time order; every iteration decodes from the start and holds one frame at a time.

    Attributes:
        path: the file or folder.
        fps: frames a second.
        length: number of frames; of a video file only what the container claims, and None if it claims nothing.
        names: of all frames; None for a video file, whose true length shows at its end.
    """

    path: Path
    fps: Fraction
    length: int | None
    names: tuple[str, ...] | None

    def __iter__(self) -> Iterator[tuple[str, UInt8[Tensor, "3 H W"]]]:
        """Name (file stem, or the five-digit index in a video file) and RGB of each frame.

        Raises:
            ValueError: a frame cannot be decoded or differs in size from the first, or there is none.
        """
        first: tuple[int, ...] | None = None
        for name, frame in self._frames():
            size = tuple(frame.shape[-2:])
            first = first or size
            if size != first:
                raise ValueError(
                    f"{self._where(name)} is {size[1]}x{size[0]}, the frames before are {first[1]}x{first[0]}: "
                    "all frames of a video must have one size"
                )
            yield name, frame
        if first is None:
            raise ValueError(f"{self.path}: not a single frame could be decoded")

    @abstractmethod
    def _frames(self) -> Iterator[tuple[str, Tensor]]: ...

    @abstractmethod
    def _where(self, name: str) -> str:
        """How an error message refers to a frame."""


def open_frames(path: str | os.PathLike[str]) -> FrameSource:
    """Open a video file, or a folder of JPEG or PNG images in numerical order of their names.

    Args:
        path: any file that FFmpeg decodes, or a folder; hidden files in it are ignored.

    Returns:
        An iterable of ``(name, frame)``, see :class:`FrameSource`.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: the folder has no images, or two with one stem; the file is no video or has no video stream.
    """
    path = Path(path)
    if path.is_dir():
        return _ImageFolder(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such video file or folder of images")
    return _VideoFile(path)


class _ImageFolder(FrameSource):
    def __init__(self, path: Path) -> None:
        self.path, self.fps = path, FOLDER_FPS
        self._files = list_images(path)
        self.names = tuple(self._files)
        self.length = len(self.names)

    def _frames(self) -> Iterator[tuple[str, Tensor]]:
        for name, file in self._files.items():
            yield name, read_image(file)

    def _where(self, name: str) -> str:
        return str(self._files[name])


def list_images(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Stem -> path of the JPEG and PNG images of a folder, in numerical order of the stems (``2`` before ``10``).

    Raises:
        ValueError: there are none, or two with the same stem.
    """
    folder = Path(folder)
    files = [f for f in folder.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES and not f.name.startswith(".") and f.is_file()]
    if not files:
        raise ValueError(f"{folder}: the folder holds no .jpg or .png images")
    named: dict[str, Path] = {}
    for file in sorted(files, key=lambda f: _numerical(f.stem)):
        if file.stem in named:
            raise ValueError(f"{file}: {named[file.stem].name} has the same name; keep one of the two")
        named[file.stem] = file
    return named


def _numerical(stem: str) -> tuple[list[int | str], str]:
    # Text and numbers alternate, so that like is compared with like.
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", stem)], stem


def count_frames(path: str | os.PathLike[str]) -> int:
    """Number of frames of a video file.

    Its packets are counted, which takes no decoding; the file is decoded only where that number is not what the container claims.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        with av.open(Path(path).absolute()) as container:
            stream = container.streams.video[0]
            # Packets that an edit list cuts off are decoded and dropped; the last one is empty and flushes the decoder.
            count = sum(packet.size > 0 and not packet.is_discard for packet in container.demux(stream))
            if count == stream.frames:
                return count
    except FFmpegError as error:
        raise ValueError(f"{path}: this is no complete video file ({error.strerror})") from error
    return sum(1 for _ in open_frames(path))


class _VideoFile(FrameSource):
    def __init__(self, path: Path) -> None:
        self.path, self.names = path, None
        try:
            with av.open(path.absolute()) as container:  # a colon in a relative path would name a protocol
                if not container.streams.video:
                    raise ValueError(f"{path}: the file has no video stream")
                stream = container.streams.video[0]
                self.fps = Fraction(stream.average_rate or stream.guessed_rate or FOLDER_FPS)
                self.length = stream.frames or None
        except FFmpegError as error:
            raise ValueError(f"{path}: this is no complete video file ({error.strerror})") from error

    def _frames(self) -> Iterator[tuple[str, Tensor]]:
        count = 0
        try:
            with av.open((path := self.path).absolute()) as container:
                stream = container.streams.video[0]
                stream.thread_type = "AUTO"
                # The claimed number of frames is not asked: containers get it wrong.
                for frame in container.decode(stream):
                    yield self._name(count), _upright(frame)
                    count += 1
        except FFmpegError as error:
            raise ValueError(
                f"{path}: frame {count} cannot be decoded ({error.strerror}); the file is damaged or truncated"
            ) from error
        if self.length is not None and count < self.length:
            warnings.warn(
                f"{path}: the file claims {self.length} frames, {count} could be decoded; it may be truncated", stacklevel=3
            )

    def _where(self, name: str) -> str:
        return f"{self.path}: frame {name}"

    @staticmethod
    def _name(index: int) -> str:
        return f"{index:05d}"


def _upright(frame: av.VideoFrame) -> UInt8[Tensor, "3 H W"]:
    """RGB as players show it: telephones store rotated frames and a note."""
    array = np.rot90(frame.to_ndarray(format="rgb24"), k=round(frame.rotation / 90))
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))


# Writing --------------------------------------------------------------------------------------------------------------


class VideoWriter:
    """Writes an H.264 ``.mp4`` that plays everywhere; it appears under its name when it is complete.

    Frames with an odd side are padded by one repeated row or column, as the colour format needs even sides. Use it as a context
    manager: on an exception nothing is left behind. A video without a frame leaves no file.

    Args:
        path: ends in ``.mp4``; parent folders are made.
        fps: frames a second.
        quality: constant rate factor of x264, 0 (lossless) to 51; 18 is visually lossless.
    """

    def __init__(self, path: str | os.PathLike[str], fps: int | float | Fraction = FOLDER_FPS, quality: int = 20) -> None:
        self.path = Path(path)
        if self.path.suffix.lower() != ".mp4":
            raise ValueError(f"{self.path}: the name of a video must end in .mp4")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}.tmp")
        self._rate = Fraction(fps).limit_denominator(65535)
        self._options = {"crf": str(quality), "preset": "veryfast"}
        self._container: av.container.OutputContainer | None = None
        self._size: tuple[int, int] | None = None

    def write(self, frame: UInt8[Tensor, "3 H W"]) -> None:
        """Append a frame of the same size as the ones before.

        Args:
            frame: RGB on the host.
        """
        height, width = int(frame.shape[1]), int(frame.shape[2])
        if self._container is None:
            self._size = (height, width)
            # The index goes to the front (faststart), so that browsers start to play before the file is loaded.
            self._container = av.open(self._temporary.absolute(), "w", format="mp4", container_options={"movflags": "+faststart"})
            self._stream = self._container.add_stream("libx264", rate=self._rate, options=self._options)
            self._stream.height, self._stream.width = height + height % 2, width + width % 2
            self._stream.pix_fmt = "yuv420p"
        assert (height, width) == self._size, "all frames of a video have one size"
        array = np.pad(frame.permute(1, 2, 0).numpy(), ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))

    def close(self) -> None:
        """Finish the file and give it its name."""
        if self._container is None:
            return
        container, self._container = self._container, None
        try:
            container.mux(self._stream.encode(None))
            container.close()
            os.replace(self._temporary, self.path)
        finally:
            self._temporary.unlink(missing_ok=True)

    def discard(self) -> None:
        """Stop without leaving a file."""
        if self._container is not None:
            self._container.close()
            self._container = None
            self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()
