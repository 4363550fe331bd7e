"""Video files, decoded with FFmpeg."""

from __future__ import annotations

import bisect
import functools
import struct
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import ArgumentError, FFmpegError
from jaxtyping import UInt8

from vos_lightning.arrays import Tensor, to_tensor
from vos_lightning.io.containers import declared_size
from vos_lightning.io.files import regular_file
from vos_lightning.io.frames import FrameSource
from vos_lightning.io.hdr import CURVES, to_ordinary
from vos_lightning.io.images import Turn
from vos_lightning.structures import FOLDER_FPS

CONTAINERS = (
    "mov", "matroska", "avi", "asf", "flv", "mpegts", "mpeg", "mpegvideo", "ogg", "mxf", "gxf", "nut", "dv", "ivf", "rm", "wtv",
    "h264", "hevc", "vvc", "av1", "obu", "m4v", "mjpeg", "yuv4mpegpipe", "gif", "apng", "png_pipe", "jpeg_pipe", "webp_pipe",
    "wav", "mp3",
)  # fmt: skip
"""Containers that are read, by FFmpeg's names. Play lists (HLS, DASH, concat) are not: they name other files and addresses."""
MAX_PIXELS = 8192 * 8192
"""Most pixels of a video's frame."""
_UNSPECIFIED, _BT2020 = 2, 9
"""FFmpeg's numbers of colour spaces."""


def open_container(path: Path) -> av.container.InputContainer:
    """Open a video file. Nothing but this file is read, whatever is in it."""
    only = {"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "file"}
    try:
        return av.open(regular_file(path).absolute(), options=only)  # FFmpeg takes a colon in a relative path for a protocol
    except ArgumentError as error:
        raise ValueError(f"{path}: this is no video file of a kind that is read, such as MP4 or Matroska") from error


class VideoFile(FrameSource):
    """A video file; see :func:`vos_lightning.io.videos.open_frames`."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.name, self.names = path, path.resolve().stem, None
        self._notes: tuple[str, ...] = ()
        try:
            with open_container(path) as container:
                stream = video_stream(container, path)
                self.fps = frame_rate(stream)
                self.length = stream.frames or None
                self.audio = path if container.streams.audio else None
                self.pixel_aspect = Fraction(stream.sample_aspect_ratio or 1)
                self._kind = str(container.format.name)
        except FFmpegError as error:
            raise ValueError(f"{path}: this is no complete video file ({error.strerror})") from error
        self._missing = max(0, declared_size(path, self._kind) - path.stat().st_size)
        # Some complete AVI files claim a wrong size, so missing frames of an AVI file are found at its end.
        if self._missing and self._kind != "avi":
            raise ValueError(f"{path}: {self._missing} bytes at the end are missing; {_mend(path)}")

    def notes(self) -> tuple[str, ...]:
        """Whether the video is interlaced or has a high dynamic range, found in its first frame."""
        self.size()
        return self._notes

    def size(self) -> tuple[int, int]:
        """Height and width in pixels of the first frame, upright."""
        if self._size is None:
            frame = next(self._frames(), None)
            if frame is None:
                raise ValueError(f"{self.path}: there is no frame")
            turn = turn_of_frame(frame[1], self.path)
            if frame[1].pts is not None and frame[1].time_base is not None:
                self.origin = frame[1].pts * Fraction(frame[1].time_base)
            self._notes = tuple(f"{self.path}: {note}" for note in describe_frame(frame[1]))
            self._size = (frame[1].width, frame[1].height) if turn.exchange else (frame[1].height, frame[1].width)
            if turn.exchange:
                self.pixel_aspect = 1 / self.pixel_aspect
        return self._size

    def _decode(self) -> Iterator[tuple[Fraction, Callable[[], Tensor]]]:
        for time, frame in self._frames():
            yield time, functools.partial(picture_of, frame, self.path)

    def _frames(self) -> Iterator[tuple[Fraction, av.VideoFrame]]:
        path, count = self.path, 0
        whole = self.length if self.stride == 1 and self._end is None else None
        try:
            with open_container(path) as container:
                for time, frame in timed_frames(container, self._rate):
                    if frame is None or frame.is_corrupt:
                        raise ValueError(f"{path}: frame {count} is damaged or cut off; {_mend(path)}")
                    yield time, frame
                    count += 1
        except FFmpegError as error:
            raise ValueError(f"{path}: frame {count} cannot be decoded ({error.strerror}); {_mend(path)}") from error
        # If no bytes are missing, the claimed number is not checked: editing lists leave out frames that are counted.
        if self._missing and whole is not None and count < self.first + whole:
            raise ValueError(f"{path}: the file ends after {count} of {self.first + whole} frames; {_mend(path)}")

    def _decode_from(self, number: int) -> Iterator[tuple[Fraction, Callable[[], Tensor]]]:
        """From the key frame before the frame, or from the start where frames have no times of their own.

        The first call decodes the whole file once, to learn the times.
        """
        stamps = self._stamps
        if number >= len(stamps) or None in stamps or len(set(stamps)) < len(stamps):
            yield from super()._decode_from(number)
            return
        wanted: int = stamps[number]
        try:
            with open_container(self.path) as container:
                stream = container.streams.video[0]
                stream.thread_type = "AUTO"
                container.seek(wanted, stream=stream)
                reached = False
                for frame in _decode_packets(container, stream):
                    if frame is None or frame.is_corrupt or frame.pts is None or (not reached and frame.pts > wanted):
                        break
                    reached = reached or frame.pts == wanted
                    if reached:
                        time = (frame.pts - stamps[0]) * Fraction(stream.time_base or 1)
                        yield time, functools.partial(picture_of, frame, self.path)
                        number += 1
        except FFmpegError:
            pass  # what cannot be decoded from here on is decoded from the start, which names it
        if number < len(stamps):
            yield from super()._decode_from(number)

    @functools.cached_property
    def _stamps(self) -> list[Any]:
        """When each frame is shown, in units of the stream; None where a frame does not say it."""
        try:
            with open_container(self.path) as container:
                stream = container.streams.video[0]
                stream.thread_type = "AUTO"
                return [None if frame is None else frame.pts for frame in _decode_packets(container, stream)]
        except FFmpegError:
            return []  # decoding from the start names the damage

    def _number_of(self, time: Fraction) -> int:
        try:
            with open_container(self.path) as container:
                stream = container.streams.video[0]
                stamps = [packet.pts for packet in container.demux(stream) if packet.size > 0 and not packet.is_discard]
                base = stream.time_base
        except FFmpegError as error:
            raise ValueError(f"{self.path}: this is no complete video file ({error.strerror})") from error
        known = sorted(stamp for stamp in stamps if stamp is not None)
        if len(known) < len(stamps) or not known or base is None:
            return super()._number_of(time)
        return bisect.bisect_left(known, known[0] + time / base)

    def _where(self, number: int) -> str:
        return f"{self.path}: frame {number}"


def count_frames(path: Path) -> int:
    """Number of frames of a video file.

    Its packets are counted, which needs no decoding; the file is decoded only if their number is not what the container claims.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        with open_container(path) as container:
            stream = container.streams.video[0]
            # Packets that an edit list cuts off are decoded and dropped; the last packet is empty and flushes the decoder.
            count = sum(packet.size > 0 and not packet.is_discard for packet in container.demux(stream))
            if count == stream.frames:
                return count
    except FFmpegError as error:
        raise ValueError(f"{path}: this is no complete video file ({error.strerror})") from error
    return sum(1 for _ in VideoFile(path))


# Streams of packets ---------------------------------------------------------------------------------------------------


def video_stream(container: av.container.InputContainer, source: object) -> av.VideoStream:
    """The stream of a container that is read, the first one with pictures.

    Raises:
        ValueError: there is none, or its frames are too large.
    """
    if not container.streams.video:
        raise ValueError(f"{source}: the file has no video stream")
    stream = container.streams.video[0]
    if stream.width * stream.height > MAX_PIXELS:
        raise ValueError(
            f"{source}: the video says that its frames have {stream.width} x {stream.height} pixels, more than the "
            f"{MAX_PIXELS} that are read; make it smaller"
        )
    return stream


def frame_rate(stream: av.VideoStream) -> Fraction:
    """Frames a second on average, as the container says or FFmpeg guesses."""
    return Fraction(stream.average_rate or stream.guessed_rate or FOLDER_FPS)


def timed_frames(container: av.container.InputContainer, rate: Fraction) -> Iterator[tuple[Fraction, av.VideoFrame | None]]:
    """All frames of a container with their times in seconds from the first one, up to the first incomplete packet; then None.

    Args:
        container: an open container.
        rate: frames a second where frames have no times.
    """
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    start: Fraction | None = None
    for number, frame in enumerate(_decode_packets(container, stream)):
        stamp = None if frame is None or frame.pts is None or frame.time_base is None else frame.pts * Fraction(frame.time_base)
        if number == 0:
            start = stamp
        yield (number / rate if stamp is None or start is None else stamp - start), frame


def _decode_packets(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame | None]:
    for packet in container.demux(stream):
        if packet.is_corrupt:
            yield from stream.codec_context.decode(None)  # frames that wait for later ones
            yield None
            return
        yield from packet.decode()


# Pictures -------------------------------------------------------------------------------------------------------------


def picture_of(frame: av.VideoFrame, source: object) -> UInt8[Tensor, "3 H W"]:
    """The frame in RGB, as players show it; a high dynamic range is brought into the ordinary one."""
    curve = CURVES.get(int(frame.color_trc))
    if curve is None:
        pixels = frame.to_ndarray(format="rgb24")
    else:
        if int(frame.colorspace) == _UNSPECIFIED:  # FFmpeg would take it for BT.601
            frame.colorspace = _BT2020
        pixels = to_ordinary(frame.to_ndarray(format="rgb48le"), curve)
    array = turn_of_frame(frame, source).apply(pixels)
    return to_tensor(np.ascontiguousarray(array.transpose(2, 0, 1)))


def turn_of_frame(frame: av.VideoFrame, source: object) -> Turn:
    """How a stored frame is turned upright.

    Raises:
        ValueError: it is to be shown at a slant.
    """
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return Turn()
    turn = turn_of_matrix(struct.unpack("=9i", bytes(matrix)))
    if turn is None:
        raise ValueError(f"{source}: the frames are to be shown at a slant, which is not supported; store them upright")
    return turn


def describe_frame(frame: av.VideoFrame) -> list[str]:
    """What a user should know of a video before it is segmented, from one of its frames."""
    found = []
    if frame.interlaced_frame:
        found.append(
            "the video is interlaced: moving edges have combs, which masks follow; deinterlace it first for clean ones "
            "(ffmpeg -i IN -vf bwdif OUT)"
        )
    curve = CURVES.get(int(frame.color_trc))
    if curve is not None:
        found.append(f"the video has a high dynamic range ({curve}); pictures and videos that are written have the ordinary one")
    return found


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
