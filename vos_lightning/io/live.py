"""Frames that come once and from outside: cameras and addresses in a network."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import av
import cv2
import numpy as np
from av.error import FFmpegError

from vos_lightning.arrays import Tensor, to_tensor
from vos_lightning.io.frames import FrameSource, Position
from vos_lightning.io.video_files import (
    CONTAINERS,
    describe_frame,
    frame_rate,
    picture_of,
    timed_frames,
    turn_of_frame,
    video_stream,
)
from vos_lightning.structures import FOLDER_FPS

SCHEMES = ("http", "https", "rtsp", "rtsps")
"""Schemes of addresses that are read."""
PROTOCOLS = ("http", "https", "tcp", "tls", "udp", "rtp", "rtsp", "httpproxy", "crypto")
"""FFmpeg's protocols by which an address may be read; files of this machine are none of them, whatever a play list names."""
LIVE_CONTAINERS = (*CONTAINERS, "rtsp", "rtp", "sdp", "hls", "mpjpeg", "aac")
TIMEOUT = 10.0
"""Seconds after which an address that sends nothing is given up."""

Decoded = Iterator[tuple[Fraction, Callable[[], Tensor]]]


class LiveFrames(FrameSource):
    """Frames that can be taken once only.

    Args:
        label: what the user has named, for messages.
        name: name of the video in outputs.
        fps: frames a second.
        frames: time of every frame and a function that makes its picture, as they come.
        notes: lines for the user.
        pixel_aspect: width of a pixel divided by its height.
    """

    live: ClassVar[bool] = True

    def __init__(
        self,
        label: str,
        name: str,
        fps: Fraction,
        frames: Decoded,
        notes: tuple[str, ...] = (),
        pixel_aspect: Fraction = Fraction(1),
    ) -> None:
        super().__init__()
        self.path, self.name, self.fps, self.length, self.names = Path(label), name, fps, None, None
        self._label = label
        self.pixel_aspect = pixel_aspect
        self._frames, self._notes = frames, notes
        self._first: Tensor | None = None
        self._taken = False

    def size(self) -> tuple[int, int]:
        """Height and width in pixels; waits for the first frame, which is kept."""
        if self._size is None:
            _, picture = next(self._frames, (None, None))
            if picture is None:
                raise ValueError(f"{self._label}: not a single frame came")
            self._first = picture()
            self._size = (int(self._first.shape[1]), int(self._first.shape[2]))
        return self._size

    def notes(self) -> tuple[str, ...]:
        """What was found in the first frame."""
        return self._notes

    def _number_of(self, time: Fraction) -> int:  # noqa: ARG002
        raise ValueError(f"{self._label}: frames of a stream are counted as they come; give --start as a frame number")

    def choose(self, start: Position | None = None, end: Position | None = None, stride: int = 1) -> FrameSource:
        """Keep a part of the frames, see :class:`FrameSource`; a time for ``end`` counts from the first frame."""
        return super().choose(start, end, stride)

    def _decode(self) -> Decoded:
        if self._taken:
            raise ValueError(f"{self._label}: the frames of a stream come only once")
        self._taken = True
        self.size()
        first, self._first = self._first, None
        assert first is not None
        yield Fraction(0), lambda: first
        yield from self._frames

    def _where(self, number: int) -> str:
        return f"{self._label}: frame {number}"


def name_of_address(address: str) -> str:
    """The name that a video from an address has in outputs: the last part of the path without its suffix."""
    stem = address.partition("://")[2].split("?")[0].rstrip("/").rpartition("/")[2].rpartition(".")
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in stem[0] or stem[2]) or "stream"


def open_address(address: str) -> LiveFrames:
    """Frames from an address, ``http://``, ``https://``, ``rtsp://`` or ``rtsps://``.

    Args:
        address: where a video file, a live stream or an HLS play list is.

    Raises:
        ValueError: nothing can be read there.
    """
    options = {"format_whitelist": ",".join(LIVE_CONTAINERS), "protocol_whitelist": ",".join(PROTOCOLS)}
    if address.startswith("rtsp"):
        options["rtsp_transport"] = "tcp"  # UDP loses packets, which looks like damage
    try:
        container = av.open(address, options=options, timeout=TIMEOUT)
        stream = video_stream(container, address)
        frames = _of_container(container, frame_rate(stream), address)
        when, first = next(frames, (Fraction(0), None))
    except (FFmpegError, OSError) as error:
        raise ValueError(f"{address}: no video can be read there ({error.strerror}); try the address in a player") from error
    if first is None:
        raise ValueError(f"{address}: not a single frame came")
    pictures = (
        (stamp, functools.partial(picture_of, frame, address)) for stamp, frame in itertools.chain([(when, first)], frames)
    )
    turned = turn_of_frame(first, address).exchange
    aspect = Fraction(stream.sample_aspect_ratio or 1)
    notes = tuple(f"{address}: {note}" for note in describe_frame(first))
    return LiveFrames(address, name_of_address(address), frame_rate(stream), pictures, notes, 1 / aspect if turned else aspect)


def _of_container(
    container: av.container.InputContainer, rate: Fraction, address: str
) -> Iterator[tuple[Fraction, av.VideoFrame]]:
    count = 0
    try:
        with container:
            for stamp, frame in timed_frames(container, rate):
                if frame is None:
                    raise ValueError(f"{address}: frame {count} came incomplete")
                yield stamp, frame
                count += 1
    except FFmpegError as error:
        raise ValueError(f"{address}: the stream broke off after {count} frames ({error.strerror})") from error


def open_camera(number: int) -> LiveFrames:
    """Frames of a camera of this machine, through the system's own interface.

    Args:
        number: 0 is the first camera.

    Raises:
        ValueError: there is no such camera, or another program uses it.
    """
    name = f"camera:{number}"
    # One line about a camera that is not there is enough.
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        capture = cv2.VideoCapture(number)
    finally:
        cv2.utils.logging.setLogLevel(level)
    if not capture.isOpened():
        raise ValueError(f"{name}: the camera cannot be opened; is it plugged in, and does no other program use it?")
    rate = Fraction(capture.get(cv2.CAP_PROP_FPS) or FOLDER_FPS).limit_denominator(1001)
    return LiveFrames(name, f"camera_{number}", rate, _of_camera(capture, name))


def _of_camera(capture: Any, name: str) -> Decoded:
    start: float | None = None
    try:
        while True:
            good, frame = capture.read()
            if not good:
                raise ValueError(f"{name}: the camera sends no more frames")
            now = time.monotonic()
            start = now if start is None else start
            pixels = np.ascontiguousarray(frame[..., ::-1].transpose(2, 0, 1))
            yield Fraction(now - start).limit_denominator(1_000_000), functools.partial(to_tensor, pixels)
    finally:
        capture.release()
