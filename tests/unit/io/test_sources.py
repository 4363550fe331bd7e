"""What users name as videos, which part of it is read, and what a new video keeps of its source."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.unit.dummies import make_frames
from vos_lightning.io.frames import parse_position, time_code
from vos_lightning.io.sound import Sound
from vos_lightning.io.sources import find_sources
from vos_lightning.io.videos import VideoWriter, open_frames


def grey(level: int, size: tuple[int, int] = (32, 48)) -> Tensor:
    return torch.full((3, *size), level, dtype=torch.uint8)


def film(path: Path, levels: list[int], times: list[Fraction] | None = None, **options: Any) -> Path:
    """Frames of one grey each, by which they are known again."""
    with VideoWriter(path, 10, quality=1, **options) as writer:
        for index, level in enumerate(levels):
            writer.write(grey(level), None if times is None else times[index])
    return path


def tone(path: Path, seconds: int, codec: str = "aac", suffix_rate: int = 48000) -> Path:
    """A grey video with a tone whose loudness rises, so that a moment can be found again."""
    with av.open(path, "w") as container:
        video = container.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = container.add_stream(codec, rate=suffix_rate, layout="mono")
        for _ in range(10 * seconds):
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), 90, np.uint8), format="rgb24")))
        clock = np.arange(seconds * suffix_rate)
        wave = (np.sin(clock / 15) * 30000 * clock / len(clock)).astype(np.int16)[None]
        for start in range(0, wave.shape[1], 1000):
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave[:, start : start + 1000]), format="s16", layout="mono")
            frame.sample_rate, frame.pts = suffix_rate, start
            container.mux(audio.encode(frame))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))
    return path


def levels(frames: Any) -> list[int]:
    return [round(float(frame.float().mean()) / 10) * 10 for frame in frames]


class TestPositions:
    @pytest.mark.parametrize(
        ("text", "position"),
        [
            ("0", 0),
            ("120", 120),
            ("4.5", Fraction(9, 2)),
            ("4s", Fraction(4)),
            ("1:02.5", Fraction(125, 2)),
            ("1:00:02", Fraction(3602)),
        ],
    )
    def test_frames_and_times(self, text: str, position: int | Fraction) -> None:
        found = parse_position(text)
        assert (type(found), found) == (type(position), position)

    @pytest.mark.parametrize("text", ["", "-3", "a", "1:2:3:4", "1,5"])
    def test_other_texts(self, text: str) -> None:
        with pytest.raises(ValueError, match="is neither a frame number"):
            parse_position(text)

    def test_time_codes(self) -> None:
        assert [time_code(Fraction(t)) for t in (Fraction(0), Fraction(1, 3), Fraction(3725), Fraction(59999, 1000))] == [
            "00:00:00.000",
            "00:00:00.333",
            "01:02:05.000",
            "00:00:59.999",
        ]


class TestParts:
    GREYS = (20, 40, 60, 80, 100, 120)

    @pytest.mark.parametrize("kind", ["file", "folder"])
    @pytest.mark.parametrize(
        ("start", "end", "stride", "expected"),
        [
            (2, None, 1, [60, 80, 100, 120]),
            (None, 3, 1, [20, 40, 60]),
            (1, 6, 2, [40, 80, 120]),
            (Fraction(1, 5), Fraction(2, 5), 1, [60, 80]),
            (None, None, 4, [20, 100]),
        ],
    )
    def test_start_end_and_stride(
        self, tmp_path: Path, kind: str, start: Any, end: Any, stride: int, expected: list[int]
    ) -> None:
        if kind == "file":
            frames = open_frames(film(tmp_path / "v.mp4", list(self.GREYS)))
        else:
            (tmp_path / "f").mkdir()
            for index, level in enumerate(self.GREYS):
                Image.fromarray(np.full((32, 48, 3), level, np.uint8)).save(tmp_path / "f" / f"{index}.bmp")
            frames = open_frames(tmp_path / "f")
            # 24 frames a second: the same frames as at 10.
            start, end = (t * Fraction(10, 24) if isinstance(t, Fraction) else t for t in (start, end))
        whole_rate = frames.fps
        frames.choose(start, end, stride)
        assert levels(frames) == expected
        assert levels(frames) == expected  # from the start again
        assert frames.length == len(expected)
        assert frames.fps == whole_rate / stride
        first = self.GREYS.index(expected[0])
        assert [frames.time_of(i) * whole_rate for i in range(len(expected))] == [
            first + stride * i for i in range(len(expected))
        ]
        if frames.names is None:
            assert frames.number_of(1) == first + stride
        else:
            assert frames.names == tuple(str(self.GREYS.index(level)) for level in expected)

    def test_times_that_vary(self, tmp_path: Path) -> None:
        times = [Fraction(0), Fraction(1, 10), Fraction(7, 10), Fraction(4, 5), Fraction(2)]
        frames = open_frames(film(tmp_path / "v.mp4", [20, 40, 60, 80, 100], times))
        assert levels(frames) == [20, 40, 60, 80, 100]
        assert [frames.time_of(i) for i in range(5)] == times
        assert levels(open_frames(tmp_path / "v.mp4").choose(Fraction(1, 2), Fraction(1))) == [60, 80]

    @pytest.mark.parametrize(("start", "end"), [(3, 3), (9, None), (4, 2), (Fraction(50), None)])
    def test_empty_parts(self, tmp_path: Path, start: Any, end: Any) -> None:
        with pytest.raises(ValueError, match=r"v\.mp4: no frame lies between --start .* and .*; there are \d+ frames, 0 to \d+$"):
            open_frames(film(tmp_path / "v.mp4", [20, 40, 60])).choose(start, end)


class TestNames:
    def test_several_kinds_at_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        for name in ("a.mp4", "b.mkv", "c.gif"):
            Path(name).touch()
        for folder in ("d", "videos/e"):
            Path(folder).mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(Path(folder) / "1.webp")
        Path("videos/f.mov").touch()
        found = find_sources(["a.mp4", "[bc].*", "d", "videos", "camera:2", "rtsp://x/y"])
        assert [source.name for source in found] == ["a", "b", "c", "d", "f", "e", "camera_2", "y"]

    @pytest.mark.parametrize("pattern", [True, False])
    def test_images_are_frames_of_one_video(self, tmp_path: Path, pattern: bool) -> None:
        for number in (10, 9, 1):
            Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"{number}.png")
        Image.new("RGB", (4, 4)).save(tmp_path / "1.jpg")  # of another pattern
        texts = [str(tmp_path / "*.png")] if pattern else [str(tmp_path / f"{n}.png") for n in (1, 10, 9)]
        (source,) = find_sources(texts)
        assert source.name == tmp_path.name
        assert [int(frame[0, 0, 0]) for frame in source.open()] == [1, 9, 10]

    def test_what_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="no file has a name of this pattern"):
            find_sources([str(tmp_path / "*.mp4")])
        with pytest.raises(ValueError, match="holds no images, no videos"):
            find_sources([str(tmp_path)])
        for folder in ("one", "two"):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "v.mp4").touch()
            Image.new("RGB", (4, 4)).save(tmp_path / folder / "1.png")
        with pytest.raises(ValueError, match=r"holds images \(1\.png\) as well as videos \(v\.mp4\); name one kind"):
            find_sources([str(tmp_path / "one")])
        with pytest.raises(ValueError, match=r"two.v\.mp4: its outputs would have the name 'v' of .*one.v\.mp4"):
            find_sources([str(tmp_path / "one" / "v.mp4"), str(tmp_path / "two" / "v.mp4")])
        with pytest.raises(ValueError, match="images of several folders are no video"):
            find_sources([str(tmp_path / "one" / "1.png"), str(tmp_path / "two" / "1.png")])


class TestKinds:
    def test_gif_keeps_its_times(self, tmp_path: Path) -> None:
        pictures = [Image.new("RGB", (40, 30), (level,) * 3) for level in (20, 100, 200)]
        pictures[0].save(tmp_path / "v.gif", save_all=True, append_images=pictures[1:], duration=[100, 400, 100])
        frames = open_frames(tmp_path / "v.gif")
        assert levels(frames) == [20, 100, 200]
        assert [frames.time_of(i) for i in range(3)] == [0, Fraction(1, 10), Fraction(1, 2)]

    @pytest.mark.parametrize("colour", [True, False])
    def test_tif_of_16_bits(self, tmp_path: Path, colour: bool) -> None:
        picture = np.zeros((8, 10, 3) if colour else (8, 10), np.uint16)
        picture[:4] = (257 * 50, 257 * 100, 257 * 150) if colour else 257 * 80  # OpenCV takes blue, green, red
        cv2.imwrite(str(tmp_path / "1.tif"), picture)
        (frame,) = list(open_frames(tmp_path))
        assert frame[:, 0, 0].tolist() == ([150, 100, 50] if colour else [80, 80, 80])
        assert frame[:, 7, 0].tolist() == [0, 0, 0]

    def test_interlaced_and_hdr_are_said(self, tmp_path: Path) -> None:
        with av.open(tmp_path / "v.mkv", "w") as container:
            stream = container.add_stream("mpeg2video", rate=25, options={"flags": "+ildct+ilme"})
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            stream.codec_context.color_trc = 18
            for frame in make_frames(2, height=48, width=64):
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame.permute(1, 2, 0).numpy()), format="rgb24")
                container.mux(stream.encode(picture))
            container.mux(stream.encode(None))
        notes = open_frames(tmp_path / "v.mkv").notes()
        assert [any(word in note for note in notes) for word in ("interlaced", "high dynamic range (HLG)")] == [True, True]
        assert all(note.startswith(str(tmp_path / "v.mkv")) and "\n" not in note for note in notes)
        assert open_frames(film(tmp_path / "plain.mp4", [20])).notes() == ()


class TestWhatIsKept:
    @pytest.mark.parametrize("suffix", [".mp4", ".mov", ".webm"])
    def test_times_and_the_shape_of_pixels(self, tmp_path: Path, suffix: str) -> None:
        times = [Fraction(0), Fraction(1, 10), Fraction(7, 10), Fraction(9, 10)]
        channels = 3 if suffix == ".mp4" else 4
        with VideoWriter(tmp_path / f"v{suffix}", 10, pixel_aspect=Fraction(3, 2)) as writer:
            for time in times:
                writer.write(torch.full((channels, 32, 48), 90, dtype=torch.uint8), time)
        frames = open_frames(tmp_path / f"v{suffix}")
        assert levels(frames) == [90] * 4
        assert [frames.time_of(i) for i in range(4)] == times
        wide = frames.size()[1] * frames.pixel_aspect
        assert (frames.size()[0], wide) == (32, 72)

    @pytest.mark.parametrize("suffix", [".mov", ".webm"])
    def test_opacity(self, tmp_path: Path, suffix: str) -> None:
        frame = torch.full((4, 32, 48), 200, dtype=torch.uint8)
        frame[3, :, :24], frame[3, :, 24:] = 0, 255
        with VideoWriter(tmp_path / f"v{suffix}", 10) as writer:
            for _ in range(3):
                writer.write(frame)
        with av.open(tmp_path / f"v{suffix}") as container:
            stream = container.streams.video[0]
            decoder = av.CodecContext.create("libvpx-vp9", "r") if suffix == ".webm" else stream.codec_context
            opacity = [
                f.to_ndarray(format="rgba")[16, [4, 44], 3].tolist() for p in container.demux(stream) for f in decoder.decode(p)
            ]
        assert opacity == [[0, 255]] * 3

    @pytest.mark.parametrize(
        ("codec", "source", "target", "expected"),
        [("aac", "v.mp4", "o.mp4", "aac"), ("pcm_s16le", "v.mkv", "o.mp4", "aac"), ("aac", "v.mp4", "o.webm", "opus")],
    )
    def test_sound_from_the_same_moment_on(self, tmp_path: Path, codec: str, source: str, target: str, expected: str) -> None:
        """Loudness rises evenly from 0 at the beginning to 1 at the end, so that it tells the time."""
        tone(tmp_path / source, 4, codec)
        channels = 4 if target.endswith("webm") else 3
        with VideoWriter(tmp_path / target, 10, sound=Sound(tmp_path / source, Fraction(2))) as writer:
            for _ in range(10):
                writer.write(torch.zeros(channels, 32, 48, dtype=torch.uint8))
        with av.open(tmp_path / target) as container:
            stream = container.streams.audio[0]
            assert stream.codec_context.name == expected
            sampler = av.AudioResampler("s16", "mono", 48000)
            parts = [part.to_ndarray()[0] for frame in container.decode(stream) for part in sampler.resample(frame)]
        wave = np.abs(np.concatenate(parts).astype(float)) / 30000
        loud = [wave[round(t * 48000) : round(t * 48000) + 4800].max() for t in (0.1, 0.5, 0.8)]
        assert np.allclose(loud, [(2 + t + 0.1) / 4 for t in (0.1, 0.5, 0.8)], atol=0.06)
        assert 0.9 < len(wave) / 48000 < 1.15

    def test_sound_that_is_copied_is_the_same(self, tmp_path: Path) -> None:
        def packets(path: Path) -> list[bytes]:
            with av.open(path) as container:
                return [bytes(packet) for packet in container.demux(container.streams.audio[0]) if packet.size]

        tone(tmp_path / "v.mp4", 2)
        with VideoWriter(tmp_path / "o.mp4", 10, sound=Sound(tmp_path / "v.mp4", Fraction(0))) as writer:
            for _ in range(20):
                writer.write(torch.zeros(3, 32, 48, dtype=torch.uint8))
        kept, whole = packets(tmp_path / "o.mp4"), packets(tmp_path / "v.mp4")
        assert len(kept) >= len(whole) - 2
        assert kept == whole[-len(kept) :] or kept == whole[: len(kept)] or kept == whole[1 : 1 + len(kept)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A server of this machine for the files of a folder."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path))) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_address[1]}"
        finally:
            running.shutdown()
            thread.join()


class TestLive:
    def test_a_video_from_a_server(self, tmp_path: Path, server: str) -> None:
        film(tmp_path / "holiday.mp4", [20, 60, 100])
        (source,) = find_sources([f"{server}/holiday.mp4?token=1"])
        frames = source.open()
        assert (frames.name, frames.live, frames.size()) == ("holiday", True, (32, 48))
        assert levels(frames) == [20, 60, 100]
        with pytest.raises(ValueError, match="the frames of a stream come only once"):
            list(frames)

    def test_a_play_list_names_parts_on_the_server_and_no_file(self, tmp_path: Path, server: str) -> None:
        with av.open(tmp_path / "part.ts", "w", format="mpegts") as container:
            stream = container.add_stream("libx264", rate=10)
            stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
            for level in (20, 60, 100):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((32, 48, 3), level, np.uint8), format="rgb24")))
            container.mux(stream.encode(None))
        text = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n"
        (tmp_path / "live.m3u8").write_text(text.format("part.ts"))
        (tmp_path / "evil.m3u8").write_text(text.format(f"file://{tmp_path / 'part.ts'}"))
        assert levels(find_sources([f"{server}/live.m3u8"])[0].open()) == [20, 60, 100]
        with pytest.raises(ValueError, match=r"no video can be read there|no video stream|not a single frame"):
            find_sources([f"{server}/evil.m3u8"])[0].open()

    @pytest.mark.parametrize("name", ["nothing.mp4", "text.mp4"])
    def test_nothing_to_read(self, tmp_path: Path, server: str, name: str) -> None:
        (tmp_path / "text.mp4").write_text("hello")
        with pytest.raises(ValueError, match=rf"{server}/{name}: no video can be read there"):
            find_sources([f"{server}/{name}"])[0].open()

    def test_a_camera_that_is_not_there_is_said_once(self, capfd: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(ValueError, match=r"camera:97: the camera cannot be opened"):
            find_sources(["camera:97"])[0].open()
        assert capfd.readouterr().err == "", "OpenCV has warnings of its own"

    def test_a_camera(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Camera:
            def __init__(self, number: int) -> None:
                assert number == 3
                self.sent, self.released = 0, False
                cameras.append(self)

            def isOpened(self) -> bool:  # noqa: N802
                return True

            def get(self, key: int) -> float:
                return 30.0

            def read(self) -> tuple[bool, Any]:
                self.sent += 1
                return self.sent <= 5, np.full((32, 48, 3), (0, 0, 10 * self.sent), np.uint8)  # blue, green, red

            def release(self) -> None:
                self.released = True

        cameras: list[Camera] = []
        monkeypatch.setattr(cv2, "VideoCapture", Camera)
        frames = find_sources(["camera:3"])[0].open().choose(1, 4)
        assert [frame[:, 0, 0].tolist() for frame in frames] == [[20, 0, 0], [30, 0, 0], [40, 0, 0]]
        assert frames.time_of(0) < frames.time_of(1) < frames.time_of(2)
        del frames
        assert cameras[0].released
        with pytest.raises(ValueError, match="camera:3: the camera sends no more frames"):
            list(find_sources(["camera:3"])[0].open())

    def test_no_camera(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cv2.VideoCapture, "isOpened", lambda self: False, raising=False)
        monkeypatch.setattr(
            cv2, "VideoCapture", type("Nothing", (), {"__init__": lambda self, n: None, "isOpened": lambda self: False})
        )
        with pytest.raises(ValueError, match="camera:0: the camera cannot be opened"):
            find_sources(["camera:0"])[0].open()
