"""The sound of a video, copied beside new pictures."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
from av.error import FFmpegError

from vos_lightning.io.video_files import open_container


class _Kinds(NamedTuple):
    """Codecs of sound in a container."""

    copied: frozenset[str]
    encoder: str
    """For sound of any other codec."""
    rate: int
    """Samples a second of the encoder."""


SOUND_CODECS = {
    ".mp4": _Kinds(frozenset({"aac", "mp3", "ac3", "eac3", "opus", "alac"}), "aac", 48000),
    ".mov": _Kinds(frozenset({"aac", "mp3", "ac3", "eac3", "alac", "pcm_s16le", "pcm_s24le"}), "aac", 48000),
    ".webm": _Kinds(frozenset({"opus", "vorbis"}), "libopus", 48000),
}
"""Suffix of a video -> codecs that its container takes; other sound is encoded anew."""


class Sound:
    """Sound that is written beside the pictures of a video, packet by packet, from the same moment on.

    Packets are copied where the container takes them (:data:`SOUND_CODECS`), so that nothing is lost, and encoded anew elsewhere.
    Damaged sound ends where it cannot be read: it is worth no picture.

    Args:
        path: video file with sound.
        start: time in the file, in seconds, of the first picture that is written.
    """

    def __init__(self, path: Path, start: Fraction) -> None:
        self._path, self._start = path, start
        self._packets: Iterator[av.Packet] = iter(())
        self._next: av.Packet | None = None
        self._source: av.container.InputContainer | None = None

    def open(self, container: av.container.OutputContainer, suffix: str) -> None:
        """Add a stream to a container, before its first packet is written.

        Args:
            container: the new video.
            suffix: its kind, a key of :data:`SOUND_CODECS`.
        """
        kinds = SOUND_CODECS[suffix]
        source = self._source = open_container(self._path)
        stream = source.streams.audio[0]
        if stream.codec_context.name in kinds.copied:
            self._packets = self._copied(source, stream, container.add_stream_from_template(stream))
        else:
            layout = "stereo" if stream.codec_context.channels > 1 else "mono"
            target: Any = container.add_stream(kinds.encoder, rate=kinds.rate, layout=layout)
            self._packets = self._encoded(source, stream, target)

    def write_until(self, container: av.container.OutputContainer, time: Fraction) -> None:
        """Write what is heard before a time.

        Args:
            container: the new video.
            time: seconds from its first picture.
        """
        while (packet := self._next or next(self._packets, None)) is not None:
            self._next = packet
            stamp = packet.dts if packet.dts is not None else packet.pts
            if stamp is None or stamp * Fraction(packet.time_base) >= time:
                return
            container.mux(packet)
            self._next = None

    def close(self) -> None:
        """Close the file that the sound comes from."""
        if self._source is not None:
            self._source.close()
            self._source, self._packets, self._next = None, iter(()), None

    def _copied(self, source: av.container.InputContainer, stream: av.AudioStream, target: Any) -> Iterator[av.Packet]:
        offset = round(self._start / Fraction(stream.time_base or 1))
        try:
            for packet in source.demux(stream):
                if packet.pts is None or packet.dts is None or packet.is_corrupt or packet.pts < offset:
                    continue
                packet.pts -= offset
                packet.dts -= offset
                packet.stream = target
                yield packet
        except FFmpegError:
            return

    def _encoded(self, source: av.container.InputContainer, stream: av.AudioStream, target: Any) -> Iterator[av.Packet]:
        encoder = target.codec_context
        encoder.open()
        sampler = av.AudioResampler(encoder.format, encoder.layout, encoder.sample_rate, frame_size=encoder.frame_size or None)
        count = 0
        try:
            frames = (frame for frame in source.decode(stream) if frame.time is not None and frame.time >= self._start)
            for frame in itertools.chain(frames, (None,)):
                for part in sampler.resample(frame):
                    part.pts, part.time_base = count, Fraction(1, encoder.sample_rate)
                    count += part.samples
                    yield from target.encode(part)
        except FFmpegError:
            return
        yield from target.encode(None)
