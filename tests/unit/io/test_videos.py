"""Video files and folders of frames, in and out."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vos_lightning.io.videos import VideoWriter, count_frames, open_frames
from vos_lightning.structures import FOLDER_FPS


def quarters(height: int = 46, width: int = 62, brightness: int = 0) -> Tensor:
    """Red top left, green top right, blue bottom left, white bottom right; wide areas survive the codec."""
    frame = torch.zeros(3, height, width, dtype=torch.uint8)
    frame[0, : height // 2, : width // 2] = 200
    frame[1, : height // 2, width // 2 :] = 200
    frame[2, height // 2 :, : width // 2] = 200
    frame[:, height // 2 :, width // 2 :] = 200
    return frame + brightness


def corners(frame: Tensor) -> Tensor:
    h, w = frame.shape[1:]
    return torch.stack([frame[:, y, x] for y in (h // 8, h - h // 8) for x in (w // 8, w - w // 8)]).int()


def write_video(path: Path, frames: list[Tensor], fps: int | float | Fraction = 24) -> None:
    with VideoWriter(path, fps) as writer:
        for frame in frames:
            writer.write(frame)


KINDS = ("libx264.mp4", "mpeg4.mp4", "mpeg4.mov", "libx264.mkv", "mpeg4.mkv", "libvpx-vp9.webm", "mpeg4.avi")
"""Codec and container."""


def write_noise(path: Path) -> Path:
    """Eight frames, every one of about a tenth of the file."""
    noise = np.random.default_rng(0)
    # The index lies in front in one of the MP4 files, behind in the others.
    options = {"movflags": "+faststart"} if path.name == "libx264.mp4" else {}
    with av.open(path, "w", options=options) as container:
        stream = container.add_stream(path.stem, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(8):
            array = noise.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def set_matrix(path: Path, a: float, b: float, c: float, d: float) -> None:
    """Write how players show the frames into the header of the track."""
    content = path.read_bytes()
    start = content.index(b"tkhd") + 44
    numbers = [round(65536 * value) for value in (a, b, 0, c, d, 0, 0, 0, 16384)]
    path.write_bytes(content[:start] + struct.pack(">9i", *numbers) + content[start + 36 :])


class TestVideoFile:
    @pytest.mark.parametrize(("height", "width"), [(46, 62), (47, 62), (46, 63), (47, 63)])
    def test_round_trip_keeps_count_rate_order_and_colours(self, tmp_path: Path, height: int, width: int) -> None:
        frames = [quarters(height, width, brightness) for brightness in (0, 20, 40)]
        write_video(tmp_path / "a" / "v.mp4", frames, fps=29.97)
        source = open_frames(tmp_path / "a" / "v.mp4")
        assert float(source.fps) == pytest.approx(29.97, abs=1e-3)
        assert source.length == 3
        read = list(source)
        for frame, expected in zip(read, frames, strict=True):
            assert frame.shape == (3, height + height % 2, width + width % 2)
            assert (corners(frame) - corners(expected)).abs().max() <= 12
        assert torch.equal(torch.stack(list(source)), torch.stack(read))  # from the start again
        assert [p.name for p in (tmp_path / "a").iterdir()] == ["v.mp4"]

    def test_index_is_in_front(self, tmp_path: Path) -> None:
        write_video(tmp_path / "v.mp4", [quarters()] * 3)
        content = (tmp_path / "v.mp4").read_bytes()
        assert content.index(b"moov") < content.index(b"mdat")

    def test_is_a_stream(self, tmp_path: Path) -> None:
        write_video(tmp_path / "v.mp4", [quarters()] * 5)
        stream = iter(open_frames(tmp_path / "v.mp4"))
        assert next(stream).shape == (3, 46, 62)
        stream.close()  # type: ignore[attr-defined]

    @pytest.mark.parametrize(
        ("matrix", "shown"),
        [
            ((0, 1, -1, 0), lambda frame: frame.rot90(-1, (1, 2))),  # a quarter turn clockwise
            ((-1, 0, 0, -1), lambda frame: frame.rot90(2, (1, 2))),
            ((0, -1, 1, 0), lambda frame: frame.rot90(1, (1, 2))),
            ((-1, 0, 0, 1), lambda frame: frame.flip(2)),  # a front camera
            ((1, 0, 0, -1), lambda frame: frame.flip(1)),
            ((0, 1, 1, 0), lambda frame: frame.transpose(1, 2)),
            ((0, -1, -1, 0), lambda frame: frame.transpose(1, 2).flip(1, 2)),
            ((2, 0, 0, 2), lambda frame: frame),
        ],
    )
    def test_telephone_videos_are_upright(
        self, tmp_path: Path, matrix: tuple[float, ...], shown: Callable[[Tensor], Tensor]
    ) -> None:
        """A point (x, y) is shown at (a x + c y, b x + d y): where each corner goes, the specification of MP4 says."""
        write_video(tmp_path / "v.mp4", [quarters()] * 2)
        set_matrix(tmp_path / "v.mp4", *matrix)
        frame = next(iter(open_frames(tmp_path / "v.mp4")))
        expected = shown(quarters())
        assert frame.shape == expected.shape
        assert (corners(frame) - corners(expected)).abs().max() <= 12

    @pytest.mark.parametrize("matrix", [(0.7071, 0.7071, -0.7071, 0.7071), (1, 0.1, 0, 1), (0, 0, 0, 0)])
    def test_slanted_videos_are_refused(self, tmp_path: Path, matrix: tuple[float, ...]) -> None:
        write_video(tmp_path / "v.mp4", [quarters()] * 2)
        set_matrix(tmp_path / "v.mp4", *matrix)
        with pytest.raises(ValueError, match=r"v\.mp4: the frames are to be shown at a slant, which is not supported"):
            list(open_frames(tmp_path / "v.mp4"))

    def test_container_that_claims_no_count(self, tmp_path: Path) -> None:
        with av.open(tmp_path / "v.mkv", "w") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width, stream.height = 62, 46
            for brightness in range(4):
                array = quarters(brightness=brightness).permute(1, 2, 0).numpy()
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")))
            container.mux(stream.encode(None))
        source = open_frames(tmp_path / "v.mkv")
        assert source.length is None
        assert source.fps == 10
        assert len(list(source)) == 4

    @pytest.mark.parametrize("part", [0.3, 0.6, 0.9, 0.999])
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_file_that_was_cut_off(self, tmp_path: Path, kind: str, part: float) -> None:
        path = write_noise(tmp_path / kind)
        assert len(list(open_frames(path))) == 8
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * part)])
        if kind == "mpeg4.avi" and part == 0.999:  # its index is cut, all frames are there
            assert len(list(open_frames(path))) == 8
            return
        with pytest.raises(
            ValueError, match=rf"{kind}: (\d+ bytes at the end are missing|frame \d|this is no complete|the file)"
        ):
            list(open_frames(path))

    @pytest.mark.parametrize("kind", ["libx264.mp4", "libx264.mkv", "libvpx-vp9.webm"])
    def test_what_is_missing_shows_before_the_first_frame(self, tmp_path: Path, kind: str) -> None:
        path = write_noise(tmp_path / kind)
        path.write_bytes(path.read_bytes()[:-3000])
        with pytest.raises(
            ValueError, match=r"3000 bytes at the end are missing; copy it again, or keep what can be read: ffmpeg"
        ):
            open_frames(path)

    def test_what_cameras_append_is_no_part_of_the_video(self, tmp_path: Path) -> None:
        path = write_noise(tmp_path / "libx264.mp4")
        path.write_bytes(path.read_bytes() + b"\xff" * 40)
        assert len(list(open_frames(path))) == 8

    def test_recordings_without_a_length_are_read(self, tmp_path: Path) -> None:
        """As a streamed Matroska file has: its segment says all ones."""
        path = write_noise(tmp_path / "libx264.mkv")
        content = path.read_bytes()
        start = content.index(b"\x18\x53\x80\x67") + 4
        path.write_bytes(content[:start] + b"\x01" + b"\xff" * 7 + content[start + 8 :])
        assert len(list(open_frames(path))) == 8

    def test_frames_before_a_damaged_one_are_kept(self, tmp_path: Path) -> None:
        path = write_noise(tmp_path / "mpeg4.avi")
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])
        frames = iter(open_frames(path))
        next(frames)
        with pytest.raises(ValueError, match=r"mpeg4\.avi: frame 1 is damaged or cut off"):
            next(frames)

    def test_no_video(self, tmp_path: Path) -> None:
        (tmp_path / "v.mp4").write_text("not a video")
        with pytest.raises(ValueError, match=r"v\.mp4: this is no complete video file"):
            open_frames(tmp_path / "v.mp4")
        with av.open(tmp_path / "sound.wav", "w") as container:
            stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype=np.int16), format="s16", layout="mono")
            sound.sample_rate = 8000
            container.mux(stream.encode(sound))
        with pytest.raises(ValueError, match=r"sound\.wav: the file has no video stream"):
            open_frames(tmp_path / "sound.wav")
        with pytest.raises(FileNotFoundError, match="nowhere"):
            open_frames(tmp_path / "nowhere.mp4")


class TestFolder:
    def save(self, path: Path, value: int, size: tuple[int, int] = (8, 6)) -> None:
        Image.new("RGB", size, (value, 0, 0)).save(path)

    def test_numerical_order_without_hidden_and_other_files(self, tmp_path: Path) -> None:
        for number in (10, 9, 100, 1):
            self.save(tmp_path / f"{number}.png", number)
        (tmp_path / "._1.png").write_text("left by a file manager")
        (tmp_path / "notes.txt").write_text("")
        source = open_frames(tmp_path)
        assert source.names == ("1", "9", "10", "100")
        assert (source.length, source.fps) == (4, FOLDER_FPS)
        assert [int(frame[0, 0, 0]) for frame in source] == [1, 9, 10, 100]

    def test_names_with_and_without_numbers(self, tmp_path: Path) -> None:
        for stem in ("b", "a10", "a2", "7"):
            self.save(tmp_path / f"{stem}.png", 0)
        assert open_frames(tmp_path).names == ("7", "a2", "a10", "b")

    def test_frames_are_decoded_when_they_are_asked_for(self, tmp_path: Path) -> None:
        self.save(tmp_path / "0.png", 0)
        (tmp_path / "1.png").write_text("damaged")
        stream = iter(open_frames(tmp_path))
        next(stream)
        with pytest.raises(ValueError, match=r"1\.png"):
            next(stream)

    def test_mixed_sizes(self, tmp_path: Path) -> None:
        self.save(tmp_path / "0.png", 0)
        self.save(tmp_path / "1.png", 0, (9, 6))
        with pytest.raises(ValueError, match=r"1\.png is 9x6, the frames before are 8x6"):
            list(open_frames(tmp_path))

    def test_empty_and_ambiguous(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"holds no \.jpg, \.png, .* images"):
            open_frames(tmp_path)
        self.save(tmp_path / "0.png", 0)
        self.save(tmp_path / "0.jpg", 0)
        with pytest.raises(ValueError, match=r"0\.png and 0\.jpg are the same frame"):
            open_frames(tmp_path)


class TestWriter:
    def test_an_exception_leaves_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(AssertionError, match="one size"):
            write_video(tmp_path / "v.mp4", [quarters(), quarters(height=20)])
        assert list(tmp_path.iterdir()) == []

    def test_the_old_file_stays_until_the_new_one_is_complete(self, tmp_path: Path) -> None:
        (tmp_path / "v.mp4").write_text("old")
        writer = VideoWriter(tmp_path / "v.mp4")
        writer.write(quarters())
        assert (tmp_path / "v.mp4").read_text() == "old"
        writer.close()
        assert len(list(open_frames(tmp_path / "v.mp4"))) == 1

    def test_without_a_frame_there_is_no_file(self, tmp_path: Path) -> None:
        VideoWriter(tmp_path / "v.mp4").close()
        assert list(tmp_path.iterdir()) == []

    def test_name(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"must end in \.mp4"):
            VideoWriter(tmp_path / "v.avi")


# Files from strangers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["hls", "concat", "dash"])
def test_play_lists_open_nothing(tmp_path: Path, kind: str) -> None:
    """They name other files, and addresses in the network."""
    with VideoWriter(tmp_path / "private.mp4") as writer:
        for _ in range(3):
            writer.write(torch.zeros(3, 16, 16, dtype=torch.uint8))
    target = tmp_path / "private.mp4"
    text = {
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{target}\n#EXT-X-ENDLIST\n",
        "concat": "ffconcat version 1.0\nfile private.mp4\n",
        "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"></MPD>',
    }[kind]
    for suffix in ("mp4", "m3u8"):
        (tmp_path / f"v.{suffix}").write_text(text)
        with pytest.raises(ValueError, match=rf"v\.{suffix}: this is no"):
            open_frames(tmp_path / f"v.{suffix}")


def test_frames_of_absurd_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with VideoWriter(tmp_path / "v.mp4") as writer:
        writer.write(torch.zeros(3, 16, 32, dtype=torch.uint8))
    monkeypatch.setattr("vos_lightning.io.video_files.MAX_PIXELS", 16 * 32 - 1)
    with pytest.raises(ValueError, match=r"v\.mp4: the video says that its frames have 32 x 16 pixels, more than the 511"):
        open_frames(tmp_path / "v.mp4")


def test_pipes_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "v.mp4")
    for look in (open_frames, count_frames):
        with pytest.raises(ValueError, match=r"v\.mp4: this is a pipe, not a file"):
            look(tmp_path / "v.mp4")


def test_links_stay_in_the_folder(tmp_path: Path) -> None:
    for folder in ("own", "other"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / folder / "0.png")
    (tmp_path / "own" / "1.png").symlink_to("0.png")
    (tmp_path / "linked").symlink_to("own")
    assert len(list(open_frames(tmp_path / "linked"))) == 2
    (tmp_path / "own" / "2.png").symlink_to(tmp_path / "other" / "0.png")
    with pytest.raises(ValueError, match=r"2\.png: a link leads out of .*own, which is not followed"):
        open_frames(tmp_path / "own")
    assert len(list(open_frames(tmp_path / "own", links_into=[tmp_path / "other"]))) == 3
