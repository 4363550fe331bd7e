"""Video files and folders of images: frames in, one at a time; H.264 files out."""

from __future__ import annotations

import contextlib
import os
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import av
import numpy as np
import torch
from av.error import ArgumentError, FFmpegError
from jaxtyping import UInt8
from torch import Tensor

from vos_lightning.io.files import Replacement, list_files, naming, regular_file
from vos_lightning.io.images import IMAGE_SUFFIXES, Turn, read_image
from vos_lightning.structures import FOLDER_FPS

# Reading --------------------------------------------------------------------------------------------------------------


class FrameSource(ABC):
    """Frames of one video in time order; every iteration decodes from the start and holds one frame at a time.

    Attributes:
        path: the file or folder.
        fps: frames a second.
        length: number of frames; for a video file, the number that the container claims, or None.
        names: names of all frames; None for a video file, whose true length is known only at its end.
    """

    path: Path
    fps: Fraction
    length: int | None
    names: tuple[str, ...] | None

    def __iter__(self) -> Iterator[UInt8[Tensor, "3 H W"]]:
        """RGB of each frame.

        Raises:
            ValueError: a frame cannot be decoded or differs in size from the first, or there is no frame.
        """
        first: tuple[int, ...] | None = None
        for index, frame in enumerate(self._decode()):
            size = tuple(frame.shape[-2:])
            first = first or size
            if size != first:
                raise ValueError(
                    f"{self._where(index)} is {size[1]}x{size[0]}, the frames before are {first[1]}x{first[0]}: "
                    "all frames of a video must have one size"
                )
            yield frame
        if first is None:
            raise ValueError(f"{self.path}: not a single frame could be decoded")

    def size(self) -> tuple[int, int]:
        """Height and width in pixels, those of the first frame.

        Raises:
            ValueError: there is no frame, or it cannot be decoded.
        """
        for frame in self:
            return int(frame.shape[1]), int(frame.shape[2])
        raise ValueError(f"{self.path}: there is no frame")

    @abstractmethod
    def _decode(self) -> Iterator[Tensor]: ...

    @abstractmethod
    def _where(self, index: int) -> str:
        """Description of a frame for an error message."""


def open_frames(path: str | os.PathLike[str], links_into: Sequence[str | os.PathLike[str]] = ()) -> FrameSource:
    """Open a video file, or a folder of JPEG or PNG images in the natural order of their names.

    Frames are returned upright, as players and viewers show them; telephones store turned or mirrored frames and a tag.

    Args:
        path: a video file in a container that FFmpeg reads and that holds its frames itself (:data:`CONTAINERS`), or a folder;
            hidden files in it are ignored.
        links_into: folders that links in the folder may lead to, besides the folder itself.

    Returns:
        The frames, see :class:`FrameSource`.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: the folder has no images, two for one frame, or a link that leads out of it; the file is not a video, has no
            video stream, or is shorter than it claims (MP4, MOV, Matroska and WebM; with other containers this is found at the
            end).
    """
    path = Path(path)
    if path.is_dir():
        return _ImageFolder(path, links_into)
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such video file or folder of images")
    return _VideoFile(path)


CONTAINERS = (
    "mov", "matroska", "avi", "asf", "flv", "mpegts", "mpeg", "mpegvideo", "ogg", "mxf", "gxf", "nut", "dv", "ivf", "rm", "wtv",
    "h264", "hevc", "vvc", "av1", "obu", "m4v", "mjpeg", "yuv4mpegpipe", "gif", "apng", "png_pipe", "jpeg_pipe", "webp_pipe",
    "wav", "mp3",
)  # fmt: skip
"""Containers that are read, by FFmpeg's names. Play lists (HLS, DASH, concat) are not: they name other files and addresses."""
MAX_PIXELS = 8192 * 8192
"""Most pixels of a video's frame."""


def _open(path: Path) -> av.container.InputContainer:
    """Open a video file. Nothing but this file is read, whatever is in it."""
    only = {"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "file"}
    try:
        return av.open(regular_file(path).absolute(), options=only)  # FFmpeg takes a colon in a relative path for a protocol
    except ArgumentError as error:
        raise ValueError(f"{path}: this is no video file of a kind that is read, such as MP4 or Matroska") from error


class _ImageFolder(FrameSource):
    names: tuple[str, ...]

    def __init__(self, path: Path, links_into: Sequence[str | os.PathLike[str]]) -> None:
        self.path, self.fps = path, FOLDER_FPS
        self._files = list_files(path, IMAGE_SUFFIXES, (*links_into, path))
        if not self._files:
            raise ValueError(f"{path}: the folder holds no .jpg or .png images")
        self.names = tuple(self._files)
        self.length = len(self.names)

    def _decode(self) -> Iterator[Tensor]:
        return map(read_image, self._files.values())

    def _where(self, index: int) -> str:
        return str(self._files[self.names[index]])


def count_frames(path: str | os.PathLike[str]) -> int:
    """Number of frames of a video file.

    Its packets are counted, which needs no decoding; the file is decoded only if their number is not what the container claims.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        with _open(Path(path)) as container:
            stream = container.streams.video[0]
            # Packets that an edit list cuts off are decoded and dropped; the last packet is empty and flushes the decoder.
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
            with _open(path) as container:
                if not container.streams.video:
                    raise ValueError(f"{path}: the file has no video stream")
                stream = container.streams.video[0]
                if stream.width * stream.height > MAX_PIXELS:
                    raise ValueError(
                        f"{path}: the video says that its frames have {stream.width} x {stream.height} pixels, more than the "
                        f"{MAX_PIXELS} that are read; make it smaller"
                    )
                self.fps = Fraction(stream.average_rate or stream.guessed_rate or FOLDER_FPS)
                self.length = stream.frames or None
                self._kind = str(container.format.name)
        except FFmpegError as error:
            raise ValueError(f"{path}: this is no complete video file ({error.strerror})") from error
        self._missing = max(0, _declared_size(path, self._kind) - path.stat().st_size)
        # Some complete AVI files claim a wrong size, so missing frames of an AVI file are found at its end.
        if self._missing and self._kind != "avi":
            raise ValueError(f"{path}: {self._missing} bytes at the end are missing; {_mend(path)}")

    def _decode(self) -> Iterator[Tensor]:
        path, count = self.path, 0
        try:
            with _open(path) as container:
                stream = container.streams.video[0]
                stream.thread_type = "AUTO"
                for frame in _decode_packets(container, stream):
                    if frame is None or frame.is_corrupt:
                        raise ValueError(f"{path}: frame {count} is damaged or cut off; {_mend(path)}")
                    yield self._upright(frame)
                    count += 1
        except FFmpegError as error:
            raise ValueError(f"{path}: frame {count} cannot be decoded ({error.strerror}); {_mend(path)}") from error
        # If no bytes are missing, the claimed number is not checked: editing lists leave out frames that are counted.
        if self._missing and self.length is not None and count < self.length:
            raise ValueError(f"{path}: the file ends after {count} of {self.length} frames; {_mend(path)}")

    def _upright(self, frame: av.VideoFrame) -> UInt8[Tensor, "3 H W"]:
        """The frame in RGB, as players show it."""
        array = frame.to_ndarray(format="rgb24")
        matrix: Any = frame.side_data.get("DISPLAYMATRIX")
        if matrix is not None:
            turn = turn_of_matrix(struct.unpack("=9i", bytes(matrix)))
            if turn is None:
                raise ValueError(
                    f"{self.path}: the frames are to be shown at a slant, which is not supported; store them upright"
                )
            array = turn.apply(array)
        return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))

    def _where(self, index: int) -> str:
        return f"{self.path}: frame {index}"


def _decode_packets(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame | None]:
    """All frames up to the first incomplete packet; then None."""
    for packet in container.demux(stream):
        if packet.is_corrupt:
            yield from stream.codec_context.decode(None)  # frames that wait for later ones
            yield None
            return
        yield from packet.decode()


def _mend(path: Path) -> str:
    return (
        "copy it again, or keep what can be read: "
        f"ffmpeg -i {path.name} -c copy whole{path.suffix or '.mp4'} (without -c copy where frames are damaged)"
    )


def turn_of_matrix(matrix: Sequence[int]) -> Turn | None:
    """The turn by which a display matrix makes stored frames upright; None if it is neither a quarter turn nor mirrored.

    Args:
        matrix: ``a b u c d v x y w`` by rows. A stored point ``(x, y)`` is shown at ``(a x + c y, b x + d y)``, with y downwards.
            Only the directions are used, not scale or position.
    """
    a, b, _, c, d = matrix[:5]
    straight, crossed = max(abs(a), abs(d)), max(abs(b), abs(c))
    # Writers round the matrix; a thousandth of a turn moves no pixel visibly.
    if min(abs(a), abs(d)) > 1000 * crossed:
        return Turn(False, a < 0, d < 0)
    if min(abs(b), abs(c)) > 1000 * straight:
        return Turn(True, c < 0, b < 0)
    return None


# How long a file says that it is --------------------------------------------------------------------------------------

_MP4_BOXES = frozenset(
    {b"ftyp", b"moov", b"mdat", b"moof", b"free", b"skip", b"wide", b"uuid", b"sidx", b"styp", b"meta", b"mfra"}
)
_SEGMENT = 0x18538067


def _declared_size(path: Path, kind: str) -> int:
    """Number of bytes that a container claims; 0 if it claims none, or is of another kind.

    FFmpeg reads a truncated Matroska file up to its end without an error.
    """
    with path.open("rb") as file:
        if "mp4" in kind:
            return _size_of_mp4(file, path.stat().st_size)
        if "matroska" in kind:
            return _size_of_matroska(file)
        if kind == "avi":
            start = file.read(8)
            return 8 + int.from_bytes(start[4:], "little") if start[:4] == b"RIFF" else 0
    return 0


def _size_of_mp4(file: BinaryIO, size: int) -> int:
    """End of the last box at the top level; data that some cameras append, which are no box, do not count."""
    end = 0
    while end + 8 <= size:
        file.seek(end)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:], "big")
        if head[4:8] not in _MP4_BOXES or length < 8:  # 0: to the end of the file
            break
        end += length
    return end


def _size_of_matroska(file: BinaryIO) -> int:
    """End of the segment; 0 if its length is unknown (a recording that was streamed)."""
    while True:
        element = _read_number(file, keep_length=True)
        length = _read_number(file)
        if element is None or length is None:
            return 0
        if element == _SEGMENT:
            return file.tell() + length
        file.seek(length, os.SEEK_CUR)


def _read_number(file: BinaryIO, keep_length: bool = False) -> int | None:
    """A number of EBML: the leading zeros of the first byte count the following bytes; None if unknown (all ones) or cut off."""
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    following = 8 - first[0].bit_length()
    value = int.from_bytes(first + file.read(following), "big")
    if keep_length:
        return value
    bits = 7 * (following + 1)
    value &= (1 << bits) - 1
    return None if value == (1 << bits) - 1 else value


# Writing --------------------------------------------------------------------------------------------------------------


class VideoWriter:
    """Writes an H.264 ``.mp4`` that common players show; it gets its final name when it is complete.

    Frames with an odd side are padded by one repeated row or column, as the colour format needs even sides. Use it as a context
    manager: on an exception no file is left behind. A video without frames leaves no file.

    Args:
        path: output file, whose name ends in ``.mp4``; missing parent folders are created.
        fps: frames a second.
        quality: constant rate factor of x264, 0 (lossless) to 51; 18 is visually lossless.
    """

    def __init__(self, path: str | os.PathLike[str], fps: int | float | Fraction = FOLDER_FPS, quality: int = 20) -> None:
        self.path = Path(path)
        if self.path.suffix.lower() != ".mp4":
            raise ValueError(f"{self.path}: the name of a video must end in .mp4")
        self._file = Replacement(path, durable=False)
        self._rate = Fraction(fps).limit_denominator(65535)
        self._options = {"crf": str(quality), "preset": "veryfast"}
        self._container: av.container.OutputContainer | None = None
        self._size: tuple[int, int] | None = None

    def write(self, frame: UInt8[Tensor, "3 H W"]) -> None:
        """Append a frame of the same size as the earlier ones.

        Args:
            frame: RGB image on the host.

        Raises:
            OSError: the file cannot be written; the error names it.
        """
        height, width = int(frame.shape[1]), int(frame.shape[2])
        array = np.pad(frame.permute(1, 2, 0).numpy(), ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        with naming(self.path):
            container = self._container or self._open(height, width)
            assert (height, width) == self._size, "all frames of a video have one size"
            container.mux(self._stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))

    def _open(self, height: int, width: int) -> av.container.OutputContainer:
        self._size = (height, width)
        # The index is moved to the front (faststart), so that browsers start to play before the file is loaded.
        options = {"movflags": "+faststart"}
        container = self._container = av.open(self._file.temporary.absolute(), "w", format="mp4", container_options=options)
        self._stream = container.add_stream("libx264", rate=self._rate, options=self._options)
        self._stream.height, self._stream.width = height + height % 2, width + width % 2
        self._stream.pix_fmt = "yuv420p"
        return container

    def close(self) -> None:
        """Finish the file and give it its name.

        Raises:
            OSError: the file cannot be written; the error names it, and nothing is left behind.
        """
        if self._container is None:
            return
        container, self._container = self._container, None
        with self._file, container:
            container.mux(self._stream.encode(None))

    def discard(self) -> None:
        """Stop without leaving a file."""
        if self._container is not None:
            with contextlib.suppress(FFmpegError):  # closing writes the end of the file, which fails on a full disk
                self._container.close()
            self._container = None
            self._file.discard()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()
