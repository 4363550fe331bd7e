"""Videos out: H.264, VP9 and ProRes, with the times, the shape of pixels and the sound of the video that they were made from."""

from __future__ import annotations

import contextlib
import os
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import av
import cv2
import numpy as np
from av.error import FFmpegError
from jaxtyping import UInt8

from vos_lightning.arrays import Tensor, to_array
from vos_lightning.io.files import Replacement, naming
from vos_lightning.io.sound import Sound
from vos_lightning.structures import FOLDER_FPS

CLOCK = 90_000
"""Steps of a second in which times are written; the frame rates in use are whole numbers of them."""
_BT709, _LIMITED = 1, 1


class _Kind(NamedTuple):
    """How a kind of video is written."""

    container: str
    codec: str
    pixels: str
    channels: int
    options: dict[str, str]
    header: dict[str, str]


KINDS = {
    # The index is moved to the front (faststart), so that browsers start to play before the file is loaded.
    ".mp4": _Kind("mp4", "libx264", "yuv420p", 3, {"preset": "veryfast"}, {"movflags": "+faststart"}),
    ".webm": _Kind("webm", "libvpx-vp9", "yuva420p", 4, {"auto-alt-ref": "0", "b": "0", "row-mt": "1", "cpu-used": "6"}, {}),
    ".mov": _Kind("mov", "prores_ks", "yuva444p10le", 4, {"profile": "4444", "vendor": "apl0"}, {"movflags": "+faststart"}),
}
"""Suffix of a video -> its kind: H.264 for players, VP9 with transparency for browsers, ProRes 4444 for editors."""


class VideoWriter:
    """Writes a video that common players show; it gets its final name when it is complete.

    Frames with an odd side are padded by one repeated row or column, as the colour formats need even sides. Colours are those of
    BT.709 and say so. Use it as a context manager: on an exception no file is left behind. A video without frames leaves no file.

    Args:
        path: output file, whose suffix is one of :data:`KINDS`; missing parent folders are created.
        fps: frames a second, where frames come without times, and for the duration of the last one.
        quality: constant rate factor of H.264, 0 (lossless) to 51; 18 is visually lossless. ProRes has none.
        pixel_aspect: width of a pixel divided by its height. WebM has square pixels alone: its frames are stretched.
        sound: what is heard from the first frame on; None for silence.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        fps: int | float | Fraction = FOLDER_FPS,
        quality: int = 20,
        pixel_aspect: Fraction = Fraction(1),
        sound: Sound | None = None,
    ) -> None:
        self.path = Path(path)
        if self.path.suffix.lower() not in KINDS:
            raise ValueError(f"{self.path}: the name of a video must end in {', '.join(KINDS)}")
        self._kind = KINDS[self.path.suffix.lower()]
        self._file = Replacement(path, durable=False)
        self._rate = Fraction(fps).limit_denominator(65535)
        self._options = self._kind.options | ({} if self._kind.codec == "prores_ks" else {"crf": str(quality)})
        self._aspect, self._sound = pixel_aspect, sound
        self._container: av.container.OutputContainer | None = None
        self._stream: Any = None
        self._size: tuple[int, int] | None = None
        self._count = 0
        self._time = Fraction(0)

    def write(self, frame: UInt8[Tensor, "C H W"], time: Fraction | None = None) -> None:
        """Append a frame of the same size as the earlier ones.

        Args:
            frame: RGB image on the host, with opacity as fourth channel where the kind of video has it.
            time: seconds from the first frame; None counts frames.

        Raises:
            OSError: the file cannot be written; the error names it.
        """
        height, width = int(frame.shape[1]), int(frame.shape[2])
        assert int(frame.shape[0]) == self._kind.channels, "as many channels as the kind of video has"
        array = to_array(frame).transpose(1, 2, 0)
        if self._kind.container == "webm" and self._aspect != 1:
            array = cv2.resize(array, (max(1, round(width * self._aspect)), height), interpolation=cv2.INTER_LINEAR)
        array = np.pad(array, ((0, array.shape[0] % 2), (0, array.shape[1] % 2), (0, 0)), mode="edge")
        self._time = self._count / self._rate if time is None else time
        self._count += 1
        with naming(self.path):
            container = self._container or self._open(array.shape[0], array.shape[1])
            assert (height, width) == (self._size or (height, width)), "all frames of a video have one size"
            self._size = (height, width)
            if self._sound is not None:
                self._sound.write_until(container, self._time)
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24" if array.shape[2] == 3 else "rgba")
            picture = picture.reformat(format=self._kind.pixels, dst_colorspace=_BT709, dst_color_range=_LIMITED)
            picture.pts, picture.time_base = round(self._time * CLOCK), Fraction(1, CLOCK)
            picture.duration = round(CLOCK / self._rate)
            container.mux(self._stream.encode(picture))

    def _open(self, height: int, width: int) -> av.container.OutputContainer:
        kind = self._kind
        container = self._container = av.open(
            self._file.temporary.absolute(), "w", format=kind.container, container_options=kind.header
        )
        self._stream = container.add_stream(kind.codec, rate=self._rate, options=self._options)
        self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, kind.pixels
        codec: Any = self._stream.codec_context
        codec.time_base = Fraction(1, CLOCK)
        codec.colorspace = codec.color_primaries = codec.color_trc = _BT709
        codec.color_range = _LIMITED
        if self._aspect != 1 and kind.container != "webm":
            codec.sample_aspect_ratio = self._aspect
        if self._sound is not None:
            self._sound.open(container, self.path.suffix.lower())
        return container

    def close(self) -> None:
        """Finish the file and give it its name.

        Raises:
            OSError: the file cannot be written; the error names it, and nothing is left behind.
        """
        if self._container is None:
            return
        container, self._container = self._container, None
        try:
            with self._file, container:
                if self._sound is not None:
                    self._sound.write_until(container, self._time + 1 / self._rate)
                container.mux(self._stream.encode(None))
        finally:
            self._close_sound()

    def discard(self) -> None:
        """Stop without leaving a file."""
        if self._container is not None:
            with contextlib.suppress(FFmpegError):  # closing writes the end of the file, which fails on a full disk
                self._container.close()
            self._container = None
            self._file.discard()
        self._close_sound()

    def _close_sound(self) -> None:
        if self._sound is not None:
            self._sound.close()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()
